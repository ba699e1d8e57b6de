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
from typing import Any

import fastavro
import numpy as np

from workers.codecs.base import kept_headers, shortest, type_vector
from workers.codecs.binary import FINGERPRINT_HEADER
from workers.codecs.json import as_json
from workers.codecs.schemas import RECORD_NAME
from workers.codecs.wire import frame
from workers.errors import PoisonError
from workers.records import Embedding, Message, Record
from workers.schema_registry import Schema
from workers.settings.outputs import avro_name

_LONG = range(-(1 << 63), 1 << 63)
# What an included field may be; anything else is JSON in a string. The schema is made before the first record is seen.
_ANY = ["null", "boolean", "long", "double", "string"]


@dataclass(frozen=True)
class AvroRenderer:
    """Writes embeddings as Avro records.

    ``schema_id`` gives the id under which the registry has :meth:`schema`; it is asked for every record, and raises
    RetryableError while there is none.
    """

    topic: str
    dim: int
    precision: str
    model: str
    fingerprint: str
    include: tuple[str, ...]
    schema_id: Callable[[Schema], int]

    @cached_property
    def schema(self) -> Schema:
        """What is registered."""
        return Schema("AVRO", json.dumps(self._definition()))

    @cached_property
    def _parsed(self) -> Any:
        return fastavro.parse_schema(self._definition())

    def _definition(self) -> dict[str, Any]:
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
        value = {
            "id": embedding.document.id,
            "embedding": vector.tolist(),
            "dim": self.dim,
            "precision": self.precision,
            "scale": None if scale is None else float(shortest(scale)),
            "model": self.model,
            "fingerprint": self.fingerprint,
            "tokens": embedding.tokens,
            "truncated": embedding.truncated,
        }
        value |= {avro_name(name): _field(embedding.document.fields.get(name)) for name in self.include}
        out = io.BytesIO()
        try:
            fastavro.schemaless_writer(out, self._parsed, value)
        except UnicodeEncodeError:
            message = "the id or an included field holds half of a surrogate pair, which is no character"
            raise PoisonError("output", "lone_surrogate", message) from None
        headers = tuple(header for header in kept_headers(record) if header[0] != FINGERPRINT_HEADER)
        headers += ((FINGERPRINT_HEADER, self.fingerprint.encode()),)
        body = frame(self.schema_id(self.schema), out.getvalue())
        return Message(self.topic, record.key, body, headers, record.timestamp_ms)


def _field(value: object) -> object:
    if isinstance(value, bool | float | str | None) or (isinstance(value, int) and value in _LONG):
        return value
    return as_json(value)
