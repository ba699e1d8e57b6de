"""How far a job is, and when it will be done. Pure: the clock is an argument.

Comes in: how much is done, again and again. Goes out: speed, time left, and how wrong that was at the first tenth. Never here:
a guess at replicas that are yet to come: the time left is that at the present speed.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

# The present speed is that of the last half of the time so far, and of so many seconds at least.
LEAST_S = 10.0


@dataclass(frozen=True, slots=True)
class Forecast:
    """``at_s`` seconds after the work began, ``left_s`` were said to be left."""

    at_s: float
    left_s: float

    def error(self, whole_s: float) -> float:
        """How much too long (or, below zero, too short) it was, as a share of what it took from then on."""
        took = max(whole_s - self.at_s, 1e-9)
        return (self.left_s - took) / took


@dataclass
class Progress:
    """Work in any unit, ``total`` of it; seconds count from the first :meth:`note`, which is when the work begins."""

    total: float
    done: float = 0.0
    tenth: Forecast | None = None
    _skipped: float = 0.0
    _began: float | None = None
    _seen: deque[tuple[float, float]] = field(default_factory=deque)

    def note(self, now: float, done: float, skipped: float = 0.0) -> None:
        """``done`` is done by now; ``skipped``, of the total, turned out to need no work.

        Where less is done than before, the difference was lost, and is to be done or skipped another time.
        """
        if self._began is None:
            self._began = now
        self.total = max(self.total, done + skipped)
        if (lost := self.done - done) > 0:
            # It says nothing of the speed, which is that of all work.
            self._seen = deque((then, before - lost) for then, before in self._seen)
        self.done, self._skipped = done, skipped
        if done <= 0:
            self._seen.clear()  # until the first texts come out, time says nothing of the speed
        self._seen.append((now, done))
        oldest = now - max(LEAST_S, (now - self._began) / 2)
        while len(self._seen) > 2 and self._seen[1][0] <= oldest:
            self._seen.popleft()
        left = self.left_s
        if self.tenth is None and left is not None and self.share >= 0.1:
            self.tenth = Forecast(now - self._began, left)

    @property
    def age_s(self) -> float:
        """Seconds since the work began."""
        return 0.0 if self._began is None else self._seen[-1][0] - self._began

    @property
    def share(self) -> float:
        """How much of what needs work is done, 0 to 1."""
        whole = self.total - self._skipped
        return min(1.0, self.done / whole) if whole > 0 else 1.0

    @property
    def speed(self) -> float | None:
        """Work in a second; None: not known yet."""
        if len(self._seen) < 2:
            return None
        (start, before), (end, after) = self._seen[0], self._seen[-1]
        speed = (after - before) / (end - start) if end > start else 0.0
        return speed if speed > 0 else None

    @property
    def left_s(self) -> float | None:
        """Seconds that are left at the present speed; None: not known yet."""
        speed = self.speed
        return None if speed is None else max(0.0, self.total - self._skipped - self.done) / speed


def spoken(seconds: float | None) -> str:
    """Seconds for people."""
    if seconds is None:
        return "?"
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes, hours = round(seconds / 60), round(seconds / 3600)
    if minutes < 90:
        return f"{minutes} min"
    return f"{hours} h" if hours > 9 else f"{minutes // 60} h {minutes % 60} min"
