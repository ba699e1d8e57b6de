"""How many encoders and readers run: what a reader may send at once, and since when there is nobody to send it to.

Comes in: Serve's status, now and then. Goes out: a capacity, two metrics, a line when the encoders are gone and when they are
back. Never here: starting or stopping any of them; Serve does.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from workers import log, metrics
from workers.settings import Settings
from workers.share import Share

LOG = log.get(__name__)

# Serve's answer costs a reader a tenth of a second of its one core to unpack.
PERIOD_S = 5.0
LOG_EVERY_S = 30.0


class Count(NamedTuple):
    """Replicas that run, and what Serve says of the encoders."""

    encoders: int
    readers: int
    message: str = ""


class Census:
    """Asks on a thread of its own; while nobody answers, the last answer holds."""

    def __init__(self, settings: Settings, meter: metrics.Metrics, ask: Callable[[], Count]) -> None:
        """``ask`` may raise whatever it likes: the controller may be dead or starting, and the stream goes on."""
        self._share = Share(settings.pool.in_flight)
        self._to_zero = settings.pool.min == 0
        self._elastic = settings.pool.min != settings.pool.max
        self._meter = meter
        self._ask = ask
        # Where replicas come and go, they are there when they have been counted.
        self._last = Count(0 if self._elastic else max(1, settings.pool.min), settings.readers.count)
        self._seen = self._missed = False
        self._gone_since: float | None = None
        self._logged = 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="census", daemon=True)

    def start(self) -> None:
        """Begin to ask."""
        self._thread.start()

    def stop(self) -> None:
        """Ask no more."""
        self._ended.set()

    def capacity(self) -> int:
        """How many calls this reader may have under way: one at least, which finds out when encoders are back.

        Where replicas come and go, none without a replica: with a call that waits for the first one, Serve starts that one
        and asks nobody how many it should be.
        """
        limit = self._share.limit(self._last.encoders, self._last.readers)
        return 0 if self._elastic and self._last.encoders == 0 else limit

    def heard(self, took_s: float, computed_s: float) -> None:
        """A call of this reader's has come back, in so many seconds, of which an encoder has computed so many."""
        used = self._meter.value(metrics.CALLS_IN_FLIGHT) >= self.capacity()
        self._share.answered(took_s, computed_s, used=used)

    def _run(self) -> None:
        while not self._ended.wait(PERIOD_S):
            try:
                found = self._ask()
            except Exception as error:  # noqa: BLE001 - see ask
                LOG.debug("census failed %s", log.fields(error=type(error).__name__))
                found = self._last
            self.note(found, time.monotonic())

    def note(self, found: Count, now: float) -> None:
        """Take a count; ``now`` in monotonic seconds."""
        self._last = found._replace(readers=max(1, found.readers))
        self._meter.set(metrics.ENCODERS_RUNNING, found.encoders)
        self._seen = self._seen or found.encoders > 0
        # A pool that may shrink to nothing is gone only where somebody waits for it.
        waits = self._meter.value(metrics.CALLS_IN_FLIGHT) or self._meter.value(metrics.IN_FLIGHT_RECORDS)
        if found.encoders > 0 or (self._to_zero and not waits):
            if self._gone_since is not None and self._missed:
                LOG.info("encoders are back %s", log.fields(after_s=now - self._gone_since))
            self._gone_since, self._missed = None, False
        elif self._gone_since is None:
            # The first one takes its time, and so does one that comes back to an empty pool: that is said when it takes long.
            soon = self._seen and not self._to_zero
            self._gone_since, self._logged = now, now - LOG_EVERY_S if soon else now
        gone = 0.0 if self._gone_since is None else now - self._gone_since
        self._meter.set(metrics.ENCODERS_UNAVAILABLE, gone)
        if self._gone_since is not None and now - self._logged >= LOG_EVERY_S:
            self._logged, self._missed = now, True
            reason = own_sentence(found.message)
            LOG.warning(
                "no encoder runs; what was read waits, and reading pauses at the limits %s",
                log.fields(for_s=gone, **({} if reason is None else {"reason": reason})),
            )


def of_serve(application: str) -> Count:
    """The application's replicas as Serve counts them."""
    from ray import serve  # noqa: PLC0415 - heavy

    deployments = serve.status().applications[application].deployments
    running = {name: found.replica_states.get("RUNNING", 0) for name, found in deployments.items()}
    return Count(running["Encoder"], running["Reader"], deployments["Encoder"].message)


def own_sentence(message: str) -> str | None:
    """Our own sentence out of a message of Serve's, which holds the whole traceback of a replica; None: it has none."""
    ours = re.findall(r"(?:EnvironmentFault|SettingsError|StreamEmbedderError): (.+)", message)
    return ours[-1] if ours else None


def unavailable(snapshot: Mapping[str, float]) -> float:
    """Seconds without an encoder, in a reader's snapshot."""
    return snapshot.get(metrics.ENCODERS_UNAVAILABLE.name, 0.0)
