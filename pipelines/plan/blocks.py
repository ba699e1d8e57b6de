"""A sample of an input: blocks of records, by kind of input.

Comes in: windows of the input, and what reads one. Goes out: blocks. Never here: files, or topics.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pipelines.plan.estimate import Stratum
from pipelines.windows import Window, Windows
from workers.records import Record

# Small enough that a few thousand records come from many places, large enough that most of a read is of use.
BLOCK_RECORDS = 20
# Fewer say nothing of their own error; more are for inputs of which most blocks hold next to nothing.
LEAST_BLOCKS, MOST_BLOCKS = 30, 400


class Block(NamedTuple):
    """The records of one window, of one file or partition and of rising offsets; ``size`` in units of its kind of input."""

    records: Sequence[Record]
    size: float


@dataclass(frozen=True, slots=True)
class Sampled:
    """What was read of one kind of input, which is ``units`` long; ``whole``: all of it.

    ``from_the_front``: of each file the beginning alone, for nothing else of it can be read on its own.
    """

    units: float
    blocks: tuple[Block, ...]
    whole: bool
    from_the_front: bool = False

    @property
    def stratum(self) -> Stratum:
        """Without the records."""
        return Stratum(self.units, tuple(block.size for block in self.blocks), self.whole)

    @property
    def records(self) -> int:
        """How many were read."""
        return sum(len(block.records) for block in self.blocks)


def sample(windows: Windows, wanted: int, read: Callable[[Window], Sequence[Record]]) -> Sampled:
    """Windows drawn from all, until they hold ``wanted`` records."""
    blocks, count = list[Block](), 0
    for window in windows.draw(MOST_BLOCKS):
        if count >= wanted and len(blocks) >= LEAST_BLOCKS:
            break
        records = read(window)
        blocks.append(Block(records, window.width))
        count += len(records)
    return Sampled(windows.units, tuple(blocks), whole=len(blocks) == len(windows))


def sample_known(
    windows: Windows, wanted: int, read: Callable[[Sequence[Window]], Mapping[Window, Sequence[Record]]]
) -> Sampled:
    """The same where each unit is a record: then it is known before what is to be read, and read at one go."""
    chosen, count = list[Window](), 0
    for window in windows.draw(MOST_BLOCKS):
        if count >= wanted and len(chosen) >= LEAST_BLOCKS:
            break
        chosen.append(window)
        count += window.width
    found = read(chosen)
    blocks = tuple(Block(found[window], window.width) for window in chosen)
    return Sampled(windows.units, blocks, whole=len(blocks) == len(windows))
