"""Avro in: a record's bytes by the schema that they were written with.

Comes in: a record. Goes out: its value; logical types as Python has them (:mod:`workers.codecs.plain` says how they leave).
Never here: a schema of ours.

fastavro is written in C and takes bytes at their word. What could hurt it is looked at first: :mod:`workers.codecs.avro_bounds`.
"""

from __future__ import annotations

import io
import json
from typing import Any

import fastavro

from workers.codecs.avro_bounds import Bounds, resolved
from workers.codecs.wire import Schemas
from workers.errors import PoisonError
from workers.records import Record
from workers.schema_registry import Schema


class AvroSchema:
    """What reads bytes of one schema."""

    def __init__(self, schema: Schema) -> None:
        """Raises ValueError: the text is no Avro schema, or is nested too deeply to be looked at."""
        named: dict[str, Any] = {}
        try:
            for _, text in schema.references:
                fastavro.parse_schema(json.loads(text), named_schemas=named)
            self.parsed = fastavro.parse_schema(json.loads(schema.text), named_schemas=named)
            self._bounds = Bounds.of(self.parsed, named)
        except RecursionError:
            raise ValueError("it is nested too deeply") from None
        except Exception as error:  # noqa: BLE001 - what it raises for a schema that is none is not said, and is many things
            raise ValueError(f"it is not Avro's, or not whole ({type(error).__name__})") from None
        self._named = named

    def has(self, path: tuple[str, ...]) -> bool:
        """Whether a path leads to something in values of this schema."""
        return self._leads(self.parsed, path)

    def _leads(self, schema: Any, path: tuple[str, ...]) -> bool:
        if not path:
            return True
        schema = resolved(schema, self._named)
        if isinstance(schema, list):
            return any(self._leads(branch, path) for branch in schema)
        match schema["type"]:
            case "record" | "error":
                return any(self._leads(each["type"], path[1:]) for each in schema["fields"] if each["name"] == path[0])
            case "map":
                return self._leads(schema["values"], path[1:])
        return False

    def read(self, body: bytes) -> object:
        """The value.

        Raises:
            PoisonError: the bytes are not of this schema.
        """
        if self._bounds is not None:
            self._bounds.check(body)
        stream = io.BytesIO(body)
        try:
            value: object = fastavro.schemaless_reader(stream, self.parsed, None)
        except Exception as error:  # noqa: BLE001 - what it raises for wrong bytes is not said, and is many things
            raise PoisonError(
                "decode", "invalid_avro", f"the value is not Avro of its schema ({type(error).__name__})"
            ) from None
        if (left := len(body) - stream.tell()) > 0:
            raise PoisonError(
                "decode", "invalid_avro", f"the value is not Avro of its schema: {left} bytes are left over"
            )
        return value


class AvroValues:
    """Reads values that are Avro."""

    def __init__(self, schemas: Schemas[AvroSchema]) -> None:
        self._schemas = schemas

    def read(self, record: Record) -> object:
        """See :class:`workers.codecs.fields.Values`."""
        schema, _, body = self._schemas.of(record)
        return schema.read(body)
