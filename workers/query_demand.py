"""How many encoders queries need: from what encoders have computed for them, and whether any waits.

Comes in: what those count who answer queries, now and then. Goes out: a number of replicas. Never here: a decision.

A query's call waits for the one that the encoder is at, perhaps a long one of the stream's. So how long calls take says little of
what queries cost; how long encoders computed for them is just that.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence

from workers import metrics

# The mean of so many seconds: the shorter finds a rise soon, the longer keeps a lull from ending it.
SHORT_S, LONG_S = 10.0, 45.0
# Queries are to keep an encoder busy for no more than this share of its time: at all of it they would wait for each other.
SHARE = 0.7
# While a query waits there is need of an encoder, though nobody knows of how much.
SOME = 0.01


class QueryDemand:
    """Adds up what those who answer queries count; any may begin anew, or be missing."""

    def __init__(self) -> None:
        self._seconds: float | None = None
        self._at = 0.0
        self._spans: deque[tuple[float, float, float]] = deque()
        # For other threads: encoders that queries need, 0 where none has come of late; and their calls under way.
        self.replicas = 0.0
        self.calls = 0.0

    def note(self, at: float, answers: Sequence[Mapping[str, float]]) -> None:
        """Take what they said at ``at``, monotonic seconds; while none says anything, they have done nothing that is known of."""
        seconds = sum(answer.get(metrics.QUERY_ENCODER_SECONDS.name, 0.0) for answer in answers)
        waiting = sum(answer.get(metrics.QUERIES_WAITING.name, 0.0) for answer in answers)
        self.calls = sum(answer.get(metrics.QUERY_CALLS.name, 0.0) for answer in answers)
        before = self._seconds
        if not answers:
            seconds = before or 0.0
        if before is not None and at > self._at:
            # A counter that went back began anew.
            self._spans.append((self._at, at, seconds - before if seconds >= before else seconds))
        self._seconds, self._at = seconds, at
        while self._spans and self._spans[0][1] <= at - LONG_S:
            self._spans.popleft()
        busy = max(self._mean(SHORT_S), self._mean(LONG_S)) / SHARE
        self.replicas = max(busy, SOME if waiting > 0 else 0.0)

    def _mean(self, over: float) -> float:
        """Encoders that were busy with queries, on average over the last seconds."""
        recent = [span for span in self._spans if span[1] > self._at - over]
        passed = sum(end - start for start, end, _ in recent)
        return sum(seconds for _, _, seconds in recent) / max(passed, over) if recent else 0.0
