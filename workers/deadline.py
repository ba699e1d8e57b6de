"""One budget of time, shared by every blocking step on a path that must end: a drain, a revoke, a commit."""

from __future__ import annotations

import time
from collections.abc import Callable


class Deadline:
    """Seconds that run out. ``clock`` is monotonic seconds; tests pass their own."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Start the budget of ``seconds`` now."""
        self._clock = clock
        self._end = clock() + seconds

    def remaining(self) -> float:
        """Seconds left, never negative."""
        return max(0.0, self._end - self._clock())

    @property
    def expired(self) -> bool:
        """Whether nothing is left."""
        return self.remaining() == 0.0
