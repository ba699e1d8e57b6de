"""JSON Schema's ``unevaluatedItems`` and ``unevaluatedProperties``, each item and name looked at once.

Comes in: one of jsonschema's validators, a value, a schema. Goes out: what no other keyword has looked at. Never here: a list that
is gone through for each item, which jsonschema's own keywords make of it, or a pattern that is not RE2's.

By https://json-schema.org/draft/2020-12/json-schema-core#section-11: what a subschema's keywords look at counts where the value
meets that subschema.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jsonschema
from referencing.jsonschema import lookup_recursive_ref

from workers.codecs.json_schema_steps import spend

type_found = Callable[[str, str], bool]
_SOME = ("allOf", "anyOf", "oneOf")


def unevaluated_items(validator: Any, wanted: Any, value: Any, schema: Mapping[str, Any]) -> Iterator[Any]:
    """The keyword ``unevaluatedItems``, as jsonschema calls one."""
    if validator.is_type(value, "array") and wanted is not True:
        evaluated = set[int]()
        _items(validator, value, schema, evaluated)
        if len(evaluated.intersection(range(len(value)))) < len(value):
            yield jsonschema.ValidationError("an item is not evaluated")


def unevaluated_properties(
    validator: Any, wanted: Any, value: Any, schema: Mapping[str, Any], *, found: type_found
) -> Iterator[Any]:
    """The keyword ``unevaluatedProperties``; ``found``: whether a pattern is in a name."""
    if validator.is_type(value, "object") and wanted is not True:
        evaluated = set[str]()
        _properties(validator, value, schema, evaluated, found)
        if not evaluated.issuperset(value):
            yield jsonschema.ValidationError("a property is not evaluated")


def _items(validator: Any, value: list[Any], schema: Any, evaluated: set[int]) -> None:
    """Add the places of items that a schema's keywords look at."""
    spend(1)
    if not isinstance(schema, Mapping):
        return
    first = schema.get("items")
    if "items" in schema and (not isinstance(first, list) or "additionalItems" in schema):
        spend(len(value) // 100)
        evaluated.update(range(len(value)))
        return
    for some in (first, schema.get("prefixItems")):
        if isinstance(some, list):
            evaluated.update(range(min(len(some), len(value))))
    for keyword in ("contains", "unevaluatedItems"):
        inner = schema.get(keyword, False)
        if inner is not False:
            one = validator.evolve(schema=inner)
            evaluated.update(place for place, item in enumerate(value) if one.is_valid(item))
    for inner, among in _applied(validator, value, schema):
        _items(among, value, inner, evaluated)


def _properties(validator: Any, value: Mapping[str, Any], schema: Any, evaluated: set[str], found: type_found) -> None:
    """Add the names of properties that a schema's keywords look at."""
    spend(1)
    if not isinstance(schema, Mapping):
        return
    if "additionalProperties" in schema:  # what its neighbours do not look at, it does
        spend(len(value) // 100)
        evaluated.update(value)
        return
    named, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
    spend((len(named) + len(value) * len(patterns)) // 10)
    evaluated.update(name for name in value if name in named or any(found(pattern, name) for pattern in patterns))
    inner = schema.get("unevaluatedProperties", False)
    if inner is not False:
        one = validator.evolve(schema=inner)
        evaluated.update(name for name, each in value.items() if one.is_valid(each))
    for name, dependent in schema.get("dependentSchemas", {}).items():
        if name in value:
            _properties(validator, value, dependent, evaluated, found)
    for inner, among in _applied(validator, value, schema):
        _properties(among, value, inner, evaluated, found)


def _applied(validator: Any, value: Any, schema: Mapping[str, Any]) -> Iterator[tuple[Any, Any]]:
    """The subschemas that apply to the same value, and that it meets where that is open; each with its validator."""
    resolver = validator._resolver
    for keyword in ("$ref", "$dynamicRef", "$recursiveRef"):
        if keyword in schema:
            recursive = keyword == "$recursiveRef"
            resolved = lookup_recursive_ref(resolver) if recursive else resolver.lookup(schema[keyword])
            yield resolved.contents, validator.evolve(schema=resolved.contents, _resolver=resolved.resolver)
    for inner in (each for keyword in _SOME for each in schema.get(keyword, ())):
        if validator.evolve(schema=inner).is_valid(value):
            yield inner, validator
    if "if" in schema:
        met = validator.evolve(schema=schema["if"]).is_valid(value)
        if met:
            yield schema["if"], validator
        if (then := "then" if met else "else") in schema:
            yield schema[then], validator
