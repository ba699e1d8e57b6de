"""A random sample of something long: windows of equal width, each as likely as another, and no window twice.

Comes in: how long each part of it is, in whatever it is counted: bytes, rows, offsets. Goes out: windows in the order in which
they were drawn. Never here: what is in a window.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

SEED = 0


class Window(NamedTuple):
    """Units ``start`` to ``stop`` (exclusive) of the part with this number."""

    part: int
    start: int
    stop: int

    @property
    def width(self) -> int:
        """Its units; the last one of a part may have fewer."""
        return self.stop - self.start


class Windows:
    """The windows of parts that begin and end where ``spans`` say; a window lies in one part."""

    def __init__(self, spans: Sequence[tuple[int, int]], width: int) -> None:
        """``spans``: begin and end of each part; ``width``: units of a window, 1 at least."""
        self._spans = spans
        self._width = width
        self._ends = list(accumulate(-(-(stop - start) // width) for start, stop in spans))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @property
    def units(self) -> int:
        """How long all parts are."""
        return sum(stop - start for start, stop in self._spans)

    def __getitem__(self, number: int) -> Window:
        part = bisect_right(self._ends, number)
        start, stop = self._spans[part]
        first = start + (number - (self._ends[part - 1] if part else 0)) * self._width
        return Window(part, first, min(first + self._width, stop))

    def draw(self, most: int, seed: int = SEED) -> Iterator[Window]:
        """Up to ``most`` of them, in random order."""
        chosen = random.Random(seed).sample(range(len(self)), min(most, len(self)))  # noqa: S311 - no secret
        return map(self.__getitem__, chosen)
