"""Which texts share a forward pass, and how they lie in it.

Comes in: a batch of token ids. Goes out: packs, texts side by side without padding, longest first; or rows for padded
batches. Never here: torch, or a model.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from workers.records import Batch, type_ids

type_rows = npt.NDArray[np.intp]

# A padded pass of so many tokens ends rather than pad more than this share of them: a pass costs less than the padding.
_ENOUGH_TOKENS = 512
_MOST_PADDING = 0.05


@dataclass(frozen=True, slots=True)
class Pack:
    """Texts for one forward pass: ``ids`` int32 [tokens] one text after another, ``lengths`` int32 [texts], longest first.

    ``rows`` says which texts of the batch they are.
    """

    rows: type_rows
    ids: type_ids
    lengths: type_ids

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def longest(self) -> int:
        """Tokens of the longest text."""
        return int(self.lengths[0])

    @property
    def ends(self) -> npt.NDArray[np.int64]:
        """int64 [texts], the index after each text's last token."""
        return np.cumsum(self.lengths, dtype=np.int64)

    @property
    def texts(self) -> npt.NDArray[np.int64]:
        """int64 [tokens], the number of the text that each token belongs to."""
        return np.repeat(np.arange(len(self), dtype=np.int64), self.lengths)

    @property
    def positions(self) -> npt.NDArray[np.int64]:
        """int64 [tokens], each token's place in its text, from 0."""
        return np.arange(len(self.ids), dtype=np.int64) - np.repeat(self.ends - self.lengths, self.lengths)

    @property
    def runs(self) -> list[tuple[int, int, int]]:
        """Texts of equal length that lie together, as (first token, how many, length): each is a batch without padding."""
        lengths, counts = np.unique(self.lengths, return_counts=True)
        found, start = [], 0
        for length, count in zip(lengths[::-1].tolist(), counts[::-1].tolist(), strict=True):
            found.append((start, count, length))
            start += count * length
        return found

    def alone(self) -> list[Pack]:
        """Each text in a pack of its own."""
        starts, ends = self.ends - self.lengths, self.ends
        return [
            Pack(self.rows[n : n + 1], self.ids[starts[n] : ends[n]], self.lengths[n : n + 1]) for n in range(len(self))
        ]

    def halves(self) -> tuple[Pack, Pack]:
        """The longer half of the texts, and the rest; needs two texts."""
        middle = len(self) // 2
        cut = int(self.lengths[:middle].sum())
        return (
            Pack(self.rows[:middle], self.ids[:cut], self.lengths[:middle]),
            Pack(self.rows[middle:], self.ids[cut:], self.lengths[middle:]),
        )


def packs(batch: Batch, max_tokens: int, *, padded: bool = False) -> list[Pack]:
    """Cut a batch into packs of like length, the longest texts first.

    Args:
        batch: n texts, each of at least one token.
        max_tokens: budget of one forward pass: the tokens, or with ``padded`` the longest text's times the count. A text
            above it goes alone.
        padded: whether the forward pass pads its texts to the longest.

    Returns:
        Packs that together hold each text once.
    """
    order = np.argsort(-batch.lengths, kind="stable")
    lengths = batch.lengths[order]
    ends = np.cumsum(batch.lengths, dtype=np.int64)
    found = []
    start, before = 0, 0
    sums = np.cumsum(lengths, dtype=np.int64)
    while start < len(order):
        if padded:
            stop = _padded_stop(lengths, start, max_tokens)
        else:
            stop = max(start + 1, int(np.searchsorted(sums, before + max_tokens, side="right")))
        rows = order[start:stop]
        ids = np.concatenate([batch.ids[ends[row] - batch.lengths[row] : ends[row]] for row in rows])
        found.append(Pack(rows, ids, batch.lengths[rows]))
        start, before = stop, int(sums[min(stop, len(order)) - 1])
    return found


def _padded_stop(lengths: type_ids, start: int, max_tokens: int) -> int:
    """Where a padded pass ends that begins at ``start``: at the budget, or before it when shorter texts would be padded much."""
    longest, real = int(lengths[start]), int(lengths[start])
    stop = start + 1
    while stop < len(lengths) and (stop - start + 1) * longest <= max_tokens:
        real += int(lengths[stop])
        if real >= _ENOUGH_TOKENS and (stop - start + 1) * longest > (1 + _MOST_PADDING) * real:
            break
        stop += 1
    return stop
