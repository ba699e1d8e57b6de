"""Included fields as typed columns: by the type that is declared, and never by what a value looks like.

Comes in: values as documents carry them, in JSON's types. Goes out: what a column of that type holds; null for null. Never here: a
guess at what a value might mean: one that is not of its type is refused.

==================================  ==================================================================================
string                              a text as it is, anything else in JSON
boolean                             true or false
int32, int64                        a whole number in its range, or the digits of one as text
float32, float64                    a number that is finite in it, or the digits of one as text
decimal(p, s)                       a number, or its digits as text, that has no more digits than that
date                                text in ISO 8601, ``2026-05-01``
timestamp                           text in ISO 8601 with a zone, ``2026-05-01T12:00:00Z``; to the microsecond, in UTC
list<…>                             a list of these, or of null
==================================  ==================================================================================
"""

from __future__ import annotations

import datetime
import decimal
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

from workers.codecs.json import as_json
from workers.codecs.values import kind_of
from workers.errors import PoisonError
from workers.settings.outputs import ColumnType

_ARROW = {
    "string": pa.string(),
    "boolean": pa.bool_(),
    "int32": pa.int32(),
    "int64": pa.int64(),
    "float32": pa.float32(),
    "float64": pa.float64(),
    "date": pa.date32(),
    "timestamp": pa.timestamp("us", "UTC"),
}
_RANGES = {"int32": range(-(1 << 31), 1 << 31), "int64": range(-(1 << 63), 1 << 63)}
# Digits of a number as text: more are no number that a column takes.
_MOST_DIGITS = 400
_EXACT = decimal.Context(prec=80, Emax=1000, Emin=-1000, traps=[decimal.InvalidOperation, decimal.Overflow])


def arrow_type(column: ColumnType) -> pa.DataType:
    """The type of a column."""
    if column.digits is not None:
        return pa.decimal128(*column.digits)
    if column.item is not None:
        return pa.list_(arrow_type(column.item))
    return _ARROW[column.name]


def converter(field: str, column: ColumnType) -> Callable[[object], Any]:
    """What makes a value of ``field`` one of its column.

    It raises PoisonError: stage ``output``, class ``wrong_type``: the value is none of that type; ``not_json``.
    """
    convert = _conversion(column)

    def converted(value: object) -> Any:
        if value is None:
            return None
        try:
            return convert(value)
        except (ValueError, TypeError, ArithmeticError):
            pass
        shown = f"list<{column.item.name}>" if column.item is not None else column.name
        message = f"included field {field} is {kind_of(value)} that its column of type {shown} does not take as it is"
        raise PoisonError("output", "wrong_type", message)

    return converted


def _conversion(column: ColumnType) -> Callable[[Any], Any]:
    """What makes a value one of the type; TypeError, ValueError or ArithmeticError: it is none."""
    match column:
        case ColumnType(item=ColumnType() as item):
            of_item = _conversion(item)
            return lambda value: [None if each is None else of_item(each) for each in _require(value, list)]
        case ColumnType(digits=(whole, behind)):
            return lambda value: _decimal(value, whole, behind)
        case ColumnType("boolean"):
            return lambda value: _require(value, bool)
        case ColumnType("int32" | "int64" as name):
            return lambda value: _whole(value, _RANGES[name])
        case ColumnType("float32"):
            return _float32
        case ColumnType("float64"):
            return lambda value: _finite(float(_number(value)))
        case ColumnType("date"):
            return lambda value: datetime.date.fromisoformat(_require(value, str))
        case ColumnType("timestamp"):
            return _timestamp
    return lambda value: value if isinstance(value, str) else as_json(value)


def _require(value: object, kind: type) -> Any:
    if not isinstance(value, kind):
        raise TypeError
    return value


def _number(value: object) -> decimal.Decimal:
    """A number exactly as it was written, for a float is written with all digits that it needs."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise TypeError
    if isinstance(value, str) and (len(value) > _MOST_DIGITS or value != value.strip() or "_" in value):
        raise ValueError
    if isinstance(value, int) and value.bit_length() > 4 * _MOST_DIGITS:
        raise ValueError
    found = decimal.Decimal(repr(value) if isinstance(value, float) else value)
    if not found.is_finite():
        raise ValueError
    return found


def _whole(value: object, among: range) -> int:
    found = _number(value)
    if found.adjusted() > 20 or found != found.to_integral_value():
        raise ValueError
    whole = int(found)
    if whole not in among:
        raise ValueError
    return whole


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError
    return value


def _float32(value: object) -> float:
    with np.errstate(over="ignore"):
        return _finite(float(np.float32(float(_number(value)))))


def _decimal(value: object, whole: int, behind: int) -> decimal.Decimal:
    found = _number(value)
    if found and found.adjusted() >= whole - behind:
        raise ValueError
    scaled = found.quantize(decimal.Decimal(1).scaleb(-behind), context=_EXACT)
    if scaled != found:
        raise ValueError
    return scaled


def _timestamp(value: object) -> datetime.datetime:
    found = datetime.datetime.fromisoformat(_require(value, str))
    if found.tzinfo is None:
        raise ValueError
    return found.astimezone(datetime.UTC)
