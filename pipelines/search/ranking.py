"""The nearest vectors, found by looking at each once: exact, and as slow as that.

Comes in: embeddings as outputs hold them, in the order in which they were written. Goes out: for each question the nearest of
those that count, which are the latest of each key. Never here: where they come from, or a vector after it was compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, groupby
from typing import Any

import numpy as np
import numpy.typing as npt

from workers.codecs.stored import Space, Stored
from workers.encoder.quantize import Quantized
from workers.errors import EnvironmentFault

# Each that counts costs about 500 bytes, and what is included beside it.
MOST_VECTORS = 2_000_000

# Components in a precision, [n, width], scales [n] and their space → cosines [n, questions]; None: the space is not the questions'.
type_compare = Callable[[Space, Quantized], npt.NDArray[np.float32] | None]


@dataclass(frozen=True, slots=True)
class Hit:
    """One of the nearest; ``score`` is a cosine."""

    id: str
    score: float
    fields: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class _Entry:
    id: str
    space: Space
    scores: npt.NDArray[np.float32] | None
    fields: Mapping[str, object]


class Ranking:
    """What has been seen so far."""

    def __init__(self, compare: type_compare) -> None:
        self._compare = compare
        self._latest: dict[bytes | str, list[_Entry]] = {}
        self._count = 0

    def add(self, rows: Iterable[Stored]) -> None:
        """Compare some more; a key's later row takes the place of its earlier one, and of all its chunks.

        Raises:
            EnvironmentFault: there are too many to be looked at one by one.
        """
        for space, group in groupby(rows, lambda row: row.space):
            some = list(group)
            if space is None:
                for row in some:
                    self._forget(row.key)
                continue
            scores = self._compare(space, _quantized(some))
            for number, row in enumerate(some):
                if not row.more:
                    # Later is what counts, also among equals: it goes to the end.
                    self._forget(row.key)
                entry = _Entry(row.id, space, None if scores is None else scores[number], row.fields)
                self._latest.setdefault(row.key, []).append(entry)
                self._count += 1
        if self._count > MOST_VECTORS:
            raise EnvironmentFault(
                f"more than {MOST_VECTORS:,} vectors lie there, and search looks at each, for trying: load them into a vector "
                "database, or name a folder of fewer"
            )

    def __len__(self) -> int:
        return self._count

    def _forget(self, key: bytes | str) -> None:
        self._count -= len(self._latest.pop(key, ()))

    def _entries(self) -> Iterator[_Entry]:
        """Those that count."""
        return chain.from_iterable(self._latest.values())

    @property
    def spaces(self) -> dict[Space, int]:
        """How many vectors that count are in which space."""
        found: dict[Space, int] = {}
        for entry in self._entries():
            found[entry.space] = found.get(entry.space, 0) + 1
        return found

    @property
    def foreign(self) -> dict[Space, int]:
        """The same of those that could not be compared."""
        found: dict[Space, int] = {}
        for entry in self._entries():
            if entry.scores is None:
                found[entry.space] = found.get(entry.space, 0) + 1
        return found

    def best(self, k: int) -> list[list[Hit]]:
        """For each question the ``k`` with the greatest cosine, best first; of equals the earlier written."""
        entries = [entry for entry in self._entries() if entry.scores is not None]
        if not entries:
            return []
        scores = np.stack([entry.scores for entry in entries if entry.scores is not None])
        order = np.argsort(-scores, axis=0, kind="stable")[:k]
        return [
            [Hit(entries[row].id, float(scores[row, question]), entries[row].fields) for row in order[:, question]]
            for question in range(scores.shape[1])
        ]


def _quantized(rows: Sequence[Stored]) -> Quantized:
    scales = [row.scale for row in rows]
    values: Any = np.stack([row.values for row in rows if row.values is not None])
    return Quantized(values, None if None in scales else np.array(scales, np.float32))
