"""How many replicas a batch job has: a pure function of what is left to do.

Comes in: the work that is left, what a replica does in a second, and how long one takes to start. Goes out: how many there
should be. Never here: Ray, or a clock.
"""

from __future__ import annotations

# A replica that is started works at least so many times as long as it took to start: its start is paid, too.
WORTH = 4.0


def wanted(*, now: int, fewest: int, most: int, pieces: int, left_s: float | None, start_s: float) -> int:
    """How many replicas there should be.

    Args:
        now: how many there are.
        fewest: ``pool.min``; a job has one at least.
        most: ``pool.max``.
        pieces: those that are not done; a replica needs one.
        left_s: seconds that the work would take one replica; None: not known yet.
        start_s: seconds that a replica takes to start.

    Returns:
        No less than ``now``, unless there are fewer pieces: a job grows, and lets its replicas go at its end.
    """
    paid = 0 if left_s is None else int(left_s / (WORTH * max(start_s, 1e-3)))
    return min(pieces, most, max(1, fewest, now, paid))
