"""How a text or an id is made of a document's fields: a field name, or a template over them.

Comes in: the setting, then mappings. Goes out: strings. Never here: JSON text, or anything of the record's in a message.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from workers.codecs.plain import UNAVAILABLE, written
from workers.errors import PoisonError


@dataclass(frozen=True, slots=True)
class Field:
    """A place for a field's value: ``name`` as written, its ``path`` into nested objects, what stands in for a missing one."""

    name: str
    path: tuple[str, ...]
    default: str | None = None


@dataclass(frozen=True, slots=True)
class Template:
    """``parts``, one after another: literal text, and fields."""

    parts: tuple[str | Field, ...]

    @classmethod
    def parse(cls, source: str) -> Template:
        """Read a field name (``body``, ``doc.body``) or a template.

        In a template ``{name}`` is a field, ``{a.b}`` a nested one, ``{name|default}`` has a default for a missing or null
        field, and ``{{`` and ``}}`` are braces.

        Raises:
            ValueError: it is neither; the sentence says where it goes wrong.
        """
        if not any(character in source for character in "{}"):
            if source != "".join(source.split()):
                raise ValueError(f"{source!r} is not a field name; in a template, fields stand in braces: {{title}}")
            return cls((_field(source, source),))
        parts = _parts(source)
        if not any(isinstance(part, Field) for part in parts):
            raise ValueError(f"{source!r} names no field, so every document would give the same")
        return cls(tuple(parts))

    @classmethod
    def parse_text(cls, source: str) -> Template:
        """Read a text in which fields may stand, as in a template; without any it is the same for every document.

        Raises:
            ValueError: a brace is not closed, not opened, or holds no name; the sentence says which.
        """
        return cls(tuple(_parts(source)))

    @property
    def fields(self) -> tuple[str, ...]:
        """The names of the fields, in their order, each once."""
        return tuple(dict.fromkeys(part.name for part in self.parts if isinstance(part, Field)))

    @property
    def has_defaults(self) -> bool:
        """Whether every field has something that stands in for it."""
        return all(part.default is not None for part in self.parts if isinstance(part, Field))

    def render(self, values: Mapping[str, object]) -> str:
        """Fill in a text. A template of one field takes strings only; a longer one writes numbers and booleans as JSON does.

        What other formats have beside those is written as :mod:`workers.codecs.plain` does, but for bytes, which are no text.

        Raises:
            PoisonError: a field is missing or null and has no default (``missing_field``), or is no such value
                (``wrong_type``).
        """
        return self._fill(values, _string if len(self.parts) == 1 else _scalar, "missing_field")

    def render_id(self, values: Mapping[str, object]) -> str:
        """Fill in an id, of strings, whole numbers, and what else has one way to be written, as a float has not.

        Raises:
            PoisonError: as :meth:`render`, with ``missing_id``.
        """
        return self._fill(values, _string_or_integer, "missing_id")

    def _fill(self, values: Mapping[str, object], write: Callable[[object], str | None], missing: str) -> str:
        filled = []
        for part in self.parts:
            if isinstance(part, str):
                filled.append(part)
                continue
            value = lookup(values, part.path)
            if value is None:
                if part.default is None:
                    raise PoisonError("text", missing, f"field {part.name} is missing or null, and has no default")
                filled.append(part.default)
                continue
            written = write(value)
            if written is None:
                raise PoisonError("text", "wrong_type", f"field {part.name} is {_kind(value)}, which is not taken here")
            filled.append(written)
        return "".join(filled)


def lookup(values: Mapping[str, object], path: tuple[str, ...]) -> object:
    """The value that a path leads to; None where it leads nowhere.

    Raises:
        PoisonError: stage ``decode``, class ``unavailable_value``: its source did not send it.
    """
    value: object = values
    for name in path:
        if type(value) is not dict and not isinstance(
            value, Mapping
        ):  # the first is what it mostly is, and quick to ask
            break
        value = value.get(name)
    else:
        if value is not UNAVAILABLE:
            return value
    if value is UNAVAILABLE:
        raise PoisonError(
            "decode",
            "unavailable_value",
            f"field {'.'.join(path)} did not change, and Debezium did not send it: the older vector is still right for it; "
            "REPLICA IDENTITY FULL makes Postgres send it",
        )
    return None


def _parts(source: str) -> list[str | Field]:
    parts: list[str | Field] = []
    literal = ""
    at = 0
    while at < len(source):
        if source[at : at + 2] in ("{{", "}}"):
            literal += source[at]
            at += 2
        elif source[at] == "}":
            raise ValueError(f"{source!r} has a closing brace at {at} that nothing opens; a literal brace is }}}}")
        elif source[at] == "{":
            end = source.find("}", at)
            inside = source[at + 1 : end]
            if end < 0 or "{" in inside:
                raise ValueError(
                    f"{source!r} has an opening brace at {at} that nothing closes; a literal brace is {{{{"
                )
            if literal:
                parts.append(literal)
                literal = ""
            name, bar, default = inside.partition("|")
            parts.append(_field(name.strip(), source, default if bar else None))
            at = end + 1
        else:
            literal += source[at]
            at += 1
    return [*parts, literal] if literal else parts


def _field(name: str, source: str, default: str | None = None) -> Field:
    path = tuple(name.split("."))
    if not all(path):
        raise ValueError(f"{source!r} has a field without a name; write one, such as {{title}} or {{author.name}}")
    if name.isdecimal():
        raise ValueError(f"{source!r} counts fields ({name}), which have names here, such as {{title}}")
    return Field(name, path, default)


def _string(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _string_or_integer(value: object) -> str | None:
    if isinstance(value, str | int) and not isinstance(value, bool):
        return str(value)
    return base64.b64encode(value).decode("ascii") if isinstance(value, bytes) else written(value)


def _scalar(value: object) -> str | None:
    if isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return json.dumps(value)
    return value if isinstance(value, str) else written(value)


def _kind(value: object) -> str:
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
        case list():
            return "a list"
        case _:
            return "a time, a date, a decimal or a UUID"
