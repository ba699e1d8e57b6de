"""JSON in, by a JSON Schema.

Comes in: a record. Goes out: its value, when it meets the schema. Never here: a schema from elsewhere than a registry or a file:
what it refers to has come with it, or is not there.
"""

from __future__ import annotations

import json
import math
from typing import Any

import jsonschema
import referencing
import referencing.exceptions
import referencing.jsonschema

from workers.codecs.base import utf8
from workers.codecs.json import parse_json
from workers.codecs.json_schema_bounds import UnboundedSchema, bounded, require_bounds
from workers.codecs.json_schema_steps import TooDeep, TooManySteps, counted, steps_for
from workers.codecs.wire import Schemas
from workers.errors import PoisonError
from workers.records import Record
from workers.schema_registry import Schema

_DEFAULT = jsonschema.Draft7Validator  # the one that Confluent's serialisers write


class JsonSchema:
    """What a value has to meet."""

    def __init__(self, schema: Schema) -> None:
        """Raises ValueError: the text is no JSON Schema, or has no bound to what a value may cost."""
        nothing: Any = referencing.Registry()
        try:
            parsed: Any = json.loads(schema.text)
            made: Any = bounded(jsonschema.validators.validator_for(parsed, default=_DEFAULT))
            # The draft's own schema for schemas, by bounded keywords as well.
            with counted(math.inf):
                wrong = next(made(made.META_SCHEMA, registry=nothing).iter_errors(parsed), None)
            others = [
                (name, referencing.Resource.from_contents(json.loads(text), referencing.jsonschema.DRAFT7))
                for name, text in schema.references
            ]
            require_bounds([parsed, *(resource.contents for _, resource in others)])
            if wrong is None:
                # Looked through for names now, and not again for each reference.
                root = referencing.Resource.from_contents(parsed, referencing.jsonschema.DRAFT7)
                nothing = nothing.with_resources([(root.id() or "", root), *others]).crawl()
        except UnboundedSchema:
            raise
        except Exception as error:  # noqa: BLE001 - what jsonschema raises for a schema that is none is many things
            raise ValueError(f"it is not JSON Schema ({type(error).__name__})") from None
        if wrong is not None:
            raise ValueError("it is not JSON Schema (SchemaError)")
        self._validator = made(parsed, registry=nothing)

    def check(self, value: object, size: int) -> None:
        """Refuse a value, of ``size`` bytes, that the schema rules out.

        Raises:
            PoisonError: it does; or the schema refers to what did not come with it, or asks for more work than the value is worth.
        """
        try:
            with counted(steps_for(size)):
                error = next(self._validator.iter_errors(value), None)
        except TooManySteps:
            message = f"the schema asks for more than {steps_for(size):,} steps to check a value of {size:,} bytes"
            raise PoisonError("decode", "too_many_steps", message) from None
        except (RecursionError, TooDeep):
            raise PoisonError("decode", "schema_mismatch", "the value is nested too deeply for its schema") from None
        except referencing.exceptions.Unresolvable:
            raise PoisonError("decode", "bad_schema", "the schema refers to what did not come with it") from None
        except Exception as error:  # noqa: BLE001 - a pattern that is none, a multiple of a number out of range, and others
            message = f"the schema cannot be applied to the value ({type(error).__name__})"
            raise PoisonError("decode", "bad_schema", message) from None
        if error is not None:
            # By the schema's words alone: the error's own quote the value.
            place = "/".join(str(part) for part in error.absolute_schema_path)[:200]
            raise PoisonError("decode", "schema_mismatch", f"the value does not meet its JSON Schema at {place}")


class JsonSchemaValues:
    """Reads values that are JSON and meet a schema."""

    def __init__(self, schemas: Schemas[JsonSchema]) -> None:
        self._schemas = schemas

    def read(self, record: Record) -> object:
        """See :class:`workers.codecs.fields.Values`."""
        schema, _, body = self._schemas.of(record)
        value = parse_json(utf8(body))
        schema.check(value, len(body))
        return value
