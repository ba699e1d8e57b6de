"""All chunks of a record in one output record: as an object, as bytes.

Comes in: a record's embeddings, and their vectors. Goes out: one output record under the source record's own key, so an update
takes the place of all that was there. Never here: a chunk with a key of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from workers.codecs.base import kept_headers, shortest, type_projected_chunk, type_vector
from workers.codecs.binary import CHUNK_HEADERS, DTYPES, OURS, SCALE_HEADER, SPANS_HEADER, BinaryRenderer
from workers.codecs.json import as_json, numbers
from workers.errors import PoisonError
from workers.records import Embedding, Message, Record

COUNT_HEADER = CHUNK_HEADERS[1]


def require_finite(vectors: Sequence[type_projected_chunk]) -> None:
    """Refuse numbers that no output holds.

    Raises:
        PoisonError: a vector is not finite.
    """
    if not all(np.isfinite(vector).all() for vector, _ in vectors):
        raise PoisonError("output", "not_finite", "the vector of a chunk holds a number that is not finite")


@dataclass(frozen=True, slots=True)
class JsonTogether:
    """Writes an object with a list of chunks, each with its vector."""

    topic: str
    dim: int
    precision: str
    model: str
    fingerprint: str
    include: tuple[str, ...] = ()
    chunk_text: bool = False

    def render_whole(
        self, record: Record, parts: Sequence[Embedding], vectors: Sequence[type_projected_chunk]
    ) -> Message:
        """See :class:`workers.codecs.base.WholeRenderer`."""
        require_finite(vectors)
        document = parts[0].document
        about: dict[str, object] = {
            "dim": self.dim,
            "precision": self.precision,
            "model": self.model,
            "fingerprint": self.fingerprint,
            "tokens": sum(part.tokens for part in parts),
            "truncated": any(part.truncated for part in parts),
            **{name: document.fields.get(name) for name in self.include},
        }
        try:
            head = as_json({"id": document.id})[:-1].encode()
            chunks = b",".join(self._chunk(part, *one) for part, one in zip(parts, vectors, strict=True))
            tail = as_json(about)[1:].encode()
        except UnicodeEncodeError:
            message = "the id or an included field holds half of a surrogate pair, which is no character"
            raise PoisonError("output", "lone_surrogate", message) from None
        value = b'%b,"chunks":[%b],%b' % (head, chunks, tail)
        return Message(self.topic, record.key, value, kept_headers(record), record.timestamp_ms)

    def _chunk(self, part: Embedding, vector: type_vector, scale: np.float32 | None) -> bytes:
        assert part.chunk is not None
        said: dict[str, object] = {} if scale is None else {"scale": float(shortest(scale))}
        said |= {"tokens": part.tokens, "start": part.chunk.start, "end": part.chunk.end}
        if self.chunk_text:
            said["text"] = part.text
        return b'{"index":%d,"embedding":%b,%b' % (part.chunk.index, numbers(vector), as_json(said)[1:].encode())


@dataclass(frozen=True)
class BinaryTogether:
    """Writes the chunks' vectors one after another, each as :class:`workers.codecs.binary.BinaryRenderer` would."""

    one: BinaryRenderer

    def render_whole(
        self, record: Record, parts: Sequence[Embedding], vectors: Sequence[type_projected_chunk]
    ) -> Message:
        """See :class:`workers.codecs.base.WholeRenderer`."""
        try:
            name = parts[0].document.id.encode()
        except UnicodeEncodeError:
            message = "the id holds half of a surrogate pair, which is no character"
            raise PoisonError("output", "lone_surrogate", message) from None
        scales = [shortest(scale) for _, scale in vectors if scale is not None]
        spans = [f"{part.chunk.start}-{part.chunk.end}" for part in parts if part.chunk is not None]
        shape, space = self.one.constant
        ours = (
            ("embedding-id", name),
            *shape,
            *(((SCALE_HEADER, ",".join(scales).encode()),) if scales else ()),
            *space,
            ("embedding-tokens", b"%d" % sum(part.tokens for part in parts)),
            ("embedding-truncated", b"true" if any(part.truncated for part in parts) else b"false"),
            ("embedding-source", str(record.origin).encode()),
            (COUNT_HEADER, b"%d" % len(parts)),
            (SPANS_HEADER, ",".join(spans).encode()),
        )
        kept = tuple(header for header in kept_headers(record) if header[0] not in OURS)
        dtype = DTYPES[self.one.precision]
        value = b"".join(vector.astype(dtype, copy=False).tobytes() for vector, _ in vectors)
        return Message(self.one.topic, record.key, value, kept + ours, record.timestamp_ms)
