"""What a template finds in a record, and how a value is written into a text or an id.

Comes in: values of a decoded record. Goes out: strings; or None for a value that has no place in one. Never here: a template, or
anything of the record's in a message.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping

from workers.codecs.plain import UNAVAILABLE, written
from workers.errors import PoisonError


def lookup(values: Mapping[str, object], path: tuple[str, ...]) -> object:
    """The value that a path leads to; None where it leads nowhere.

    Raises:
        PoisonError: stage ``decode``, class ``unavailable_value``: its source did not send it.
    """
    value: object = values
    for name in path:
        # The first is what it mostly is, and quick to ask.
        if type(value) is not dict and not isinstance(value, Mapping):
            break
        value = value.get(name)
    else:
        if value is not UNAVAILABLE:
            return value
    if value is UNAVAILABLE:
        raise unavailable(".".join(path))
    return None


def unavailable(field: str) -> PoisonError:
    """The reason for a field that its source did not send."""
    return PoisonError(
        "decode",
        "unavailable_value",
        f"field {field} did not change, and Debezium did not send it: the older vector stays, without what else has changed in "
        "the row; REPLICA IDENTITY FULL makes Postgres send it",
    )


def missing(what: str, reason: str) -> PoisonError:
    """Why there is no text when ``what``, such as ``field title``, is not there; ``reason``: the class of that."""
    return PoisonError("text", reason, f"{what} is missing or null, and has no default")


def wrong_type(what: str, value: object) -> PoisonError:
    """Why there is no text when ``what`` cannot be taken."""
    return PoisonError("text", "wrong_type", f"{what} is {kind_of(value)}, which is not taken here")


def string(value: object) -> str | None:
    """Strings alone, as they are."""
    return value if isinstance(value, str) else None


def id_part(value: object) -> str | None:
    """What has one way to be written, as a float has not; bytes in base64."""
    if isinstance(value, str | int) and not isinstance(value, bool):
        return str(value)
    return base64.b64encode(value).decode("ascii") if isinstance(value, bytes) else written(value)


def scalar(value: object) -> str | None:
    """Strings as they are, numbers and booleans as JSON writes them, what JSON does not have as :mod:`workers.codecs.plain`."""
    if isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return json.dumps(value)
    return value if isinstance(value, str) else written(value)


def kind_of(value: object) -> str:
    """What a value is, in a sentence."""
    match value:
        case bool():
            return "a boolean"
        case int():
            return "a whole number"
        case float():
            return "a number"
        case str():
            return "a string"
        case bytes():
            return "bytes"
        case Mapping():
            return "an object"
        case list() | tuple():
            return "a list"
        case _:
            return "a time, a date, a decimal or a UUID"
