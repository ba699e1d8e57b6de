"""JSON by a JSON Schema: what it rules out is refused, by the schema's words alone."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.test_avro import Registry, framed
from workers.codecs import decoder_for, json_schema_steps
from workers.codecs.json_schema import JsonSchema
from workers.errors import PoisonError
from workers.records import Document, Origin, Record
from workers.schema_registry import Schema
from workers.settings import Settings

ORIGIN = Origin("documents", 2, 41, epoch=1)
SCHEMA = {
    "type": "object",
    "properties": {
        "text": {"type": "string", "maxLength": 20},
        "author": {"$ref": "author.json"},
        "n": {"type": "integer"},
    },
    "additionalProperties": False,
}
AUTHOR = {"type": "object", "required": ["name"]}


def decode(value: object, *, schema: object = SCHEMA, references: tuple[tuple[str, str], ...] = ()) -> Any:
    references = references or (("author.json", json.dumps(AUTHOR)),)
    registry = Registry(_1=Schema("JSON", json.dumps(schema), references))
    made = decoder_for(Settings(source={"format": "json_schema"}, registry={"url": "http://localhost:1"}), registry)
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    return made.decode(Record(ORIGIN, b"k", framed(1, body), 0))


def test_a_value_that_meets_its_schema_is_read():
    found = decode({"text": "some text", "author": {"name": "Ann"}, "n": 10**30})
    assert isinstance(found, Document)
    assert found.text == "some text"


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ({"text": 12345}, "properties/text/type"),
        ({"text": "secretsecretsecretsecret"}, "properties/text/maxLength"),
        ({"text": "x", "secret": 1}, "additionalProperties"),
        ({"text": "x", "author": {}}, "properties/author/"),
        ([], "type"),
    ],
)
def test_a_value_that_does_not_is_refused_without_being_quoted(value: object, place: str):
    with pytest.raises(PoisonError) as caught:
        decode(value)
    assert (caught.value.stage, caught.value.reason) == ("decode", "schema_mismatch")
    assert f"at {place}" in caught.value.message
    assert "secret" not in caught.value.message and "12345" not in caught.value.message


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"type": "nonsense"}, "bad_schema"),
        ({"$ref": "http://localhost:1/elsewhere.json"}, "bad_schema"),
        ({"$ref": "#/nowhere"}, "bad_schema"),
    ],
)
def test_a_schema_that_is_none_or_not_whole_is_said(schema: object, reason: str):
    """Nothing is fetched from where a schema points to."""
    with pytest.raises(PoisonError) as caught:
        decode({"text": "x"}, schema=schema)
    assert caught.value.reason == reason


DRAFT = "http://json-schema.org/draft-07/schema#"
LATEST = "https://json-schema.org/draft/2020-12/schema"


@pytest.mark.timeout(60)
@pytest.mark.parametrize("draft", [{}, {"$schema": DRAFT}])
@pytest.mark.parametrize(
    ("inner", "value"),
    [
        ({"pattern": "^(a+)+$"}, "a" * 5_000 + "b"),
        ({"patternProperties": {"^(a+)+$": True}, "additionalProperties": False}, {"a" * 5_000 + "b": 1}),
        ({"uniqueItems": True}, [{"a": n} for n in range(50_000)] + [{"a": 1}]),
        ({"anyOf": [{"type": "string"}] * 100}, ["x" * 100] * 1_000),
    ],
)
def test_what_a_value_costs_grows_as_it_does(inner: Any, value: object, draft: dict[str, str]):
    """By jsonschema's own keywords, which a schema inside that names its draft must not get, these take hours."""
    with pytest.raises(PoisonError) as caught:
        decode({"text": "x", "v": value}, schema={"properties": {"v": {**draft, **inner}}, **draft})
    assert caught.value.reason == "schema_mismatch"


@pytest.mark.parametrize(
    ("items", "unique"),
    [
        ([1, 1.0], False),
        ([1, True], True),
        ([{"a": 1, "b": [2]}, {"b": [2.0], "a": 1}], False),
        (["1", 1], True),
        ([[0], [False], [None]], True),
    ],
)
def test_items_are_the_same_as_json_says(items: list[object], unique: bool):
    schema = {"properties": {"v": {"uniqueItems": True}}}
    if unique:
        assert decode({"text": "x", "v": items}, schema=schema).text == "x"
    else:
        with pytest.raises(PoisonError, match="uniqueItems"):
            decode({"text": "x", "v": items}, schema=schema)


def test_patterns_are_javascripts_in_what_they_share_with_re2():
    schema = {"properties": {"text": {"pattern": "^[\\u00e0-\\u00ff]\\d$"}}}
    assert decode({"text": "é1"}, schema=schema).text == "é1"
    for wrong in ("e1", "é1\n", "\ud800"):
        with pytest.raises(PoisonError, match="text/pattern"):
            decode({"text": wrong}, schema=schema)


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"text": {"pattern": "^(?!x)"}}},
        {"patternProperties": {"(a)\\1": {}}},
    ],
)
def test_a_schema_without_a_bound_is_not_taken(schema: object):
    with pytest.raises(PoisonError, match="RE2") as caught:
        decode({"text": "x"}, schema=schema)
    assert caught.value.reason == "bad_schema"


def doubling(step: Callable[[str], Any], levels: int = 60) -> dict[str, Any]:
    """A schema of so many levels, each of which asks for the next one twice."""
    names = {f"l{n}": step(f"#/definitions/l{n + 1}") for n in range(levels)}
    return {"definitions": {**names, f"l{levels}": {"type": "object"}}, "$ref": "#/definitions/l0"}


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("schema", "value"),
    [
        (doubling(lambda below: {"allOf": [{"$ref": below}, {"$ref": below}]}), {}),
        (
            {
                "$schema": LATEST,
                "unevaluatedProperties": False,
                **doubling(lambda below: {"dependentSchemas": {name: {"$ref": below} for name in ("p", "text")}}),
            },
            {"p": 1},
        ),
        (
            {
                "anyOf": [
                    {"properties": {"a": {"$ref": "#"}}, "required": ["x"]},
                    {"properties": {"a": {"$ref": "#"}}, "required": ["y"]},
                    {"maxProperties": 0},
                ]
            },
            functools.reduce(lambda inner, _: {"a": inner}, range(40), {}),
        ),
    ],
)
def test_a_schema_that_asks_for_endless_work_is_given_up(
    schema: dict[str, Any], value: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    """By the second reference of each level alone these take years."""
    monkeypatch.setattr(json_schema_steps, "STEPS", json_schema_steps.STEPS // 10)  # the rest takes as long
    with pytest.raises(PoisonError, match=r"asks for more than 1\d,\d+ steps") as caught:
        decode({"text": "x", **value}, schema=schema)
    assert (caught.value.stage, caught.value.reason) == ("decode", "too_many_steps")


def test_as_much_work_as_a_value_is_long_is_done():
    variants = [
        {"type": "object", "required": [f"k{n}"], "additionalProperties": {"type": "integer"}} for n in range(40)
    ]
    schema = {"properties": {"v": {"items": {"oneOf": variants}}}}
    values = [{f"k{n % 40}": n} for n in range(300)]
    assert decode({"text": "x", "v": values}, schema=schema).text == "x"
    with pytest.raises(PoisonError, match="at properties/v/items/oneOf"):
        decode({"text": "x", "v": [*values, {"k50": 1}]}, schema=schema)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("inner", "good", "bad"),
    [
        ({"prefixItems": [{}], "contains": {"type": "integer"}, "unevaluatedItems": False}, list(range(20_000)), "x"),
        ({"allOf": [{"prefixItems": [{}]}], "unevaluatedItems": {"type": "integer"}}, list(range(20_000)), "x"),
    ],
)
def test_what_is_left_of_a_long_list_is_found_at_once(inner: dict[str, Any], good: list[Any], bad: object):
    schema = {"$schema": LATEST, "properties": {"v": inner}}
    assert decode({"text": "x", "v": good}, schema=schema).text == "x"
    with pytest.raises(PoisonError, match="unevaluatedItems"):
        decode({"text": "x", "v": [*good, bad]}, schema=schema)


def test_a_property_may_be_looked_at_by_its_pattern():
    schema = {
        "$schema": LATEST,
        "properties": {"text": {}},
        "allOf": [{"patternProperties": {"^a": {}}}],
        "unevaluatedProperties": False,
    }
    assert decode({"text": "x", "ab": 1}, schema=schema).text == "x"
    with pytest.raises(PoisonError, match="unevaluatedProperties"):
        decode({"text": "x", "ba": 1}, schema=schema)


LEAVES = st.sampled_from([True, False, {}, {"type": "integer"}, {"type": "string"}, {"minimum": 2}, {"const": "a"}])
NAMES = st.sampled_from(["a", "b", "c"])


def schemas(draft: str) -> st.SearchStrategy[Any]:
    """Schemas in which keywords look at items and properties, of all that have a say in what is left."""

    def above(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        some = st.lists(inner, min_size=1, max_size=2)
        first = {"prefixItems": some} if draft == LATEST else {"items": some}
        return st.fixed_dictionaries(
            {},
            optional={
                **first,
                "contains": inner,
                "properties": st.dictionaries(NAMES, inner, max_size=2),
                "dependentSchemas": st.dictionaries(NAMES, inner, max_size=1),
                "allOf": some,
                "anyOf": some,
                "oneOf": some,
                "not": inner,
                "if": inner,
                "then": inner,
                "else": inner,
                "$ref": st.sampled_from(["#/$defs/one", "#/$defs/two"]),
                "unevaluatedItems": inner,
                "unevaluatedProperties": st.just(False) if draft != LATEST else inner,
            },
        )

    return st.recursive(LEAVES, above, max_leaves=8)


VALUES = st.recursive(
    st.sampled_from([1, 3, "a", "b", None]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.parametrize("draft", [LATEST, "https://json-schema.org/draft/2019-09/schema"])
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_values_meet_schemas_as_jsonschema_says(draft: str, data: st.DataObject):
    one, two = data.draw(schemas(draft)), data.draw(schemas(draft))
    root = {"$schema": draft, "$defs": {"one": {"properties": {"a": {"type": "integer"}}}, "two": one}, "allOf": [two]}
    value = data.draw(VALUES)
    ours = JsonSchema(Schema("JSON", json.dumps(root), ()))
    try:
        ours.check(value, len(json.dumps(value)))
        found = True
    except PoisonError as error:
        assert error.reason == "schema_mismatch", error.message
        if "nested" in error.message:
            return  # it refers to itself for ever
        found = False
    assert found == jsonschema.validators.validator_for(root)(root).is_valid(value)


def test_names_of_a_schema_are_looked_for_once():
    """Each reference by ``$id`` would go through all of it."""
    names = {f"d{n}": {"$id": f"d{n}", "properties": {"x": {"type": "string"}}} for n in range(500)}
    schema = {"$id": "http://localhost:1/root", "definitions": names, "properties": {"v": {"items": {"$ref": "d7"}}}}
    crawled = JsonSchema(Schema("JSON", json.dumps(schema), ()))._validator._resolver._registry
    assert "http://localhost:1/d7" in crawled
    values = [{"x": "y"}] * 200
    assert decode({"text": "x", "v": values}, schema=schema).text == "x"
    with pytest.raises(PoisonError, match="at properties/v/items/properties/x/type"):
        decode({"text": "x", "v": [*values, {"x": 1}]}, schema=schema)


def test_a_value_nested_too_deeply_for_its_schema_is_refused():
    schema = {"properties": {"text": {"type": "string"}, "a": {"$ref": "#"}}}
    for levels, taken in ((100, True), (130, False), (900, False)):
        deep = b'{"text":"x","a":' * levels + b"{}" + b"}" * levels
        if taken:
            assert decode(deep, schema=schema).text == "x"
            continue
        with pytest.raises(PoisonError, match="nested too deeply") as caught:
            decode(deep, schema=schema)
        assert caught.value.reason == "schema_mismatch"


@pytest.mark.parametrize("draft", [DRAFT, LATEST])
def test_a_schema_that_never_comes_to_an_end_is_given_up(draft: str):
    """However much of the stack is in use: what jsonschema stands on panics at its end, and a panic is no Exception."""

    def check(frames: int) -> None:
        if frames:
            return check(frames - 1)
        schema = {"$schema": draft, "allOf": [{"$ref": "#"}]}
        with pytest.raises(PoisonError, match="nested too deeply"):
            decode({"text": "x"}, schema=schema)
        return None

    for frames in range(0, 60, 3):
        check(frames)
    deep = functools.reduce(lambda inner, _: {"properties": {"text": inner}}, range(150), {})
    with pytest.raises(PoisonError, match="not JSON Schema") as caught:
        decode({"text": "x"}, schema={"$schema": draft, **deep})
    assert caught.value.reason == "bad_schema"


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b'{"n": NaN}', b"[" * 100_000])
def test_what_is_not_json_is_refused(body: bytes):
    with pytest.raises(PoisonError) as caught:
        decode(body)
    assert caught.value.reason in ("invalid_json", "invalid_utf8")
