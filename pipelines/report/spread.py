"""How vectors lie: whether they use the room that their dims give, and how much of them a cut keeps.

Comes in: unit vectors. Goes out: figures. Never here: a search, or a model.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from workers.encoder.quantize import project
from workers.records import type_vectors

PAIRS = 20_000
BINS = 48


@dataclass(frozen=True, slots=True)
class Spread:
    """How vectors of ``dim`` dims lie, over all pairs of two texts.

    ``mean_cosine``: 0 where they point everywhere alike. ``spread``: E[cos²] · dim, 1 where they lie evenly on the sphere, more
    the less of it they use; E[cos²] is what spread-out regularisation (Zhang et al. 2017, "Learning Spread-out Local Feature
    Descriptors") holds against 1 / dim. ``effective_rank``: e to the entropy of the shares that principal axes have (Roy and
    Vetterli 2007). ``kept_norm``, ``least_norm``: the length of the full vectors' first ``dim`` numbers, its mean and its least;
    √(dim / D) is what dims have that are all alike.
    """

    dim: int
    mean_cosine: float
    spread: float
    effective_rank: float
    kept_norm: float
    least_norm: float


def spread(vectors: type_vectors, dim: int) -> Spread:
    """Of unit vectors [n, D], n > 1, cut to ``dim``."""
    cut = project(vectors, dim).astype(np.float64)
    n, total, moment = len(cut), cut.sum(axis=0), cut.T @ cut
    pairs = n * (n - 1)
    # Of all pairs: Σ cos = |Σx|², Σ cos² = |XᵀX|² (Frobenius), less each vector's with itself, which is 1.
    mean = (float(total @ total) - n) / pairs
    square = (float((moment * moment).sum()) - n) / pairs
    kept = np.linalg.norm(vectors[:, :dim].astype(np.float64), axis=1)
    return Spread(dim, mean, square * dim, _effective_rank(moment), float(kept.mean()), float(kept.min()))


def _effective_rank(moment: npt.NDArray[np.float64]) -> float:
    values = np.linalg.eigvalsh(moment)
    shares = values[values > 1e-12] / values[values > 1e-12].sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def cosine_histogram(vectors: type_vectors, seed: int = 0) -> tuple[list[float], list[int]]:
    """The cosines of pairs of two vectors, drawn at random: the bins' edges, one more than bins, and counts."""
    rng, n = np.random.default_rng(seed), len(vectors)
    one = rng.integers(n, size=PAIRS)
    two = (one + rng.integers(1, n, size=PAIRS)) % n
    found = np.clip(np.einsum("nd,nd->n", vectors[one], vectors[two]), -1, 1)
    counts, edges = np.histogram(found, BINS, (min(0.0, float(found.min())), 1.0))
    return [float(edge) for edge in edges], [int(count) for count in counts]
