"""How many calls one of several senders may have under way. Pure, but for a lock.

Comes in: how many encoders and senders there are, and how long calls took. Goes out: a limit. Never here: counting either.

Each sender has an equal part of the calls for certain, and takes more while lines are no longer than they should be: when a call
comes back as soon as a line of ``in_flight`` explains, the limit rises by one, and when it comes back later by half a call, the
limit falls by one, down to the part. So senders that have nothing to send leave their part to others, and get it back within a
few calls, without a word between them; where all have much to send, lines are longer by less than a call. As Vegas does with
packets (Brakmo and Peterson, 1995), which compares round trips with the shortest; here each answer says how much of its time
was computing.
"""

from __future__ import annotations

import threading

# A line is as long as it should be, and half a call; and what the way there and back may take.
SLACK_CALLS, SLACK_S = 0.5, 0.02


class Share:
    """For one sender; any thread may use it."""

    def __init__(self, in_flight: int) -> None:
        """``in_flight``: calls at one encoder, of which one runs and the others wait."""
        self._in_flight = in_flight
        self._more = 0
        self._lock = threading.Lock()

    def limit(self, encoders: int, senders: int) -> int:
        """Calls that this sender may have under way: one at least, and no more than if it were alone."""
        part, most = self._bounds(encoders, senders)
        with self._lock:
            self._more = min(self._more, most - part)
            return part + self._more

    def answered(self, took_s: float, computed_s: float, *, used: bool) -> None:
        """A call took so long, of which an encoder computed so long; ``used``: all that the limit allows was under way."""
        late = took_s > (self._in_flight + SLACK_CALLS) * computed_s + SLACK_S
        with self._lock:
            if late:
                self._more = max(0, self._more - 1)
            elif used:
                self._more += 1

    def _bounds(self, encoders: int, senders: int) -> tuple[int, int]:
        most = max(1, self._in_flight * encoders)
        return max(1, most // max(1, senders)), most
