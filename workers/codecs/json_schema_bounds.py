"""JSON Schema's keywords that a few bytes could make slow, in time that grows as the value does.

Comes in: one of jsonschema's validators. Goes out: one like it, bounded. Never here: a schema's other rules, or values.

Patterns are RE2's, which reads a text once; the standard library's engine goes back to try what it has not tried, and a pattern
such as ``(a+)+$`` on forty letters takes it years. RE2 has no look-around and no back references, for those need just that. Items
that have to be unique are told apart by their text, and not each from each other. All that is done counts as steps, of which
there are only so many for a value (:mod:`workers.codecs.json_schema_steps`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache, lru_cache, partial
from typing import Any

import attrs
import jsonschema
import re2

from workers.codecs.json_schema_steps import enter, leave, spend
from workers.codecs.json_schema_unevaluated import unevaluated_items, unevaluated_properties

_PATTERNS_KEPT = 1_000
# What costs as much as a keyword does: looking at so many names or values of a schema, writing down so much of a value.
_NAMES_A_STEP = 20
_CHARACTERS_A_STEP = 100
_OPTIONS = re2.Options()
_OPTIONS.log_errors = False  # it would write the pattern to standard error


class UnboundedSchema(ValueError):
    """A schema asks for what may take any time; the sentence says for what."""


@cache
def bounded(validator: Any) -> Any:
    """A class as ``validator``, one of jsonschema's drafts, whose slow keywords are ours."""
    made = jsonschema.validators.extend(
        validator,
        {
            "pattern": _pattern,
            "patternProperties": _pattern_properties,
            "additionalProperties": _additional_properties,
            "uniqueItems": _unique_items,
            **{name: own for name, own in _UNEVALUATED.items() if name in validator.VALIDATORS},
        },
    )
    made.VALIDATORS = {name: _counted(keyword) for name, keyword in made.VALIDATORS.items()}
    made.iter_errors = _iter_errors(made.iter_errors)
    fields = [(field.name, field.alias) for field in attrs.fields(made) if field.init]

    def evolve(self: Any, **changes: Any) -> Any:
        """The same for a schema inside: jsonschema's own would leave those that name their draft to that draft's class."""
        draft = jsonschema.validators.validator_for(changes.setdefault("schema", self.schema), default=validator)
        for name, alias in fields:
            changes.setdefault(alias, getattr(self, name))
        return bounded(draft)(**changes)

    made.evolve = evolve
    return made


def require_bounds(schema: object) -> None:
    """Look through a schema for what has no bound.

    Raises:
        UnboundedSchema: it has a pattern that RE2 does not take.
    """
    stack = [schema]
    while stack:
        match stack.pop():
            case Mapping() as found:
                stack += found.values()
                if isinstance(pattern := found.get("pattern"), str):
                    _compiled(pattern)
                if isinstance(patterns := found.get("patternProperties"), Mapping):
                    for pattern in patterns:
                        _compiled(pattern)
            case list() as items:
                stack += items


@lru_cache(_PATTERNS_KEPT)
def _compiled(pattern: str) -> Any:
    try:
        return re2.compile(_translated(pattern), _OPTIONS)
    except (re2.error, UnicodeEncodeError):
        raise UnboundedSchema(
            f"its pattern {pattern[:100]!a} is not one that RE2 takes, which has no look-around, no back references, and no "
            "more than 1,000 repetitions"
        ) from None


def _translated(pattern: str) -> str:
    r"""A pattern with JavaScript's ``\u00e9`` as RE2 has it, ``\x{00e9}``."""
    parts = []
    at = 0
    while at < len(pattern):
        length = 1
        part = pattern[at]
        if part == "\\":
            part, length = pattern[at : at + 2], 2
            digits = pattern[at + 2 : at + 6]
            if part == "\\u" and len(digits) == 4 and all(each in "0123456789abcdefABCDEF" for each in digits):
                part, length = f"\\x{{{digits}}}", 6
        parts.append(part)
        at += length
    return "".join(parts)


def _found(pattern: str, text: str) -> bool:
    try:
        return _compiled(pattern).search(text) is not None
    except UnicodeEncodeError:  # half of a surrogate pair, which is no character
        return _compiled(pattern).search(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")) is not None


def _counted(keyword: Any) -> Any:
    """A keyword whose work is counted, that of what it looks at included; its errors quote nothing, and weigh nothing."""

    def counted(validator: Any, wanted: Any, value: Any, schema: Any) -> Iterator[Any]:
        enter(1 + len(wanted) // _NAMES_A_STEP if isinstance(wanted, list | dict) else 1)
        try:
            for error in keyword(validator, wanted, value, schema) or ():
                spend(len(error.message) // _CHARACTERS_A_STEP)  # which jsonschema fills with the value
                error.message = ""
                yield error
        finally:
            leave()

    return counted


def _iter_errors(original: Any) -> Any:
    def iter_errors(self: Any, value: Any) -> Iterator[Any]:
        """As jsonschema's, but that where nothing is allowed the value is not written down."""
        if self.schema is not False:
            yield from original(self, value)
            return
        about: dict[str, Any] = {"validator": None, "validator_value": None, "instance": value, "schema": False}
        yield jsonschema.ValidationError("", **about)

    return iter_errors


def _pattern(validator: Any, pattern: str, value: Any, _: object) -> Iterator[Any]:
    if validator.is_type(value, "string") and not _found(pattern, value):
        yield jsonschema.ValidationError("a text does not have its pattern")


def _pattern_properties(validator: Any, patterns: Mapping[str, Any], value: Any, _: object) -> Iterator[Any]:
    if validator.is_type(value, "object"):
        for pattern, schema in patterns.items():
            for name, inner in value.items():
                if _found(pattern, name):
                    yield from validator.descend(inner, schema, path=name, schema_path=pattern)


def _additional_properties(validator: Any, allowed: Any, value: Any, schema: Mapping[str, Any]) -> Iterator[Any]:
    if validator.is_type(value, "object"):
        named, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
        for name, inner in value.items():
            if name not in named and not any(_found(pattern, name) for pattern in patterns):
                yield from validator.descend(inner, allowed, path=name)


def _unique_items(validator: Any, wanted: object, value: Any, _: object) -> Iterator[Any]:
    if wanted and validator.is_type(value, "array"):
        known = set()
        for item in value:
            text = json.dumps(_normal(item), sort_keys=True)
            if text in known:
                yield jsonschema.ValidationError("two items are the same")
                return
            known.add(text)


_UNEVALUATED = {
    "unevaluatedItems": unevaluated_items,
    "unevaluatedProperties": partial(unevaluated_properties, found=_found),
}


def _normal(value: Any) -> Any:
    """A value with its whole numbers written in one way: to JSON Schema 1 and 1.0 are the same, and true is another."""
    match value:
        case float() if value.is_integer():
            return int(value)
        case dict():
            return {name: _normal(inner) for name, inner in value.items()}
        case list():
            return [_normal(inner) for inner in value]
    return value
