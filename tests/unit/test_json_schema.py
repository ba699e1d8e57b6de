"""JSON by a JSON Schema: what it rules out is refused, by the schema's words alone."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.unit.test_avro import Registry, framed
from workers.codecs import decoder_for
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


@pytest.mark.timeout(60)
@pytest.mark.parametrize("draft", [{}, {"$schema": DRAFT}])
@pytest.mark.parametrize(
    ("inner", "value"),
    [
        ({"pattern": "^(a+)+$"}, "a" * 5_000 + "b"),
        ({"patternProperties": {"^(a+)+$": True}, "additionalProperties": False}, {"a" * 5_000 + "b": 1}),
        ({"uniqueItems": True}, [{"a": n} for n in range(50_000)] + [{"a": 1}]),
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
        {"unevaluatedProperties": False, "patternProperties": {"a": {}}},
    ],
)
def test_a_schema_without_a_bound_is_not_taken(schema: object):
    with pytest.raises(PoisonError, match=r"RE2|not taken together") as caught:
        decode({"text": "x"}, schema=schema)
    assert caught.value.reason == "bad_schema"


def test_a_value_nested_too_deeply_for_its_schema_is_refused():
    schema = {"properties": {"text": {"type": "string"}, "a": {"$ref": "#"}}}
    deep = b'{"text":"x","a":' * 900 + b"{}" + b"}" * 900
    with pytest.raises(PoisonError) as caught:
        decode(deep, schema=schema)
    assert caught.value.reason == "schema_mismatch"


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b'{"n": NaN}', b"[" * 100_000])
def test_what_is_not_json_is_refused(body: bytes):
    with pytest.raises(PoisonError) as caught:
        decode(body)
    assert caught.value.reason in ("invalid_json", "invalid_utf8")
