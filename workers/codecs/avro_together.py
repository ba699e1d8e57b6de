"""Avro out, all chunks of a record in one: a list of records, each with its vector.

Comes in: a record's embeddings, and their vectors. Goes out: an output record, its schema in the registry. Never here: how a
registry is reached, or a chunk with a key of its own.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import fastavro

from workers.codecs.avro_record import AvroRenderer, own_field, write_vector
from workers.codecs.base import kept_headers, shortest, type_projected_chunk
from workers.codecs.binary import FINGERPRINT_HEADER
from workers.codecs.schemas import WHOLE_NAME
from workers.codecs.together import require_finite
from workers.codecs.wire import frame
from workers.errors import PoisonError
from workers.records import Embedding, Message, Record
from workers.schema_registry import Schema
from workers.settings.outputs import avro_name

_CHUNK = "stream_embedder.EmbeddedChunk"


@dataclass(frozen=True)
class AvroTogether:
    """Writes the chunks of a record as one Avro record; ``one`` is how each would be written by itself."""

    one: AvroRenderer

    @cached_property
    def schema(self) -> Schema:
        """What is registered."""
        return Schema("AVRO", json.dumps(self._definition()))

    @cached_property
    def _parts(self) -> tuple[Any, Any, Any, Any]:
        """The schemas of what stands before the chunks, of a chunk's vector, of the rest of it, and of what stands after them."""
        before, chunks, *after = self._definition()["fields"]
        index, vector, *rest = chunks["type"]["items"]["fields"]
        made = [
            {"type": "record", "name": "Head", "fields": [before]},
            vector["type"],
            {"type": "record", "name": "Rest", "fields": rest},
            {"type": "record", "name": "Tail", "fields": after},
        ]
        assert index["type"] == "int"
        head, array, chunk, tail = map(fastavro.parse_schema, made)
        return head, array, chunk, tail

    def _definition(self) -> dict[str, Any]:
        """That of one embedding, with the chunks in the place of the vector."""
        definition = self.one.definition(of_chunk=False)
        fields = {field["name"]: field for field in definition["fields"]}
        chunk = [
            {"name": "index", "type": "int"},
            fields["embedding"],
            fields.pop("scale"),
            *({"name": name, "type": "int"} for name in ("tokens", "start", "end")),
            *([{"name": "text", "type": "string"}] if self.one.chunk_text else []),
        ]
        fields["embedding"] = {
            "name": "chunks",
            "type": {"type": "array", "items": {"type": "record", "name": _CHUNK, "fields": chunk}},
        }
        doc = definition["doc"].replace("An embedding", "The embeddings of a text's chunks", 1)
        return {**definition, "name": WHOLE_NAME, "doc": doc, "fields": list(fields.values())}

    def render_whole(
        self, record: Record, parts: Sequence[Embedding], vectors: Sequence[type_projected_chunk]
    ) -> Message:
        """See :class:`workers.codecs.base.WholeRenderer`. The fingerprint stands in a header too, for who has no schema.

        Raises:
            PoisonError: as there.
            RetryableError: the registry has no id for the schema yet.
        """
        require_finite(vectors)
        document = parts[0].document
        about: dict[str, object] = {
            "dim": self.one.dim,
            "precision": self.one.precision,
            "model": self.one.model,
            "fingerprint": self.one.fingerprint,
            "tokens": sum(part.tokens for part in parts),
            "truncated": any(part.truncated for part in parts),
            **{avro_name(name): own_field(document.fields.get(name)) for name in self.one.include},
        }
        head, array, rest, tail = self._parts
        out = io.BytesIO()
        try:
            fastavro.schemaless_writer(out, head, {"id": document.id})
            # One block of chunks, and the one without any that ends an array.
            fastavro.schemaless_writer(out, "long", len(parts))
            for part, (vector, scale) in zip(parts, vectors, strict=True):
                assert part.chunk is not None
                fastavro.schemaless_writer(out, "int", part.chunk.index)
                write_vector(out, array, vector)
                said: dict[str, object] = {"scale": None if scale is None else float(shortest(scale))}
                said |= {"tokens": part.tokens, "start": part.chunk.start, "end": part.chunk.end}
                fastavro.schemaless_writer(out, rest, {**said, "text": part.text} if self.one.chunk_text else said)
            out.write(b"\0")
            fastavro.schemaless_writer(out, tail, about)
        except UnicodeEncodeError:
            message = "the id or an included field holds half of a surrogate pair, which is no character"
            raise PoisonError("output", "lone_surrogate", message) from None
        headers = tuple(header for header in kept_headers(record) if header[0] != FINGERPRINT_HEADER)
        headers += ((FINGERPRINT_HEADER, self.one.fingerprint.encode()),)
        body = frame(self.one.schema_id(self.schema), out.getvalue())
        return Message(self.one.topic, record.key, body, headers, record.timestamp_ms)
