"""From a sample's blocks to the whole: totals with their sampling error, means, quantiles. Pure.

Comes in: blocks, each with its size and what was counted in it, and how large the whole is. Goes out: estimates. Never here:
where blocks come from.

A block is a window of the input, each as likely as another (cluster sampling), so a total is the whole size times the ratio
of what was counted to the size that was looked at (Cochran, "Sampling Techniques", 1977, chapters 2.11, 6 and 9). Its error is
that of the ratio: half of the range that holds the truth 95 times out of 100. Several inputs of other kinds are strata, whose
totals and squared errors add up.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

# Student's t, two-sided 95 %, by degrees of freedom; beyond them the normal distribution's is close.
_T = (
    *(12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23),
    *(2.20, 2.18, 2.16, 2.14, 2.13, 2.12, 2.11, 2.10, 2.09, 2.09),
    *(2.08, 2.07, 2.07, 2.06, 2.06, 2.06, 2.05, 2.05, 2.05, 2.04),
)
_NORMAL = 1.96


@dataclass(frozen=True, slots=True)
class Estimate:
    """``value`` ± ``error`` (95 %); ``error`` None: the sample is too small to tell."""

    value: float
    error: float | None = 0.0

    def __mul__(self, factor: float) -> Estimate:
        return Estimate(self.value * factor, None if self.error is None else self.error * factor)

    def __add__(self, other: Estimate) -> Estimate:
        """The sum of two that know nothing of each other."""
        errors = (self.error, other.error)
        error = None if None in errors else math.hypot(*(each or 0.0 for each in errors))
        return Estimate(self.value + other.value, error)


@dataclass(frozen=True, slots=True)
class Stratum:
    """One kind of input: ``units`` of it, of which blocks of these ``sizes`` were looked at; ``whole``: all of it was."""

    units: float
    sizes: tuple[float, ...]
    whole: bool

    @property
    def weight(self) -> float:
        """How many records of the input one of the sample stands for."""
        looked = sum(self.sizes)
        return 1.0 if self.whole else self.units / looked if looked else 0.0

    def total(self, counts: Sequence[float]) -> Estimate:
        """The total of what was counted in each block."""
        looked, counted = sum(self.sizes), sum(counts)
        if self.whole:
            return Estimate(counted)
        if not looked:
            return Estimate(0.0, None)
        ratio, blocks = counted / looked, len(self.sizes)
        if blocks < 2:
            return Estimate(self.units * ratio, None)
        squares = sum((count - ratio * size) ** 2 for count, size in zip(counts, self.sizes, strict=True))
        mean = looked / blocks
        # Blocks are drawn without replacement: what was looked at has no error.
        left = max(0.0, 1.0 - looked / self.units)
        deviation = math.sqrt(left * squares / (blocks - 1) / blocks) / mean
        return Estimate(self.units * ratio, _t(blocks - 1) * self.units * deviation)


def _t(freedom: int) -> float:
    return _T[freedom - 1] if freedom <= len(_T) else _NORMAL


def together(estimates: Iterable[Estimate]) -> Estimate:
    """The sum."""
    return sum(estimates, Estimate(0.0))


def quantile(values: Sequence[tuple[float, float]], share: float) -> float:
    """The value below which ``share`` of the weight lies; ``values``: each with its weight. 0 of none."""
    ordered = sorted(values)
    wanted, seen = share * sum(weight for _, weight in ordered), 0.0
    for value, weight in ordered:
        seen += weight
        if seen >= wanted - 1e-9:
            return value
    return 0.0
