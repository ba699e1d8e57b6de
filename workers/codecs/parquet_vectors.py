"""Vectors as columns of Parquet: one in a row, or those of all chunks of a document.

Comes in: vectors in an output's precision. Goes out: types and arrays of Arrow. Never here: the other columns, or a file.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from workers.codecs.base import type_vector
from workers.records import Chunk

TYPES = {
    "float32": pa.float32(),
    "float16": pa.float16(),
    "int8": pa.int8(),
    "int8_ranges": pa.int8(),
    "uint8_ranges": pa.uint8(),
    "binary": pa.int8(),
    "ubinary": pa.uint8(),
}


def vector_type(precision: str, dim: int) -> pa.DataType:
    """A fixed-size list of a vector's components; where bits are packed, of an eighth of ``dim``."""
    width = dim // 8 if precision in ("binary", "ubinary") else dim
    return pa.list_(pa.field("element", TYPES[precision], nullable=False), width)


def vector_array(kind: pa.DataType, vectors: Sequence[type_vector | None]) -> pa.Array:
    """A column of vectors of a :func:`vector_type`, each in its type; None is null."""
    values = np.zeros((len(vectors), kind.list_size), kind.value_type.to_pandas_dtype())
    for number, vector in enumerate(vectors):
        if vector is not None:
            values[number] = vector
    absent = pa.array([vector is None for vector in vectors], pa.bool_())
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), type=kind, mask=absent)


class Part(NamedTuple):
    """One chunk of a row that has all of a document's."""

    chunk: Chunk
    embedding: type_vector
    scale: np.float32 | None
    tokens: int
    text: str | None


def chunks_type(vector: Sequence[pa.Field], *, text: bool) -> pa.DataType:
    """A list of structs, each a chunk with the fields that are its ``vector``; ``text``: and with its text."""
    fields = [pa.field("index", pa.int32(), nullable=False), *(each.with_nullable(False) for each in vector)]
    fields += [pa.field(name, pa.int32(), nullable=False) for name in ("tokens", "start", "end")]
    fields += [pa.field("text", pa.string(), nullable=False)] if text else []
    return pa.list_(pa.field("element", pa.struct(fields), nullable=False))


def chunks_array(kind: pa.DataType, rows: Sequence[tuple[Part, ...] | None]) -> pa.Array:
    """A column of each row's chunks; None is null."""
    parts = [part for row in rows for part in row or ()]
    ends = np.cumsum([0, *(len(row or ()) for row in rows)])
    struct = kind.value_type
    columns: dict[str, Any] = {
        "index": [part.chunk.index for part in parts],
        "scale": [part.scale for part in parts],
        "tokens": [part.tokens for part in parts],
        "start": [part.chunk.start for part in parts],
        "end": [part.chunk.end for part in parts],
        "text": [part.text for part in parts],
    }
    made = [
        vector_array(field.type, [part.embedding for part in parts])
        if field.name == "embedding"
        else pa.array(columns[field.name], field.type)
        for field in struct
    ]
    absent = pa.array([row is None for row in rows], pa.bool_())
    values = pa.StructArray.from_arrays(made, fields=list(struct))
    return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), values, type=kind, mask=absent)
