"""Protobuf in: a record's bytes by the message that they are.

Comes in: a record. Goes out: its fields by the names that stand in the ``.proto``. Never here: how a schema is compiled.

What JSON has no word for is as follows. A field that is not set is null where that can be seen (``optional``, ``oneof``, messages),
and its type's zero or empty text where it cannot. Enums are their names; a number without one stays a number. Keys of maps are
text. Timestamps are UTC with as many digits as they have, durations seconds as ``1.5s``; wrappers, ``Struct`` and ``Value`` are
what they hold; an ``Any`` is its type and its bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from typing import Any

from google.protobuf import json_format

from workers.codecs import protobuf_bounds
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
        protobuf_bounds.check(found.DESCRIPTOR, body)
        try:
            return _of(found.FromString(body))
        except PoisonError:
            raise
        except Exception as error:  # noqa: BLE001 - parsers differ in what they raise, and a message may only be called like Google's
            raise _refusal(error) from None


class Fields(Mapping[str, object]):
    """A message's fields by name, each made of the message when it is asked for: most never are.

    Raises:
        PoisonError: on access, stage ``decode``: a field is not what its type says, such as a timestamp out of range.
    """

    __slots__ = ("_message",)

    def __init__(self, message: Any) -> None:
        self._message = message

    def __getitem__(self, name: str) -> object:
        message = self._message
        field = message.DESCRIPTOR.fields_by_name[name]
        if field.has_presence and not message.HasField(name):
            return None
        try:
            value = getattr(message, name)
            if field.message_type is not None and field.message_type.GetOptions().map_entry:
                inner = field.message_type.fields_by_name["value"]
                return {_key(key): _one(inner, value[key]) for key in value}
            if field.is_repeated:
                return [_one(field, each) for each in value]
            return _one(field, value)
        except PoisonError:
            raise
        except Exception as error:  # noqa: BLE001 - as above
            raise _refusal(error) from None

    def __iter__(self) -> Iterator[str]:
        return (field.name for field in self._message.DESCRIPTOR.fields)

    def __len__(self) -> int:
        return len(self._message.DESCRIPTOR.fields)


def _refusal(error: Exception) -> PoisonError:
    message = f"the value is not Protobuf of its schema ({type(error).__name__})"
    return PoisonError("decode", "invalid_protobuf", message)


def _of(message: Any) -> object:
    special = _SPECIAL.get(message.DESCRIPTOR.full_name)
    return Fields(message) if special is None else special(message)


def _one(field: Any, value: Any) -> object:
    if field.message_type is not None:
        return _of(value)
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
