"""Avro out: an embedding as a record in Confluent's wire format, its schema in the registry.

Comes in: an embedding. Goes out: an output record. Never here: how a registry is reached, or a schema of somebody else's.

A schema is one vector space's: fingerprint, model, dim and precision stand in its doc and its properties, so another model's
vectors have another schema, a later version of the same subject.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, BinaryIO

import fastavro
import numpy as np

from workers.codecs.base import kept_headers, key_of, shortest, type_vector
from workers.codecs.binary import FINGERPRINT_HEADER
from workers.codecs.json import as_json, chunk_fields
from workers.codecs.schemas import RECORD_NAME
from workers.codecs.wire import frame
from workers.errors import PoisonError
from workers.records import Embedding, Message, Record
from workers.schema_registry import Schema
from workers.settings.outputs import avro_name

_LONG = range(-(1 << 63), 1 << 63)
# What an included field may be; anything else is JSON in a string. The schema is made before the first record is seen.
_ANY = ["null", "boolean", "long", "double", "string"]

# Which part of a document's text a record is of: its number, how many there are, and its span in characters.
_CHUNK = {
    "type": "record",
    "name": "Chunk",
    "fields": [{"name": name, "type": "int"} for name in ("index", "count", "start", "end")],
}


@dataclass(frozen=True)
class AvroRenderer:
    """Writes embeddings as Avro records.

    ``schema_id`` gives the id under which the registry has :meth:`schema`; it is asked for every record, and raises
    RetryableError while there is none. ``chunked``: the schema has a field for which chunk it is; ``chunk_text``: and its text.
    """

    topic: str
    dim: int
    precision: str
    model: str
    fingerprint: str
    include: tuple[str, ...]
    schema_id: Callable[[Schema], int]
    chunked: bool = False
    chunk_text: bool = False

    @cached_property
    def schema(self) -> Schema:
        """What is registered."""
        return Schema("AVRO", json.dumps(self.definition()))

    @cached_property
    def _parts(self) -> tuple[Any, Any, Any]:
        """The schemas of what stands before the vector, of the vector, and of what stands after it.

        A record in Avro is its fields one after another, so a vector of floats need not go through Python's.
        """
        definition = self.definition()
        before, vector, *after = definition["fields"]
        head = fastavro.parse_schema({"type": "record", "name": "Head", "fields": [before]})
        tail = fastavro.parse_schema({"type": "record", "name": "Tail", "fields": after})
        return head, fastavro.parse_schema(vector["type"]), tail

    def definition(self, *, of_chunk: bool = True) -> dict[str, Any]:
        """The schema; ``of_chunk``: with what says which chunk it is, where texts are cut into those."""
        item = "float" if self.precision in ("float32", "float16") else "int"
        fields: list[dict[str, Any]] = [
            {"name": "id", "type": "string"},
            {"name": "embedding", "type": {"type": "array", "items": item}},
            {"name": "dim", "type": "int"},
            {"name": "precision", "type": "string"},
            {"name": "scale", "type": ["null", "float"], "default": None},
            {"name": "model", "type": "string"},
            {"name": "fingerprint", "type": "string"},
            {"name": "tokens", "type": "int"},
            {"name": "truncated", "type": "boolean"},
        ]
        if self.chunked and of_chunk:
            fields.append({"name": "chunk", "type": ["null", _CHUNK], "default": None})
        if self.chunk_text and of_chunk:
            fields.append({"name": "chunk_text", "type": ["null", "string"], "default": None})
        for name in self.include:
            fields.append(
                {"name": avro_name(name), "type": _ANY, "default": None, "doc": f"{name} of the source's record"}
            )
        return {
            "type": "record",
            "name": RECORD_NAME,
            "doc": f"An embedding by {self.model}: {self.dim} dimensions, {self.precision}, fingerprint {self.fingerprint}.",
            "fingerprint": self.fingerprint,
            "model": self.model,
            "dim": self.dim,
            "precision": self.precision,
            "fields": fields,
        }

    def render(
        self, record: Record, embedding: Embedding, vector: type_vector, scale: np.float32 | None = None
    ) -> Message:
        """See :class:`workers.codecs.base.Renderer`. The fingerprint stands in a header too, for who has no schema.

        Raises:
            PoisonError: as there.
            RetryableError: the registry has no id for the schema yet.
        """
        if not np.isfinite(vector).all():
            raise PoisonError("output", "not_finite", "the vector holds a number that is not finite")
        value: dict[str, object] = {
            "dim": self.dim,
            "precision": self.precision,
            "scale": None if scale is None else float(shortest(scale)),
            "model": self.model,
            "fingerprint": self.fingerprint,
            "tokens": embedding.tokens,
            "truncated": embedding.truncated,
        }
        if self.chunked and embedding.chunk is not None:
            value["chunk"] = chunk_fields(embedding.chunk)
        if self.chunk_text:
            value["chunk_text"] = embedding.text
        value |= {avro_name(name): own_field(embedding.document.fields.get(name)) for name in self.include}
        head, array, tail = self._parts
        out = io.BytesIO()
        try:
            fastavro.schemaless_writer(out, head, {"id": embedding.id})
            write_vector(out, array, vector)
            fastavro.schemaless_writer(out, tail, value)
        except UnicodeEncodeError:
            message = "the id or an included field holds half of a surrogate pair, which is no character"
            raise PoisonError("output", "lone_surrogate", message) from None
        headers = tuple(header for header in kept_headers(record) if header[0] != FINGERPRINT_HEADER)
        headers += ((FINGERPRINT_HEADER, self.fingerprint.encode()),)
        body = frame(self.schema_id(self.schema), out.getvalue())
        return Message(self.topic, key_of(record, embedding), body, headers, record.timestamp_ms)


def write_vector(out: BinaryIO, array: Any, vector: type_vector) -> None:
    """A vector as an array of Avro, of schema ``array``."""
    if vector.dtype.kind == "f":
        # One block of items, and the one without any that ends an array.
        fastavro.schemaless_writer(out, "long", len(vector))
        out.write(vector.astype("<f4").tobytes() + b"\0")
    else:
        fastavro.schemaless_writer(out, array, vector.tolist())


def own_field(value: object) -> object:
    """What is included of the source's record, as one of the types that its field may have."""
    if isinstance(value, bool | float | str | None) or (isinstance(value, int) and value in _LONG):
        return value
    return as_json(value)
