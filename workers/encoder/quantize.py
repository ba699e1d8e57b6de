"""From the encoder's vectors to what an output carries: truncate, renormalise, cast.

Comes in: float32 vectors. Goes out: arrays in the output's precision. Never here: torch, or a model.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from workers.records import type_vectors

PRECISIONS = ("float32", "float16")


def project(vectors: type_vectors, dim: int, precision: str = "float32") -> npt.NDArray[np.floating]:
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
    if precision not in PRECISIONS:
        raise ValueError(f"precision {precision!r} is not one of {', '.join(PRECISIONS)}")
    if vectors.ndim != 2 or not 1 <= dim <= vectors.shape[1]:
        raise ValueError(f"dim {dim} does not fit vectors of shape {vectors.shape}")
    cut = vectors[:, :dim].astype(np.float64)  # so that length and quotient are exact to float32
    length = np.linalg.norm(cut, axis=1, keepdims=True)
    if not (np.isfinite(length).all() and (length > 0).all()):
        raise ValueError("a vector is not finite, or is zero")
    return np.ascontiguousarray((cut / length).astype(precision))
