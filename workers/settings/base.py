"""What the sections share: their strictness, numbers with units, and moments."""

from __future__ import annotations

import datetime
import re
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

type_count = Annotated[int, Field(ge=1)]
type_seconds = Annotated[float, Field(gt=0)]

_UNITS = {"": 1, "b": 1, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "kb": 10**3, "mb": 10**6, "gb": 10**9}


def parse_bytes(value: object) -> object:
    """Turn ``256MiB``, ``64 kB`` or a plain number into bytes; anything else goes to pydantic as it is.

    Raises:
        ValueError: a number with a unit that is not b, kB, MB, GB, KiB, MiB or GiB.
    """
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", value)
    if match is None or match[2].lower() not in _UNITS:
        raise ValueError("write a number of bytes, or one with a unit such as 256MiB")
    return int(float(match[1]) * _UNITS[match[2].lower()])


def unix_ms(text: str) -> int:
    """A moment in ISO 8601 as Unix milliseconds, UTC when it names no zone.

    Raises:
        ValueError: it is none.
    """
    moment = datetime.datetime.fromisoformat(text)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=datetime.UTC)
    return int(moment.timestamp() * 1000)


def as_text(value: object) -> object:
    """A moment as text: YAML reads an unquoted timestamp as a datetime. Anything else as it is."""
    return value.isoformat() if isinstance(value, datetime.date) else value


class Section(BaseModel):
    """A part of the settings: immutable, and strict about names."""

    # A section that is refused does not show its values: one of them may be a password.
    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False, hide_input_in_errors=True
    )
