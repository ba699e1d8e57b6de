"""Bytes that would hurt an Avro reader, found before it reads them.

Comes in: a schema, then bytes. Goes out: nothing, or a refusal. Never here: values.

Three kinds of schema let a few bytes ask for a lot. One that contains itself is read by recursion, a level for each byte, and C has
no limit to that but the end of its stack. An array of what takes no bytes, such as nulls, has as many items as it says. A record
with fields that take none has a place for each of them, however small it is: hundreds in a byte, and where such records are in
each other twice at every level, any number in no byte at all. Only values of these are walked through here; all others are
bounded by their own length.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from workers.codecs.varint import zigzag
from workers.errors import PoisonError

MOST_LEVELS = 100
MOST_EMPTY_ITEMS = 10_000
# Fields that take no bytes: so many, and for each byte of the value some more. Each takes about 20 bytes.
MOST_EMPTY_FIELDS, EMPTY_FIELDS_A_BYTE = 10_000, 4
_FIXED_SIZES = {"null": 0, "boolean": 1, "float": 4, "double": 8}
_NUMBERS = ("int", "long", "enum")


class Bounds:
    """What a schema's values are walked by: the schema as fastavro parsed it, and its named types."""

    def __init__(self, schema: Any, named: Mapping[str, Any]) -> None:
        self.schema = schema
        self.named = named
        self._safe: set[str] = set()
        self._fewest: dict[str, int] = {}

    @classmethod
    def of(cls, schema: Any, named: Mapping[str, Any]) -> Bounds | None:
        """None where nothing needs to be looked at."""
        found = cls(schema, named)
        return found if found._dangerous(schema, ()) else None

    def check(self, body: bytes) -> None:
        """Refuse bytes that nest too deeply, or hold too many of nothing.

        Raises:
            PoisonError: they do, or they are not of the schema.
        """
        try:
            _Walk(self, body).skip(self.schema, 0, 0)
        except (IndexError, ValueError, OverflowError):
            raise PoisonError("decode", "invalid_avro", "the value is not Avro of its schema") from None

    def fewest(self, schema: Any, above: tuple[str, ...] = ()) -> int:
        """The fewest bytes that a value takes."""
        schema = resolved(schema, self.named)
        if isinstance(schema, list):
            return 1
        kind = schema["type"]
        if kind in ("record", "error"):
            name = schema["name"]
            if name in above:
                return 0
            if name not in self._fewest:
                self._fewest[name] = sum(self.fewest(field["type"], (*above, name)) for field in schema["fields"])
            return self._fewest[name]
        if kind == "fixed":
            return int(schema["size"])
        return _FIXED_SIZES.get(kind, 1)

    def _dangerous(self, schema: Any, above: tuple[str, ...]) -> bool:
        schema = resolved(schema, self.named)
        if isinstance(schema, list):
            return any(self._dangerous(branch, above) for branch in schema)
        kind = schema["type"]
        if kind in ("record", "error"):
            name = schema["name"]
            if name in above:
                return True
            if name in self._safe:
                return False
            if any(self.fewest(field["type"]) == 0 for field in schema["fields"]):
                return True
            if any(self._dangerous(field["type"], (*above, name)) for field in schema["fields"]):
                return True
            self._safe.add(name)
            return False
        if kind == "array":
            return self.fewest(schema["items"]) == 0 or self._dangerous(schema["items"], above)
        return self._dangerous(schema["values"], above) if kind == "map" else False


class _Walk:
    """One value, walked through."""

    def __init__(self, bounds: Bounds, body: bytes) -> None:
        self._bounds = bounds
        self._body = body
        self._empty_items = self._empty_fields = 0
        self._most_empty_fields = MOST_EMPTY_FIELDS + EMPTY_FIELDS_A_BYTE * len(body)

    def skip(self, schema: Any, at: int, depth: int) -> int:
        if depth > MOST_LEVELS:
            message = f"the value is nested more than {MOST_LEVELS} levels deep"
            raise PoisonError("decode", "too_deep", message)
        schema = resolved(schema, self._bounds.named)
        if isinstance(schema, list):
            branch, at = zigzag(self._body, at)
            if not 0 <= branch < len(schema):
                raise IndexError
            return self.skip(schema[branch], at, depth)
        kind = schema["type"]
        match kind:
            case "record" | "error":
                for field in schema["fields"]:
                    before, at = at, self.skip(field["type"], at, depth + 1)
                    self._empty_fields += at == before
                    if self._empty_fields > self._most_empty_fields:
                        message = (
                            f"the value has more than {MOST_EMPTY_FIELDS:,} fields that take no bytes, and "
                            f"{EMPTY_FIELDS_A_BYTE} more for each byte that there is"
                        )
                        raise PoisonError("decode", "too_many_items", message)
                return at
            case "array" | "map":
                return self._skip_blocks(schema, at, depth)
            case "bytes" | "string":
                size, at = zigzag(self._body, at)
            case _ if kind in _NUMBERS:
                return zigzag(self._body, at)[1]
            case _:
                size = int(schema["size"]) if kind == "fixed" else _FIXED_SIZES[cast(str, kind)]
        if size < 0 or at + size > len(self._body):
            raise IndexError
        return at + size

    def _skip_blocks(self, schema: Any, at: int, depth: int) -> int:
        inner = schema["items"] if schema["type"] == "array" else schema["values"]
        empty = schema["type"] == "array" and self._bounds.fewest(inner) == 0
        while True:
            count, at = zigzag(self._body, at)
            if count == 0:
                return at
            if count < 0:
                count, (_, at) = -count, zigzag(self._body, at)
            if empty:
                self._empty_items += count
            if self._empty_items > MOST_EMPTY_ITEMS:
                message = f"the value has lists of more than {MOST_EMPTY_ITEMS:,} items that may take no bytes"
                raise PoisonError("decode", "too_many_items", message)
            for _ in range(count):
                if schema["type"] == "map":
                    at = self.skip("string", at, depth)
                at = self.skip(inner, at, depth + 1)


def resolved(schema: Any, named: Mapping[str, Any]) -> Any:
    """A type in its long form; a union is a list of them."""
    if isinstance(schema, str):
        return named.get(schema) or {"type": schema}
    if isinstance(schema, dict) and isinstance(schema["type"], dict | list):
        return resolved(schema["type"], named)
    return schema
