"""What a decision stands on: what was seen, what is allowed, and the reasons that there are.

Comes in: numbers from the readers, from Serve, from the settings; some may be missing, old, or nonsense. Goes out: whether they
can be reckoned with. Never here: a decision.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

# Larger figures are cut to this, so that no product of a few of them overflows.
MOST = 1e18


class Reason(StrEnum):
    """Why the target is what it is."""

    STEADY = "steady"  # about what there is will do
    ARRIVALS = "arrivals"  # more, or less, arrives
    BACKLOG = "backlog"  # a backlog wants draining in time
    REQUESTS = "requests"  # other callers wait
    IDLE = "idle"  # there is nothing to do
    MEASURING = "measuring"  # nobody knows yet what a replica does in a second
    STARTING = "starting"  # what was ordered is on its way
    DRAINING = "draining"  # less will do once the backlog is gone
    SETTLING = "settling"  # less will do if that lasts
    STALE = "stale"  # figures are old or missing
    READERS = "readers"  # the readers deliver no more than this feeds
    SINK = "sink"  # the sink takes no more than this makes
    GROWTH = "growth"  # no faster than this
    MOST = "most"  # the upper limit
    LEAST = "least"  # the lower limit


@dataclass(frozen=True, slots=True)
class Limits:
    """What the settings allow, as ``workers.settings`` words it. Times in seconds.

    ``tokens_per_s`` of a replica and ``start_s`` that one takes hold until they are measured; None: nobody knows.
    ``calls_per_replica``: how many calls a replica takes at a time.
    """

    least: int
    most: int
    drain_s: float = 60.0
    idle_s: float = 300.0
    settle_s: float = 240.0
    start_s: float = 120.0
    stale_s: float = 15.0
    tokens_per_s: float | None = None
    calls_per_replica: int = 2


@dataclass(frozen=True, slots=True)
class Observation:
    """What was seen at ``at``, seconds of a clock that only goes forward. None: not known.

    ``ready`` replicas take calls, ``target`` are wanted. ``held``: records that readers have and that are not committed;
    ``unread``: records behind them in the source. ``arrived`` (records), ``done`` (tokens embedded) and ``call_s`` (seconds
    of the readers' calls, side by side) count up for ever. ``feed``: tokens/s that the readers can deliver at most.
    ``blocked``: readers hold all that they may, so whatever holds things up comes after them. ``requests``: calls of others,
    waiting or being served. ``arrived_at``: when ``arrived`` was counted, if that was before ``at``.
    """

    at: float
    ready: int
    target: int
    age_s: float = 0.0
    held: float | None = None
    unread: float | None = None
    tokens_per_record: float | None = None
    arrived: float = 0.0
    done: float = 0.0
    call_s: float = 0.0
    feed: float | None = None
    blocked: bool = False
    requests: float = 0.0
    arrived_at: float | None = None

    def usable(self, since: float | None, stale_s: float) -> bool:
        """Whether the figures are all there, young enough, numbers, and not from before ``since``."""
        age = number(self.age_s)
        return (
            math.isfinite(self.at)
            and (since is None or self.at >= since)
            and age is not None
            and age <= stale_s
            and number(self.held) is not None
            and number(self.unread) is not None
            and number(self.tokens_per_record) is not None
            and number(self.arrived) is not None
            and number(self.done) is not None
            and number(self.call_s) is not None
        )

    @property
    def backlog(self) -> float:
        """Tokens without a committed vector; 0 where that is not known."""
        records = (number(self.held) or 0.0) + (number(self.unread) or 0.0)
        return min(records * (number(self.tokens_per_record) or 0.0), MOST)


def number(value: float | None) -> float | None:
    """A figure that can be reckoned with; None for what is missing, negative, or no number."""
    if value is None or not 0 <= value < math.inf:
        return None
    return min(float(value), MOST)


def count(value: int) -> int:
    """A number of replicas, whatever was given for it."""
    return max(0, int(min(value, MOST))) if value == value else 0  # noqa: PLR0124 - NaN is not itself


def toward(level: float, sample: float, passed: float, within: float) -> float:
    """Exponential smoothing over uneven intervals: ``within`` is its time constant, seconds like ``passed``."""
    return level + (sample - level) * (1 - math.exp(-passed / max(within, 1e-9)))
