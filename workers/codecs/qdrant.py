"""Embeddings as points of Qdrant, in the form that its sink for Kafka Connect takes (github.com/qdrant/qdrant-kafka).

Comes in: an embedding. Goes out: an object with ``collection_name``, ``id``, ``vector`` and ``payload``. Never here: a client of
Qdrant's, or deletes: its sink skips null values.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass

import numpy as np

from workers.codecs.base import kept_headers, key_of, type_vector
from workers.codecs.binary import FINGERPRINT_HEADER
from workers.codecs.json import as_json, numbers, own_fields
from workers.errors import PoisonError
from workers.records import Embedding, Message, Record

# Points are called by UUIDs of version 5 in this name space, for Qdrant takes no other names but numbers.
NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "https://qdrant.tech/stream-embedder")


def point_id(key: bytes) -> str:
    """The point of an output record's key: the same key is the same point, whoever asks."""
    return str(uuid.uuid5(NAMESPACE, key.hex()))


@dataclass(frozen=True, slots=True)
class QdrantRenderer:
    """Writes points: what JSON records have beside the vector is their payload."""

    topic: str
    collection: str
    dim: int
    precision: str
    model: str
    fingerprint: str
    include: tuple[str, ...] = ()
    chunk_text: bool = False

    def render(
        self, record: Record, embedding: Embedding, vector: type_vector, scale: np.float32 | None = None
    ) -> Message:
        """See :class:`workers.codecs.base.Renderer`; without a key, the id names the point."""
        if not np.isfinite(vector).all():
            raise PoisonError("output", "not_finite", "the vector holds a number that is not finite")
        key = key_of(record, embedding)
        payload: dict[str, object] = {
            "id": embedding.id,
            "dim": self.dim,
            "precision": self.precision,
            "model": self.model,
            "fingerprint": self.fingerprint,
            "tokens": embedding.tokens,
            "truncated": embedding.truncated,
            **own_fields(embedding, self.include, chunk_text=self.chunk_text),
        }
        try:
            name = point_id(embedding.id.encode() if key is None else key)
            head = as_json({"collection_name": self.collection, "id": name})[:-1].encode()
            tail = as_json(payload).encode()
        except UnicodeEncodeError:
            message = "the id or an included field holds half of a surrogate pair, which is no character"
            raise PoisonError("output", "lone_surrogate", message) from None
        value = b'%b,"vector":%b,"payload":%b}' % (head, numbers(vector), tail)
        kept = tuple(header for header in kept_headers(record) if header[0] != FINGERPRINT_HEADER)
        ours = (FINGERPRINT_HEADER, self.fingerprint.encode())
        return Message(self.topic, key, value, (*kept, ours), record.timestamp_ms)
