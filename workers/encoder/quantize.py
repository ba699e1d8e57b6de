"""From the encoder's vectors to what an output carries: finite check, truncate, renormalise, quantise; in that order.

Comes in: float32 vectors. Goes out: arrays in the output's precision. Never here: torch, a model, or ranges taken from the
batch at hand.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from workers.encoder.ranges import Ranges
from workers.records import type_vectors

FLOATS = ("float32", "float16")
WITH_RANGES = ("int8_ranges", "uint8_ranges")
PACKED = ("binary", "ubinary")
PRECISIONS = (*FLOATS, "int8", *WITH_RANGES, *PACKED)

# Rows that are worked on at a time: their numbers in double precision stay near the core.
_BLOCK = 64

type_components = npt.NDArray[np.floating[Any]] | npt.NDArray[np.integer[Any]]


class Quantized(NamedTuple):
    """n vectors in a precision: ``values`` [n, width], contiguous, and for int8 ``scales``, float32 [n].

    ``width`` is the number of dimensions, or an eighth of it where bits are packed.
    """

    values: type_components
    scales: npt.NDArray[np.float32] | None = None

    def rows(self) -> Iterator[tuple[type_components, np.float32 | None]]:
        """Each vector, with its scale if it has one."""
        for row, values in enumerate(self.values):
            yield values, None if self.scales is None else self.scales[row]


@dataclass(frozen=True, slots=True)
class Projection:
    """What an output makes of the model's vectors: ``dim`` of their dimensions, in ``precision``."""

    dim: int
    precision: str = "float32"
    ranges: Ranges | None = None

    def __post_init__(self) -> None:
        """Refuse what does not fit together, by a ValueError; settings were checked before."""
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision {self.precision!r} is not one of {', '.join(PRECISIONS)}")
        if (self.precision in WITH_RANGES) != (self.ranges is not None):
            raise ValueError(f"ranges are for {' and '.join(WITH_RANGES)}, and those need them")
        if self.ranges is not None and self.ranges.dim != self.dim:
            raise ValueError(f"ranges of {self.ranges.dim} dimensions do not fit vectors of {self.dim}")
        if self.precision in PACKED and self.dim % 8:
            raise ValueError(f"dim {self.dim} is not a multiple of 8, which {self.precision} packs into a byte")

    def __call__(self, vectors: type_vectors) -> Quantized:
        """Cut, normalise and quantise float32 vectors [n, D]; see :func:`project` and :func:`quantize`.

        Raises:
            ValueError: D is too small, or a row is not finite or has no direction in its first ``dim`` numbers.
        """
        if self.precision in FLOATS:
            return Quantized(project(vectors, self.dim, self.precision))
        return quantize(project(vectors, self.dim), self.precision, self.ranges)


def has_direction(vectors: type_vectors, dim: int) -> npt.NDArray[np.bool_]:
    """Which rows of float32 [n, D] :func:`project` takes: bool [n], finite and not zero in the first ``dim`` numbers."""
    cut = vectors[:, :dim]
    return np.asarray(np.isfinite(cut).all(axis=1) & (cut != 0).any(axis=1))


def project(vectors: type_vectors, dim: int, precision: str = "float32") -> npt.NDArray[np.floating[Any]]:
    """Cut vectors to ``dim``, make them unit vectors again, and cast.

    Args:
        vectors: float32 [n, D], finite.
        dim: 1 to D.
        precision: float32 or float16.

    Returns:
        [n, dim] in ``precision``, contiguous; rows have unit length up to that precision's rounding.

    Raises:
        ValueError: a wrong dim or precision, or a row that is not finite or has no direction in its first ``dim`` numbers.
    """
    if precision not in FLOATS:
        raise ValueError(f"precision {precision!r} is not one of {', '.join(FLOATS)}")
    if vectors.ndim != 2 or not 1 <= dim <= vectors.shape[1]:
        raise ValueError(f"dim {dim} does not fit vectors of shape {vectors.shape}")
    made = np.empty((len(vectors), dim), precision)
    for start in range(0, len(vectors), _BLOCK):
        # In double precision, so that length and quotient are exact to float32.
        cut = vectors[start : start + _BLOCK, :dim].astype(np.float64)
        length = np.sqrt(np.einsum("ij,ij->i", cut, cut))
        if not (np.isfinite(length).all() and (length > 0).all()):
            raise ValueError("a vector is not finite, or is zero")
        made[start : start + _BLOCK] = np.divide(cut, length[:, None], out=cut)
    return made


def quantize(vectors: npt.NDArray[np.floating[Any]], precision: str, ranges: Ranges | None = None) -> Quantized:
    """Write vectors that are final down with fewer bits.

    - ``int8``: one scale per vector, s = max|x| / 127, and values round(x / s), so x ≈ value · s. No sample is needed, and
      cosines between the values alone are those between the vectors, up to rounding.
    - ``int8_ranges``, ``uint8_ranges``: 255 steps between each dimension's ``ranges``, rounded down, clipped to 0…255, for
      int8 less 128: sentence-transformers' ``quantize_embeddings`` with ``ranges``, to the bit. A dimension without extent
      has steps of 1.
    - ``ubinary``: bit 1 for x > 0, eight to a byte, the first dimension its highest bit; ``binary``: the same less 128,
      as int8. Both as sentence-transformers packs them.

    Args:
        vectors: float32 [n, dim], finite, no row zero.
        precision: one of the above.
        ranges: of dim dimensions, for the two that need them.

    Raises:
        ValueError: another precision, ranges that are missing or do not fit, a dim that is no multiple of 8 where bits are
            packed, or a vector that is not finite or is zero: each would give numbers that look like a vector's.
    """
    if not has_direction(vectors, vectors.shape[1]).all():
        raise ValueError("a vector is not finite, or is zero")
    match precision:
        case "int8":
            most = np.abs(vectors).max(axis=1, keepdims=True, initial=0).astype(np.float64)
            values = np.rint(127 * vectors.astype(np.float64) / most).astype(np.int8)
            return Quantized(values, (most[:, 0] / 127).astype(np.float32))
        case "int8_ranges" | "uint8_ranges":
            if ranges is None or ranges.dim != vectors.shape[1]:
                raise ValueError(f"precision {precision} needs ranges of {vectors.shape[1]} dimensions")
            step = (ranges.high - ranges.low) / np.float32(255)
            step = np.where(step == 0, np.float32(1), step)
            # A value far outside overflows to an infinity, which is clipped like any other.
            with np.errstate(over="ignore"):
                codes = np.clip(np.floor((vectors - ranges.low) / step), 0, 255).astype(np.uint8)
            return Quantized(_less_128(codes) if precision == "int8_ranges" else codes)
        case "binary" | "ubinary":
            if vectors.shape[1] % 8:
                raise ValueError(f"dim {vectors.shape[1]} is not a multiple of 8, which {precision} packs into a byte")
            packed = np.packbits(vectors > 0, axis=1)
            return Quantized(_less_128(packed) if precision == "binary" else packed)
    raise ValueError(f"precision {precision!r} does not quantise")


def _less_128(codes: npt.NDArray[np.uint8]) -> npt.NDArray[np.int8]:
    """0…255 as -128…127: the highest bit turned, which two's complement then reads as its negative weight."""
    return (codes ^ np.uint8(0x80)).view(np.int8)
