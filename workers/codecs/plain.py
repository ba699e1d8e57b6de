"""What other formats have beside JSON's types, in JSON's.

Comes in: values of a decoded record. Goes out: text, or values that JSON has. Never here: JSON's own text.

===================================  =============================================================
decimal                              text, with all its digits: ``12.50``
timestamp                            text, ISO 8601: ``2026-05-01T00:00:00Z``; a local one without the Z
date, time                           text, ISO 8601: ``2026-05-01``, ``12:30:00``
UUID, enum                           text
bytes, fixed                         text in base64; as a text to embed they are refused
map, record, message                 an object
array                                a list
===================================  =============================================================
"""

from __future__ import annotations

import base64
import datetime
import itertools
import uuid
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Final

from workers.errors import PoisonError

# Of one included field; more would fit no record.
MOST_VALUES = 1_000_000


class _Unavailable:
    """A column that its source did not send."""

    def __repr__(self) -> str:
        return "UNAVAILABLE"


UNAVAILABLE: Final = _Unavailable()


def written(value: object) -> str | None:
    """A value that is written in one way, and is no type of JSON's nor bytes, as text; None for any other."""
    match value:
        case Decimal():
            # A huge exponent would be written with as many zeros.
            return f"{value:f}" if value.is_finite() and abs(value.adjusted()) < 1000 else str(value)
        case datetime.datetime():
            text = value.isoformat()
            return f"{text[:-6]}Z" if text.endswith("+00:00") else text
        case datetime.date() | datetime.time():
            return value.isoformat()
        case uuid.UUID():
            return str(value)
    return None


def plain(value: object) -> object:
    """A value with nothing in it that JSON does not have.

    Raises:
        PoisonError: stage ``output``: it is nested too deeply, or holds too many values.
    """
    try:
        return _plain(value, itertools.count())
    except RecursionError:
        raise PoisonError("output", "not_json", "an included field has too many levels") from None


def _plain(value: object, counted: Iterator[int]) -> object:
    if next(counted) >= MOST_VALUES:
        raise PoisonError("output", "not_json", f"an included field holds more than {MOST_VALUES:,} values")
    match value:
        case None | bool() | int() | float() | str():
            return value
        case Mapping():
            return {str(name): _plain(inner, counted) for name, inner in value.items()}
        case list() | tuple():
            return [_plain(inner, counted) for inner in value]
        case bytes():
            return base64.b64encode(value).decode("ascii")
    return written(value)
