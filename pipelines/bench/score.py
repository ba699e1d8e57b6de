"""The arithmetic of a comparison.

Comes in: seconds of rounds, and vectors. Goes out: medians, ratios, cosines, ranks. Never here: measuring, or words.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from workers.records import type_vectors


@dataclass(frozen=True, slots=True)
class Round:
    """One pass of an engine over all texts: wall seconds, CPU seconds of its process, its peak memory until then.

    ``tokens`` and ``padding`` are what it computed, where it counts that.
    """

    wall_s: float
    cpu_s: float
    rss_bytes: int
    gpu_bytes: int | None = None
    tokens: int | None = None
    padding: int | None = None


@dataclass(frozen=True, slots=True)
class Spread:
    """A median, and how far it is from the ends."""

    median: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Cosine:
    """How far an engine's vectors are from the reference: over all texts and rounds."""

    minimum: float
    mean: float


@dataclass(frozen=True, slots=True)
class Result:
    """What was found out about one contender.

    ``label`` is its ``setting`` in words; ``tried`` holds the sweep's seconds by setting, over a part of the texts;
    ``gpu_idle`` is a share, from 0 to 1.
    """

    engine: str
    dtype: str
    setting: int
    label: str
    ours: bool
    rounds: tuple[Round, ...]
    cosine: Cosine
    versions: dict[str, str] = field(default_factory=dict)
    tried: dict[int, float] = field(default_factory=dict)
    gpu_idle: float | None = None

    @property
    def name(self) -> str:
        """Engine, dtype and setting, in words."""
        return f"{self.engine} {self.dtype}, {self.label}"

    @property
    def wall_s(self) -> float:
        """Median over the rounds."""
        return statistics.median(round_.wall_s for round_ in self.rounds)

    @property
    def cpu_s(self) -> float:
        """Median over the rounds."""
        return statistics.median(round_.cpu_s for round_ in self.rounds)

    @property
    def padding_share(self) -> float | None:
        """Padding in what was computed, from 0 to 1; None where the engine does not count it."""
        last = self.rounds[-1]
        if last.tokens is None or last.padding is None or last.tokens + last.padding == 0:
            return None
        return last.padding / (last.tokens + last.padding)


def spread(values: Sequence[float]) -> Spread:
    """Median, minimum and maximum."""
    return Spread(statistics.median(values), min(values), max(values))


def times(baseline: Result, result: Result, seconds: Callable[[Round], float]) -> Spread:
    """How many times as fast as the baseline: its seconds through the result's, round by round, as both ran within minutes."""
    pairs = zip(baseline.rounds, result.rounds, strict=True)
    return spread([seconds(theirs) / max(seconds(own), 1e-9) for theirs, own in pairs])


def cosine(reference: type_vectors, vectors: type_vectors) -> Cosine:
    """Cosine of each row with the reference's, in float64; a row that is not finite, or zero, counts as -1.

    Args:
        reference: float32 [n, dim].
        vectors: float32 [n, dim].

    Raises:
        ValueError: the shapes differ.
    """
    if reference.shape != vectors.shape:
        raise ValueError(f"vectors of shape {vectors.shape}, where the reference has {reference.shape}")
    mine, theirs = vectors.astype(np.float64), reference.astype(np.float64)
    with np.errstate(all="ignore"):
        each = (mine * theirs).sum(axis=1) / (np.linalg.norm(mine, axis=1) * np.linalg.norm(theirs, axis=1))
    each = np.where(np.isfinite(each), each, -1.0)
    return Cosine(float(each.min()), float(each.mean()))


def worst(cosines: Sequence[Cosine]) -> Cosine:
    """Of several passes over the same texts: the smallest minimum and the smallest mean."""
    return Cosine(min(found.minimum for found in cosines), min(found.mean for found in cosines))


def ranked(results: Sequence[Result], gate: float, key: Callable[[Result], float]) -> list[Result]:
    """Those that pass the gate, the best (least ``key``) first, then those that do not."""
    return sorted(results, key=lambda result: (result.cosine.minimum < gate, key(result)))


def climb(ladder: Sequence[int], start: int, cost: Callable[[int], float]) -> tuple[int, dict[int, float]]:
    """The cheapest rung of a ladder whose costs fall and then rise: from ``start`` up, then down, while it gets cheaper.

    Returns:
        The rung, and the cost of each that was tried.
    """
    place = ladder.index(start)
    tried = {start: cost(start)}
    for step in (1, -1):
        at = place
        while 0 <= at + step < len(ladder):
            rung = ladder[at + step]
            tried[rung] = cost(rung)
            if tried[rung] >= tried[ladder[at]]:
                break
            at += step
    return min(tried, key=tried.__getitem__), tried
