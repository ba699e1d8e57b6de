"""Kafka Connect's types in JSON, which has fewer: what its schema says that a number or a text is.

Comes in: the schema and the payload of an envelope. Goes out: the payload, with decimals, dates, times and bytes as such, as the
same record in Avro would have them. Never here: the types of a converter other than Connect's own.
"""

from __future__ import annotations

import base64
import datetime
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

from workers.errors import PoisonError

MOST_LEVELS = 100
MOST_SCALE = 1000
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


def as_typed(schema: object, payload: object) -> object:
    """The payload, its types as the schema says. Without a schema it stays as it is.

    Raises:
        PoisonError: stage ``decode``: the two do not go together.
    """
    try:
        return _Typing().of(schema, payload, 0)
    except (ValueError, TypeError, AttributeError, ArithmeticError):
        raise PoisonError("decode", "wrong_envelope", "the envelope's payload is not what its schema says") from None


class _Typing:
    """One envelope's payload, by its schema; which fields a struct has is looked up once, and not for each value of it."""

    def __init__(self) -> None:
        # By the node's identity, which is its own while the envelope is here.
        self._fields: dict[int, dict[Any, Any]] = {}

    def of(self, schema: Any, value: Any, depth: int) -> Any:
        if depth > MOST_LEVELS:
            raise ValueError
        if not isinstance(schema, Mapping) or value is None:
            return value
        name = schema.get("name")
        logical = _LOGICAL.get(name) if isinstance(name, str) else None
        if logical is not None:
            return logical(value, schema)
        match schema.get("type"):
            case "struct":
                if not isinstance(value, Mapping):
                    raise ValueError
                types = self._of_struct(schema)
                return {name: self.of(types.get(name), inner, depth + 1) for name, inner in value.items()}
            case "array":
                return [self.of(schema.get("items"), inner, depth + 1) for inner in _require(value, list)]
            case "map" if isinstance(value, Mapping):
                return {name: self.of(schema.get("values"), inner, depth + 1) for name, inner in value.items()}
            case "bytes" if isinstance(value, str):
                return base64.b64decode(value, validate=True)
        return value

    def _of_struct(self, schema: Mapping[str, Any]) -> dict[Any, Any]:
        found = self._fields.get(id(schema))
        if found is None:
            fields = schema.get("fields") or ()
            found = {field.get("field"): field for field in fields if isinstance(field, Mapping)}
            self._fields[id(schema)] = found
        return found


def _decimal(value: Any, schema: Mapping[str, Any]) -> Decimal:
    """Base64 of the digits, as many behind the point as the schema says; or already a number (``decimal.format: NUMERIC``)."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return Decimal(repr(value))
    raw = base64.b64decode(_require(value, str), validate=True)
    scale = int((schema.get("parameters") or {}).get("scale", 0))
    if abs(scale) > MOST_SCALE or len(raw) > MOST_SCALE:
        raise ValueError
    digits = int.from_bytes(raw, "big", signed=True)
    return Decimal((digits < 0, tuple(map(int, str(abs(digits)))), -scale))


def _date(value: Any, _: object) -> datetime.date:
    return (_EPOCH + datetime.timedelta(days=_require(value, int))).date()


def _time(value: Any, _: object) -> datetime.time:
    return (_EPOCH + datetime.timedelta(milliseconds=_require(value, int))).time()


def _timestamp(value: Any, _: object) -> datetime.datetime:
    return _EPOCH + datetime.timedelta(milliseconds=_require(value, int))


def _require(value: Any, kind: type) -> Any:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError
    return value


_LOGICAL: dict[str, Callable[[Any, Mapping[str, Any]], object]] = {
    "org.apache.kafka.connect.data.Decimal": _decimal,
    "org.apache.kafka.connect.data.Date": _date,
    "org.apache.kafka.connect.data.Time": _time,
    "org.apache.kafka.connect.data.Timestamp": _timestamp,
}
