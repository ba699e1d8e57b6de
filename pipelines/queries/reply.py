"""Vectors as OpenAI's API writes them. Pure.

Comes in: unit vectors of all of the model's dimensions. Goes out: bytes of JSON. Never here: a text.
"""

from __future__ import annotations

import base64
from collections.abc import Collection
from typing import Any

import numpy as np
import orjson

from workers.records import type_vectors

# Of a number in the answer, at most: its float32 twice, and its digits or its part of base64.
BYTES_PER_NUMBER = 24


def cut(vectors: type_vectors, dim: int) -> type_vectors:
    """The first ``dim`` of unit vectors, float32 [n, dim], made unit vectors again; NaN where nothing is left (MRL)."""
    if dim == vectors.shape[1]:
        return vectors
    part = vectors[:, :dim].astype(np.float64)
    lengths = np.sqrt(np.einsum("nd,nd->n", part, part))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(part / lengths[:, np.newaxis], np.float32)


def written(vectors: type_vectors, *, model: str, tokens: int, truncated: Collection[int], as_base64: bool) -> bytes:
    """The answer: float32 [n, dim], each with its number; base64 is of little-endian float32.

    ``truncated``: numbers of texts that were cut to the model's limit, which OpenAI's API would refuse; these say so.
    """
    data: list[dict[str, Any]] = []
    for number, vector in enumerate(np.ascontiguousarray(vectors, "<f4")):
        embedding = base64.b64encode(vector.tobytes()).decode() if as_base64 else vector
        item = {"object": "embedding", "index": number, "embedding": embedding}
        data.append(item | ({"truncated": True} if number in truncated else {}))
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return orjson.dumps(
        {"object": "list", "data": data, "model": model, "usage": usage}, option=orjson.OPT_SERIALIZE_NUMPY
    )
