"""From a sample's vectors to all the figures of a report.

Comes in: a sample, and which dims. Goes out: a ``Report``. Never here: words, files, or a text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.report.controls import Control, control, mrl_index
from pipelines.report.neighbours import Found, K, Truth
from pipelines.report.sample import Sample
from pipelines.report.spread import Spread, cosine_histogram, spread
from workers.encoder.quantize import PACKED, Projection, has_direction, project
from workers.encoder.ranges import Ranges
from workers.encoder.restore import restore
from workers.errors import EnvironmentFault
from workers.records import type_vectors

# One of each pair that differ in how they are written alone: uint8_ranges finds what int8_ranges does, ubinary what binary does.
PRECISIONS = ("float32", "float16", "int8", "int8_ranges", "binary")
QUERIES = 500
# Ten nearest of fewer texts are no neighbourhood.
LEAST_TEXTS = 2 * K
SMALLEST_DIM = 64


@dataclass(frozen=True, slots=True)
class Row:
    """What an output of ``dim`` and ``precision`` finds. ``bytes``: of a vector's components, without int8's scale (4 bytes)."""

    dim: int
    precision: str
    bytes: int
    found: Found

    @property
    def gb(self) -> float:
        """GB (10⁹ bytes) of 10 million vectors."""
        return self.bytes * 1e7 / 1e9


@dataclass(frozen=True, slots=True)
class Report:
    """A report, done.

    ``asking``: texts that asked for their nearest; ``no_direction``: texts without a vector at the least of the dims, left out
    of the figures; ``norms``: least, mean and greatest length; ``histogram``: edges and counts of pairs' cosines.
    """

    model: str
    dim: int
    sample: Sample
    asking: int
    min_recall: float
    rows: Sequence[Row]
    controls: Sequence[Control]
    spreads: Sequence[Spread]
    no_direction: int
    norms: tuple[float, float, float]
    histogram: tuple[list[float], list[int]]

    @property
    def texts(self) -> int:
        """Texts that the figures are of."""
        return len(self.sample.vectors) - self.no_direction

    @property
    def cheapest(self) -> Row | None:
        """The fewest bytes whose recall is enough; None: there is no such row."""
        return min((row for row in self.rows if row.found.recall >= self.min_recall), key=_cost, default=None)

    @property
    def best(self) -> Row:
        """The most recall; of equals the fewest bytes."""
        return min(self.rows, key=lambda row: (-row.found.recall, _cost(row)))

    @property
    def cheapest_rescored(self) -> Row | None:
        """The same as :attr:`cheapest` with the nearest ordered anew by full vectors."""
        return min((row for row in self.rows if row.found.rescored >= self.min_recall), key=_cost, default=None)

    @property
    def mrl_index(self) -> float | None:
        """See :func:`pipelines.report.controls.mrl_index`."""
        return mrl_index(self.controls)


def usual_dims(dim: int) -> list[int]:
    """The model's ``dim``, and the powers of two below it, down to 64 (of a small model: to 8)."""
    least = SMALLEST_DIM if dim > SMALLEST_DIM else 8
    powers = [2**power for power in range(16, 2, -1)]
    return [dim, *(power for power in powers if least <= power < dim)]


def measure(model: str, sample: Sample, dims: Sequence[int], min_recall: float, seed: int = 0) -> Report:
    """All figures, for each of ``dims`` and each precision.

    Raises:
        EnvironmentFault: too few different texts have vectors.
    """
    whole = sample.vectors.shape[1]
    dims = sorted({whole, *dims}, reverse=True)
    there = has_direction(sample.vectors, dims[-1])
    made = sample.vectors[there]
    vectors = np.asarray(project(made, whole), np.float32)
    if len(vectors) < LEAST_TEXTS:
        refused = sum(sample.refused.values())
        out = f", {sample.duplicates:,} of {sample.drawn:,} being duplicates and {refused:,} refused"
        raise EnvironmentFault(
            f"a report needs {LEAST_TEXTS} different texts, better 1,000, and the input has {len(vectors):,}{out}"
        )
    rng = np.random.default_rng(seed)
    asking = np.sort(rng.permutation(len(vectors))[:QUERIES])
    truth = Truth(vectors, asking)
    norms = np.linalg.norm(sample.vectors.astype(np.float64), axis=1)
    return Report(
        model=model,
        dim=whole,
        sample=sample,
        asking=len(asking),
        min_recall=min_recall,
        rows=[row for dim in dims for row in _rows(truth, made, dim)],
        controls=[control(truth, vectors, dim, seed) for dim in dims if dim < whole],
        spreads=[spread(vectors, dim) for dim in dims],
        no_direction=len(there) - len(vectors),
        norms=(float(norms.min()), float(norms.mean()), float(norms.max())),
        histogram=cosine_histogram(vectors, seed),
    )


def _rows(truth: Truth, vectors: type_vectors, dim: int) -> Iterator[Row]:
    """Of vectors as the model makes them, which an output projects once; in full float32 those are the truth's, to the bit."""
    ranges = Ranges.of([np.asarray(project(vectors, dim), np.float32)])
    for precision in PRECISIONS:
        if precision in PACKED and dim % 8:
            continue
        of_sample = ranges if precision == "int8_ranges" else None
        stored = Projection(dim, precision, of_sample)(vectors)
        found = truth.held_against(restore(stored, precision, of_sample))
        yield Row(dim, precision, stored.values[0].nbytes, found)


def _cost(row: Row) -> tuple[int, bool, float]:
    """By bytes; of equals what needs no ranges, then what finds more."""
    return row.bytes, row.precision == "int8_ranges", -row.found.recall
