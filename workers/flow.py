"""What goes through a reader, counted: what it prepares and how fast, the calls that are out, the tokens that come back.

Comes in: counts, from the reader's work thread. Goes out: metrics, which size the pool of encoders too. Never here: waiting.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from workers import metrics

# So many records at once show how fast a reader is; what few of them cost is mostly not theirs.
MANY = 64
# So do so many tokens, however few the records are.
MANY_TOKENS = 16_384


class Flow:
    """Belongs to one thread; ``clock`` in seconds."""

    def __init__(self, meter: metrics.Metrics, clock: Callable[[], float] = time.monotonic) -> None:
        self._meter = meter
        self._clock = clock
        self._calls = 0
        self._since = clock()

    def prepared(self, records: int, tokens: int, seconds: float) -> None:
        """Records have been decoded and tokenised, which took ``seconds``; ``tokens`` are those that go to an encoder."""
        self._meter.add(metrics.RECORDS_PREPARED, records)
        self._meter.add(metrics.TOKENS_PREPARED, tokens)
        if records >= MANY or tokens >= MANY_TOKENS:
            self._meter.add(metrics.PREPARED_AT_SPEED, tokens)
            self._meter.add(metrics.PREPARING_SECONDS, seconds)

    def calls(self, count: int, sent: int | None = None) -> None:
        """So many calls are out from now on, a new one of them with ``sent`` tokens; those until now took the time that passed."""
        now = self._clock()
        if self._calls:
            self._meter.add(metrics.CALL_SECONDS, self._calls * (now - self._since))
        if count != self._calls:
            self._meter.set(metrics.CALLS_IN_FLIGHT, count)
        if sent is not None:
            self._meter.observe(metrics.CALL_TOKENS, sent)
        self._calls, self._since = count, now

    def done(self, tokens: int, shared: int, seconds: float) -> None:
        """A call has come back with its vectors, after so many seconds of an encoder's work.

        ``shared`` tokens were not in it because equal texts were.
        """
        self._meter.add(metrics.TOKENS_ENCODED, tokens)
        self._meter.add(metrics.ENCODER_SECONDS, seconds)
        if shared:
            self._meter.add(metrics.TOKENS_SHARED, shared)
