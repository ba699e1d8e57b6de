"""Protobuf in: a record's bytes by the message that they are.

Comes in: a record. Goes out: its fields by the names that stand in the ``.proto``. Never here: how a schema is compiled.

What JSON has no word for is as follows. A field that is not set is null where that can be seen (``optional``, ``oneof``, messages),
and its type's zero or empty text where it cannot. Enums are their names; a number without one stays a number. Keys of maps are
text. Timestamps are UTC with as many digits as they have, durations seconds as ``1.5s``; wrappers, ``Struct`` and ``Value`` are
what they hold; an ``Any`` is its type and its bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Any

from google.protobuf import json_format

from workers.codecs.protobuf_schema import ProtobufSchema
from workers.codecs.wire import Schemas
from workers.errors import PoisonError
from workers.records import Record

_WRAPPERS = ("Double", "Float", "Int64", "UInt64", "Int32", "UInt32", "Bool", "String", "Bytes")
MOST_SCALE = 1000


class ProtobufValues:
    """Reads values that are Protobuf."""

    def __init__(self, schemas: Schemas[ProtobufSchema], name: str | None = None) -> None:
        """``name``: the full name of the values' message, where they do not say it themselves."""
        self._schemas = schemas
        self._name = name

    def read(self, record: Record) -> object:
        """See :class:`workers.codecs.fields.Values`."""
        schema, indexes, body = self._schemas.of(record)
        found = schema.named(self._name or "") if indexes is None else schema.placed(indexes)
        if found is None:
            raise PoisonError("decode", "not_framed", "the value names a message that its schema does not have")
        try:
            parsed = found.FromString(body)
            return _fields(parsed)
        except PoisonError:
            raise
        except Exception as error:  # noqa: BLE001 - parsers differ in what they raise for wrong bytes
            raise PoisonError(
                "decode", "invalid_protobuf", f"the value is not Protobuf of its schema ({type(error).__name__})"
            ) from None


def _fields(found: Any) -> object:
    special = _SPECIAL.get(found.DESCRIPTOR.full_name)
    if special is not None:
        return special(found)
    values: dict[str, object] = {}
    for field in found.DESCRIPTOR.fields:
        value = getattr(found, field.name)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            inner = field.message_type.fields_by_name["value"]
            values[field.name] = {_key(key): _one(inner, value[key]) for key in value}
        elif field.is_repeated:
            values[field.name] = [_one(field, each) for each in value]
        elif field.has_presence and not found.HasField(field.name):
            values[field.name] = None
        else:
            values[field.name] = _one(field, value)
    return values


def _one(field: Any, value: Any) -> object:
    if field.message_type is not None:
        return _fields(value)
    if field.enum_type is not None:
        named = field.enum_type.values_by_number.get(value)
        return value if named is None else named.name
    return value


def _key(key: object) -> str:
    return str(key).lower() if isinstance(key, bool) else str(key)


def _json(found: Any) -> object:
    """What JSON calls it, by Protobuf's own rules."""
    return json_format.MessageToDict(found)


def _wrapped(found: Any) -> object:
    return found.value


def _decimal(found: Any) -> object:
    scale = found.scale
    if abs(scale) > MOST_SCALE or len(found.value) > MOST_SCALE:
        raise PoisonError("decode", "invalid_protobuf", f"the value holds a decimal of more than {MOST_SCALE} digits")
    digits = int.from_bytes(found.value, "big", signed=True)
    return Decimal((digits < 0, tuple(map(int, str(abs(digits)))), -scale))


def _any(found: Any) -> object:
    return {"type_url": found.type_url, "value": found.value}


_SPECIAL: dict[str, Callable[[Any], object]] = {
    **dict.fromkeys((f"google.protobuf.{name}Value" for name in _WRAPPERS), _wrapped),
    **dict.fromkeys(
        (f"google.protobuf.{name}" for name in ("Timestamp", "Duration", "FieldMask", "Struct", "Value", "ListValue")),
        _json,
    ),
    "google.protobuf.Any": _any,
    "google.type.Decimal": _wrapped,
    "confluent.type.Decimal": _decimal,
}
