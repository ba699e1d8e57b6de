"""Whether a model's vectors may be cut: its first dims beside as many drawn at random, and beside the best linear cut.

Comes in: what a search over the full vectors finds. Goes out: recalls, and where the first dims stand between the two. Never
here: precision.

Models trained with Matryoshka representation learning (Kusupati et al. 2022) have what matters in their first dims. Of any other
model the first dims are as good as any, which is what drawing shows. The principal axes of these very texts are the most that a
linear cut can keep.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.report.neighbours import Truth
from workers.records import type_vectors

DRAWS = 5
# Less than that between the two, and nothing can be told.
LEAST_ROOM = 0.02
# Of the index below: what no MRL model reaches down to, and what one that is trained for these dims has; both are estimates.
UNTRAINED, TRAINED = 0.3, 0.7


@dataclass(frozen=True, slots=True)
class Control:
    """recall@10 of ``dim`` dims in float32: the first ones, ones drawn at random (a mean), and the best linear cut's."""

    dim: int
    prefix: float
    random: float
    pca: float

    @property
    def index(self) -> float | None:
        """Where the first dims stand: 0 as good as drawn ones, 1 as good as the best cut; None: the two are too near."""
        room = self.pca - self.random
        return (self.prefix - self.random) / room if room >= LEAST_ROOM else None


def control(truth: Truth, vectors: type_vectors, dim: int, seed: int = 0) -> Control:
    """Of unit vectors [n, D] cut to ``dim`` < D."""
    rng, width = np.random.default_rng(seed), vectors.shape[1]
    drawn = [rng.choice(width, dim, replace=False) for _ in range(DRAWS)]
    return Control(
        dim,
        truth.recall(vectors[:, :dim]),
        float(np.mean([truth.recall(vectors[:, columns]) for columns in drawn])),
        truth.recall(principal(vectors, dim)),
    )


def principal(vectors: type_vectors, dim: int) -> type_vectors:
    """The vectors along their ``dim`` strongest axes, [n, dim].

    Axes of E[xxᵀ], the mean not taken away: those keep inner products best (Eckart and Young 1936), which is what is compared.
    """
    exact = vectors.astype(np.float64)
    _, axes = np.linalg.eigh(exact.T @ exact)  # weakest first
    return np.asarray(exact @ axes[:, -dim:], np.float32)


def mrl_index(controls: Sequence[Control]) -> float | None:
    """The mean index of those cuts that have one; None: none has."""
    found = [each.index for each in controls if each.index is not None]
    return float(np.mean(found)) if found else None
