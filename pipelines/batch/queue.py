"""The pieces of a job that wait for a replica: which is next, and when there is no point in another. Pure.

Comes in: tasks, and how the attempts at them ended. Goes out: the next one. Never here: Ray, or what an attempt is.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterable, Sequence

from pipelines.batch.there import Task

# A piece that has failed so often is left out, and the others go on; and one that so many replicas have died at.
MOST_FAILURES = 3
# So many pieces in a row have failed at their first attempt: it may be the largest that are broken, and they come first, so
# the next ones are drawn from all of the input.
SUSPECT = 6
# So many, and nothing was done in between. Were a quarter of the pieces good, one of those that were drawn would have been
# done 999 times of 1,000 (0.75 ** 24); more attempts would cost what they cost when a store takes nothing.
MOST_FAILED = 30
SEED = 0


class Queue:
    """New tasks in their order, behind them those that have failed before. Used by one thread."""

    def __init__(self, tasks: Iterable[Task]) -> None:
        """``tasks``: none of which has been tried, the first one first."""
        self._new = deque(tasks)
        self._again = deque[Task]()
        self._random = random.Random(SEED)  # noqa: S311 - no secret
        self._place = 0
        self._failed = 0

    def __len__(self) -> int:
        return len(self._new) + len(self._again)

    @property
    def untried(self) -> int:
        """How many no attempt was made at."""
        return len(self._new)

    @property
    def suspect(self) -> bool:
        """Whether so many pieces in a row have failed that it may not be theirs."""
        return self._failed >= SUSPECT

    @property
    def held(self) -> bool:
        """Whether no more are handed out, unless one of those under way is done.

        Never where all have been tried: those that have failed are tried again, each a few times, and that ends by itself.
        """
        return self._failed >= MOST_FAILED and bool(self._new)

    def draw(self) -> Task | None:
        """The one that :meth:`take` would hand out, any of them while they are suspect; None: none is left, or they are held."""
        if self.held:
            return None
        if self._new:
            self._place = self._random.randrange(len(self._new)) if self.suspect else 0
            return self._new[self._place]
        return self._again[0] if self._again else None

    def take(self) -> None:
        """The one that :meth:`draw` gave is under way."""
        if self._new:
            del self._new[self._place]
        else:
            self._again.popleft()

    def done(self) -> None:
        """Something was done."""
        self._failed = 0

    def failed(self, task: Task, said: str) -> bool:
        """An attempt ended in a fault, which ``said`` names: whether the piece is left out, or else waits for another."""
        self._note(task)
        task.failures += 1
        task.fault = said
        return self._left_out(task, task.failures)

    def died(self, task: Task) -> bool:
        """An attempt ended with its replica; the same."""
        self._note(task)
        task.deaths += 1
        task.fault = "a replica has died at it" if task.deaths == 1 else f"{task.deaths} replicas have died at it"
        return self._left_out(task, task.deaths)

    def failing(self) -> Sequence[Task]:
        """Those that have failed and wait to be tried again."""
        return tuple(self._again)

    def _note(self, task: Task) -> None:
        # What is tried again is known to be bad, and says nothing of the others.
        self._failed += task.failures == task.deaths == 0

    def _left_out(self, task: Task, times: int) -> bool:
        if times < MOST_FAILURES:
            self._again.append(task)
        return times >= MOST_FAILURES
