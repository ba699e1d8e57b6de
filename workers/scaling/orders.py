"""Replicas that are on their way: since when, how many, and how long one takes. And how fast the target may move. Pure.

Comes in: targets as they are decided, and how many replicas are ready. Goes out: what will be there when. Never here: a need.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

# At most so many times as many replicas, or so many more, in GROWTH_S seconds; down to this share in SHRINK_S seconds.
GROWTH, GROWTH_FLOOR, GROWTH_S = 4.0, 8, 5.0
SHRINK, SHRINK_S = 0.25, 10.0
LEARNED_S = (2.0, 1800.0)
# A replica that is late is thought to come after another quarter of what it has taken, and so on.
LATE = 0.25
MOST_ORDERS = 8


@dataclass(frozen=True, slots=True)
class Orders:
    """``pending``: (when, how many will be ready with these), oldest first. ``start_s``: what a start took, None: not seen."""

    pending: tuple[tuple[float, int], ...] = ()
    start_s: float | None = None
    grown_at: float = -math.inf
    grown_from: int = 0
    shrunk_at: float = -math.inf

    def arrived(self, now: float, ready: int) -> Orders:
        """Learn how long replicas take, when all of an order are there."""
        there = [at for at, upto in self.pending if upto <= ready]
        if not there:
            return self
        taken = min(max(now - there[-1], LEARNED_S[0]), LEARNED_S[1])
        learned = taken if self.start_s is None else 0.5 * (self.start_s + taken)
        return replace(self, start_s=learned, pending=self.pending[len(there) :])

    def moved(self, now: float, ready: int, before: int, target: int) -> Orders:
        """After a decision. Replicas that are lost are ordered again by whoever runs them: they are on their way too."""
        pending = self.pending
        if pending:
            pending = tuple((at, min(upto, target)) for at, upto in pending if upto > ready) if target > ready else ()
        if target > (pending[-1][1] if pending else ready):
            pending = (*pending[: MOST_ORDERS - 1], (now, target))
        grown_at, grown_from, shrunk_at = self.grown_at, self.grown_from, self.shrunk_at
        if target > before and now - grown_at >= GROWTH_S:
            grown_at, grown_from = now, before
        elif target < before:
            shrunk_at = now
        elif pending == self.pending:
            return self
        return Orders(pending, self.start_s, grown_at, grown_from, shrunk_at)

    def most(self, now: float, target: int) -> int:
        """As many as there may be now. What was added in the last GROWTH_S seconds does not count twice."""
        since = self.grown_from if now - self.grown_at < GROWTH_S else target
        return max(math.floor(since * GROWTH), since + GROWTH_FLOOR)

    def fewest(self, target: int) -> int:
        """As few as there may be after one step."""
        return math.floor(target * SHRINK)

    def shrank(self, now: float, steps: float = 1.0) -> bool:
        """Whether that was within the last ``steps`` × SHRINK_S seconds."""
        return now - self.shrunk_at < steps * SHRINK_S

    def backlog_then(
        self, backlog: float, arrivals: float, rate: float, *, now: float, ready: int, start_s: float, outrun: float
    ) -> float:
        """Tokens that will be left when a replica works that is ordered now; what is on its way works on them before that.

        Arrivals (tokens/s) that outrun the replicas (``rate`` each) by no more than a share ``outrun`` pile nothing up.
        """
        left, since, working = backlog, 0.0, ready
        for ordered, upto in (*self.pending, (now, 0)):
            taken = max(0.0, now - ordered)
            passed = max(0.0, min(max(start_s - taken, LATE * taken), start_s) - since)
            net = arrivals - working * rate
            if net < 0 or net > outrun * working * rate:
                left = max(0.0, left + net * passed)
            since, working = since + passed, max(working, upto)
        return left
