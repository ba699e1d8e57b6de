"""Vectors as bytes, for fleets: the value is the vector alone, the rest stands in headers.

Comes in: an embedding. Goes out: an output record that any language reads with one call. Never here: fields of the source.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from workers.codecs.base import kept_headers, shortest, type_vector
from workers.errors import PoisonError
from workers.records import Embedding, Message, Record

FINGERPRINT_HEADER = "embedding-fingerprint"
SCALE_HEADER = "embedding-scale"
_DTYPES = {
    "float32": "<f4",
    "float16": "<f2",
    "int8": "|i1",
    "int8_ranges": "|i1",
    "uint8_ranges": "|u1",
    "binary": "|i1",
    "ubinary": "|u1",
}


@dataclass(frozen=True, slots=True)
class BinaryRenderer:
    """Writes embeddings as little-endian components, or packed bits. Headers of the source stay, but for those that are ours."""

    topic: str
    dim: int
    precision: str
    model: str
    fingerprint: str

    def render(
        self, record: Record, embedding: Embedding, vector: type_vector, scale: np.float32 | None = None
    ) -> Message:
        """See :class:`workers.codecs.base.Renderer`."""
        about = {
            "embedding-id": embedding.document.id,
            "embedding-dim": str(self.dim),
            "embedding-precision": self.precision,
            **({} if scale is None else {SCALE_HEADER: shortest(scale)}),
            "embedding-model": self.model,
            FINGERPRINT_HEADER: self.fingerprint,
            "embedding-tokens": str(embedding.tokens),
            "embedding-truncated": "true" if embedding.truncated else "false",
            "embedding-source": str(record.origin),
        }
        try:
            ours = tuple((name, value.encode()) for name, value in about.items())
        except UnicodeEncodeError:
            ours = ()
        if not ours:
            raise PoisonError(
                "output", "lone_surrogate", "the id holds half of a surrogate pair, which is no character"
            )
        # A scale that came with the source's record is another vector's.
        kept = tuple(header for header in kept_headers(record) if header[0] not in about and header[0] != SCALE_HEADER)
        value = vector.astype(_DTYPES[self.precision], copy=False).tobytes()
        return Message(self.topic, record.key, value, kept + ours, record.timestamp_ms)
