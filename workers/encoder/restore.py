"""From what an output carries back to numbers that can be compared: the way back of :mod:`workers.encoder.quantize`.

Comes in: vectors in a precision, as an output holds them. Goes out: float32 vectors whose cosines are those that a search over
the output finds. Never here: torch, a model, or a search.
"""

from __future__ import annotations

import numpy as np

from workers.encoder.quantize import FLOATS, PACKED, WITH_RANGES, Quantized
from workers.encoder.ranges import Ranges
from workers.records import type_vectors


def restore(stored: Quantized, precision: str, ranges: Ranges | None = None) -> type_vectors:
    """Vectors in a precision as float32 [n, dim].

    - ``int8``: value · scale; without scales the values alone, which have the same direction.
    - ``int8_ranges``, ``uint8_ranges``: the middle of each value's step between the ``ranges``.
    - ``binary``, ``ubinary``: 1 for a bit that is set, -1 for one that is not; the cosine of two such vectors orders as the
      Hamming distance of their bits does.

    Raises:
        ValueError: an unknown precision, or ranges that are missing or of other dimensions.
    """
    values = stored.values
    if precision in FLOATS:
        return values.astype(np.float32)
    if precision == "int8":
        scales = np.float32(1) if stored.scales is None else stored.scales[:, np.newaxis]
        return np.asarray(values.astype(np.float32) * scales, np.float32)
    if precision in WITH_RANGES:
        if ranges is None or ranges.dim != values.shape[1]:
            raise ValueError(f"precision {precision} needs ranges of {values.shape[1]} dimensions")
        middle = np.float32(128.5 if precision == "int8_ranges" else 0.5)
        step = (ranges.high - ranges.low) / np.float32(255)
        return np.asarray(ranges.low + (values.astype(np.float32) + middle) * step, np.float32)
    if precision in PACKED:
        packed = np.ascontiguousarray(values).view(np.uint8)
        bits = np.unpackbits(packed ^ np.uint8(0x80) if precision == "binary" else packed, axis=1)
        return np.where(bits, np.float32(1), np.float32(-1))
    raise ValueError(f"precision {precision!r} is unknown")
