"""Vectors as bytes, for fleets: the value is the vector alone, the rest stands in headers.

Comes in: an embedding. Goes out: an output record that any language reads with one call. Never here: fields of the source.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from workers.codecs.base import kept_headers, key_of, shortest, type_vector
from workers.errors import PoisonError
from workers.records import Chunk, Embedding, Message, Record, type_headers

FINGERPRINT_HEADER = "embedding-fingerprint"
SCALE_HEADER = "embedding-scale"
DTYPES: dict[str, np.dtype[Any]] = {
    "float32": np.dtype("<f4"),
    "float16": np.dtype("<f2"),
    "int8": np.dtype("|i1"),
    "int8_ranges": np.dtype("|i1"),
    "uint8_ranges": np.dtype("|u1"),
    "binary": np.dtype("|i1"),
    "ubinary": np.dtype("|u1"),
}


CHUNK_HEADERS = ("embedding-chunk-index", "embedding-chunk-count", "embedding-chunk-start", "embedding-chunk-end")
SPANS_HEADER = "embedding-chunk-spans"  # of a record that holds all chunks
# A header of such a name is never the source's on an output record.
OURS = frozenset(
    {
        "embedding-id",
        "embedding-dim",
        "embedding-precision",
        SCALE_HEADER,
        "embedding-model",
        FINGERPRINT_HEADER,
        "embedding-tokens",
        "embedding-truncated",
        "embedding-source",
        *CHUNK_HEADERS,
        SPANS_HEADER,
    }
)


@dataclass(frozen=True)
class BinaryRenderer:
    """Writes embeddings as little-endian components, or packed bits. Headers of the source stay, but for those that are ours."""

    topic: str
    dim: int
    precision: str
    model: str
    fingerprint: str

    @cached_property
    def constant(self) -> tuple[type_headers, type_headers]:
        """The headers that all records of the output share: before the scale, and after it."""
        return (
            (("embedding-dim", str(self.dim).encode()), ("embedding-precision", self.precision.encode())),
            (("embedding-model", self.model.encode()), (FINGERPRINT_HEADER, self.fingerprint.encode())),
        )

    def render(
        self, record: Record, embedding: Embedding, vector: type_vector, scale: np.float32 | None = None
    ) -> Message:
        """See :class:`workers.codecs.base.Renderer`."""
        try:
            name = embedding.id.encode()
        except UnicodeEncodeError:
            name = None
        if name is None:
            raise PoisonError(
                "output", "lone_surrogate", "the id holds half of a surrogate pair, which is no character"
            )
        shape, space = self.constant
        ours = (
            ("embedding-id", name),
            *shape,
            *(() if scale is None else ((SCALE_HEADER, shortest(scale).encode()),)),
            *space,
            ("embedding-tokens", b"%d" % embedding.tokens),
            ("embedding-truncated", b"true" if embedding.truncated else b"false"),
            ("embedding-source", str(record.origin).encode()),
            *(() if embedding.chunk is None else _chunk_headers(embedding.chunk)),
        )
        # One of ours that came with the source's record is another vector's.
        kept = tuple(header for header in kept_headers(record) if header[0] not in OURS) if record.headers else ()
        value = vector.astype(DTYPES[self.precision], copy=False).tobytes()
        return Message(self.topic, key_of(record, embedding), value, kept + ours, record.timestamp_ms)


def _chunk_headers(chunk: Chunk) -> type_headers:
    numbers = (chunk.index, chunk.count, chunk.start, chunk.end)
    return tuple((name, b"%d" % number) for name, number in zip(CHUNK_HEADERS, numbers, strict=True))
