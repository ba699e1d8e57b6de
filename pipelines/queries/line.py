"""Who waits for an encoder, and whose texts make the next call. Pure; for one thread.

Comes in: requests with their texts' ids. Goes out: calls, filled by going round, a text of each in turn: a small request does not
wait for a large one that came before it. Never here: sending.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from workers.deadline import Deadline
from workers.records import type_ids, type_vectors


@dataclass(eq=False, slots=True)
class Waiting:
    """A request's texts and, as they come, its float32 ``vectors`` [n, dim]. ``done`` is whoever waits for it."""

    ids: Sequence[type_ids]
    vectors: type_vectors
    deadline: Deadline
    done: Any
    unsent: deque[int] = field(default_factory=deque)
    missing: int = 0

    @classmethod
    def of(cls, ids: Sequence[type_ids], dim: int, deadline: Deadline, done: Any) -> Waiting:
        """Nothing of it sent yet."""
        vectors = np.empty((len(ids), dim), np.float32)
        return cls(ids, vectors, deadline, done, deque(range(len(ids))), len(ids))


class Line:
    """Those of whose texts some are not sent."""

    def __init__(self) -> None:
        self._line: deque[Waiting] = deque()

    def __len__(self) -> int:
        return len(self._line)

    def join(self, waiting: Waiting) -> None:
        """Come last."""
        self._line.append(waiting)

    def leave(self, waiting: Waiting) -> None:
        """Go, wherever in the line, or not in it any more."""
        if waiting in self._line:
            self._line.remove(waiting)

    def take(self, budget: int) -> list[tuple[Waiting, int]]:
        """Texts for one call, as many as ``budget`` tokens hold, and one at least; each by its request and its number there."""
        found: list[tuple[Waiting, int]] = []
        tokens = 0
        while self._line:
            waiting = self._line[0]
            cost = len(waiting.ids[waiting.unsent[0]])
            if found and tokens + cost > budget:
                break
            tokens += cost
            found.append((waiting, waiting.unsent.popleft()))
            self._line.popleft()
            if waiting.unsent:
                self._line.append(waiting)
        return found
