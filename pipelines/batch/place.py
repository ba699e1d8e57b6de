"""Where files are put: a store that is asked again while it does not answer, opened anew each time.

Comes in: a path and a file. Goes out: the file, where nothing was. Never here: what is in it.
"""

from __future__ import annotations

import time

from workers import log
from workers.deadline import Deadline
from workers.errors import EnvironmentFault
from workers.object_store import Location, ObjectStore

LOG = log.get(__name__)

# How long a store that refuses a file is asked again, before its piece is given back.
PATIENCE_S = 120.0
_BACKOFF_S = (0.2, 5.0)


class Place:
    """A prefix of a store, for any number of threads."""

    def __init__(self, location: Location) -> None:
        self.location = location
        self._opened: ObjectStore | None = None

    def put(self, path: str, content: bytes) -> None:
        """Put a file where none is; what is there already is of another attempt at the same rows.

        Raises:
            EnvironmentFault: the store does not take it, for two minutes.
        """
        deadline, delay = Deadline(PATIENCE_S), _BACKOFF_S[0]
        while True:
            try:
                # After a fault it is opened anew, with the credentials that are there then.
                self._opened = store = self._opened or ObjectStore(self.location, writing=True)
                store.put_if_absent(path, content)
                return
            except EnvironmentFault as error:
                self._opened = None
                if deadline.expired:
                    raise
                LOG.warning("file not put %s", log.fields(retry_in_s=delay, error=error))
            time.sleep(delay)
            delay = min(2 * delay, _BACKOFF_S[1])
