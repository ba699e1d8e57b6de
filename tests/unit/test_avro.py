"""Avro in and out: every type, framed and plain, and bytes that are meant to hurt."""

from __future__ import annotations

import datetime
import functools
import io
import json
import re
import struct
import uuid
from decimal import Decimal
from pathlib import Path
from typing import Any

import fastavro
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.codecs import decoder_for, fingerprint_of, renderer_for
from workers.codecs.avro import AvroSchema
from workers.codecs.avro_bounds import MOST_EMPTY_ITEMS, MOST_LEVELS
from workers.codecs.avro_record import AvroRenderer
from workers.codecs.base import Decoder
from workers.codecs.wire import MOST_READ, RegisteredSchemas
from workers.errors import PoisonError, RetryableError, SettingsError
from workers.records import Document, Embedding, Origin, Record
from workers.schema_registry import Schema
from workers.settings import Settings

ORIGIN = Origin("documents", 2, 41, epoch=1)
NOON = datetime.datetime(2026, 5, 1, 12, 0, 0, 123000, tzinfo=datetime.UTC)
REGISTRY = {"url": "http://localhost:1"}


def logical(kind: str, name: str, **more: object) -> dict[str, object]:
    return {"type": kind, "logicalType": name, **more}


EVERYTHING: dict[str, Any] = {
    "type": "record",
    "name": "Row",
    "namespace": "shop",
    "fields": [
        {"name": "text", "type": ["null", "string"]},
        {"name": "number", "type": "long"},
        {"name": "ratio", "type": "double"},
        {"name": "flag", "type": "boolean"},
        {"name": "raw", "type": "bytes"},
        {"name": "hash", "type": {"type": "fixed", "name": "Hash", "size": 3}},
        {"name": "kind", "type": {"type": "enum", "name": "Kind", "symbols": ["BOOK", "FILM"]}},
        {"name": "price", "type": logical("bytes", "decimal", precision=10, scale=2)},
        {"name": "at", "type": logical("long", "timestamp-millis")},
        {"name": "local", "type": logical("long", "local-timestamp-micros")},
        {"name": "day", "type": logical("int", "date")},
        {"name": "hour", "type": logical("int", "time-millis")},
        {"name": "uid", "type": logical("string", "uuid")},
        {"name": "tags", "type": {"type": "array", "items": "string"}},
        {"name": "map", "type": {"type": "map", "values": ["null", "int"]}},
        {
            "name": "author",
            "type": {"type": "record", "name": "Author", "fields": [{"name": "name", "type": "string"}]},
        },
        {"name": "editor", "type": ["null", "Author"]},
    ],
}
UID = uuid.UUID("12345678-1234-5678-1234-567812345678")
ROW: dict[str, Any] = {
    "text": "some text",
    "number": 1 << 62,
    "ratio": 0.5,
    "flag": True,
    "raw": b"\xff\x00",
    "hash": b"abc",
    "kind": "FILM",
    "price": Decimal("12.50"),
    "at": NOON,
    "local": NOON.replace(tzinfo=None),
    "day": NOON.date(),
    "hour": NOON.time(),
    "uid": UID,
    "tags": ["a", "b"],
    "map": {"x": 1, "y": None},
    "author": {"name": "Ann"},
    "editor": None,
}


class Registry:
    """Schemas by id; counts how often it is asked."""

    def __init__(self, **known: str | Schema) -> None:
        self.known: dict[object, Schema] = {}
        for name, schema in known.items():
            self.known[int(name[1:])] = schema if isinstance(schema, Schema) else Schema("AVRO", schema)
        self.asked = 0

    def schema(self, id: object) -> Schema | None:
        self.asked += 1
        return self.known.get(id)


def write(schema: object, value: object) -> bytes:
    out = io.BytesIO()
    fastavro.schemaless_writer(out, fastavro.parse_schema(schema), value)
    return out.getvalue()


def framed(id: int, body: bytes) -> bytes:
    return struct.pack(">bI", 0, id) + body


def decode(
    value: bytes | None, registry: Registry, headers: tuple[tuple[str, bytes | None], ...] = (), **source: object
) -> Document:
    include = source.pop("include", [])
    made = Settings(
        source={"format": "avro", **source}, registry=REGISTRY, outputs=[{"topic": "vectors", "include": include}]
    )
    found = decoder_for(made, registry).decode(Record(ORIGIN, b"key", value, 0, headers))
    assert isinstance(found, Document)
    return found


def refusal(value: bytes, registry: Registry, **given: Any) -> PoisonError:
    with pytest.raises(PoisonError) as caught:
        decode(value, registry, **given)
    assert caught.value.stage in ("decode", "text")
    return caught.value


SHOP = Registry(_7=json.dumps(EVERYTHING))
VALUE = framed(7, write(EVERYTHING, ROW))


# ---- in


def test_every_type_is_included_as_json_has_it():
    names = [field["name"] for field in EVERYTHING["fields"]] + ["author.name", "map.x", "nowhere"]
    assert decode(VALUE, SHOP, include=names).fields == {
        "text": "some text",
        "number": 1 << 62,
        "ratio": 0.5,
        "flag": True,
        "raw": "/wA=",
        "hash": "YWJj",
        "kind": "FILM",
        "price": "12.50",
        "at": "2026-05-01T12:00:00.123000Z",
        "local": "2026-05-01T12:00:00.123000",
        "day": "2026-05-01",
        "hour": "12:00:00.123000",
        "uid": str(UID),
        "tags": ["a", "b"],
        "map": {"x": 1, "y": None},
        "author": {"name": "Ann"},
        "editor": None,
        "author.name": "Ann",
        "map.x": 1,
        "nowhere": None,
    }


def test_templates_and_ids_are_made_of_avros_types():
    found = decode(
        VALUE, SHOP, text="{text} by {author.name}, {price}, {day}, {kind}, {map.y|none}", id="{uid}/{number}"
    )
    assert found.text == "some text by Ann, 12.50, 2026-05-01, FILM, none"
    assert found.id == f"{UID}/{1 << 62}"
    assert decode(VALUE, SHOP, id="hash").id == "YWJj"


@pytest.mark.parametrize("field", ["raw", "author", "tags", "price"])
def test_what_is_no_text_is_not_embedded(field: str):
    assert refusal(VALUE, SHOP, text=field).reason == "wrong_type"
    if field != "price":
        assert refusal(VALUE, SHOP, text="{text} {" + field + "}").reason == "wrong_type"
    assert refusal(VALUE, SHOP, id="ratio").reason == "wrong_type"


def test_a_null_is_a_missing_field():
    value = framed(7, write(EVERYTHING, ROW | {"text": None}))
    assert refusal(value, SHOP).reason == "missing_field"
    assert decode(value, SHOP, text="{text|none}").text == "none"


def test_a_schema_is_read_once():
    registry = Registry(_7=json.dumps(EVERYTHING))
    made = decoder_for(Settings(source={"format": "avro"}, registry=REGISTRY), registry)
    for _ in range(3):
        made.decode(Record(ORIGIN, b"key", VALUE, 0))
    assert registry.asked == 1


def test_a_schema_in_use_is_kept_while_others_come_and_go():
    registry = Registry(**{f"_{id}": '"long"' for id in range(2 * MOST_READ)})
    schemas = RegisteredSchemas(registry, "AVRO", AvroSchema)
    for id in range(2 * MOST_READ):
        for each in (0, id):
            schemas.of(Record(ORIGIN, b"k", framed(each, b""), 0))
    assert registry.asked == 2 * MOST_READ


def test_each_record_is_read_by_its_own_schema():
    old = {"type": "record", "name": "Row", "fields": [{"name": "text", "type": "string"}]}
    new = {
        "type": "record",
        "name": "Row",
        "fields": [{"name": "n", "type": "int"}, {"name": "text", "type": "string"}],
    }
    registry = Registry(_1=json.dumps(old), _2=json.dumps(new))
    assert decode(framed(1, write(old, {"text": "old"})), registry).text == "old"
    assert decode(framed(2, write(new, {"n": 1, "text": "new"})), registry).text == "new"


def test_a_schema_may_refer_to_others():
    author = {"type": "record", "name": "shop.Author", "fields": [{"name": "name", "type": "string"}]}
    row = {"type": "record", "name": "shop.Row", "fields": [{"name": "author", "type": "shop.Author"}]}
    registry = Registry(_1=Schema("AVRO", json.dumps(row), (("shop.Author", json.dumps(author)),)))
    body = write({**row, "fields": [{"name": "author", "type": author}]}, {"author": {"name": "Ann"}})
    assert decode(framed(1, body), registry, text="author.name").text == "Ann"


def test_the_schemas_id_may_stand_in_a_header():
    guid = uuid.uuid4()
    registry = Registry(_7=json.dumps(EVERYTHING))
    registry.known[guid] = registry.known[7]
    body = VALUE[5:]
    for header in (b"\x01" + guid.bytes, VALUE[:5]):
        assert decode(body, registry, (("other", b"x"), ("__value_schema_id", header))).text == "some text"
    for header in (b"", b"\x01short", b"\x02" + guid.bytes, b"\x00\x00"):
        found = refusal(body, registry, headers=(("__value_schema_id", header),))
        assert found.reason == "not_framed"
    missing = refusal(body, registry, headers=(("__value_schema_id", b"\x01" + uuid.uuid4().bytes),))
    assert missing.reason == "unknown_schema"


@pytest.mark.parametrize(
    ("value", "reason", "says"),
    [
        (b"", "not_framed", "ends within"),
        (b"\0\0\0", "not_framed", "ends within"),
        (b'{"text": "x"}', "not_framed", "source.schema_file reads values without"),
        (b"\x01" + b"\0" * 30, "not_framed", "a zero and a schema's id"),
        (framed(8, b""), "unknown_schema", "no schema with the id 8"),
        (framed(9, b""), "other_format", "of Protobuf, and not of Avro"),
        (framed(10, b""), "bad_schema", "id 10 is not one that we take"),
        (framed(11, b""), "bad_schema", "id 11 is not one that we take"),
        (framed(7, b""), "invalid_avro", "not Avro of its schema"),
        (VALUE + b"\0", "invalid_avro", "1 bytes are left over"),
        (framed(12, b"\x02"), "not_an_object", "not an object"),
    ],
)
def test_what_is_not_as_it_should_be_has_its_reason(value: bytes, reason: str, says: str):
    more = {
        "_9": Schema("PROTOBUF", ""),
        "_10": "{",
        "_11": '{"type": "record", "name": "R", "fields": [{"name": "x", "type": "Nowhere"}]}',
        "_12": '"long"',
    }
    found = refusal(value, Registry(_7=json.dumps(EVERYTHING), **more))
    assert (found.stage, found.reason) == ("decode", reason)
    assert says in found.message


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        (logical("bytes", "decimal", precision=2, scale=5), "not Avro's"),
        ({"type": "enum", "name": "E", "symbols": ["a-b"]}, "not Avro's"),
        ({"type": "record", "name": "R", "fields": [{"name": "x", "type": "int", "default": "one"}]}, "not Avro's"),
        (
            {
                "type": "record",
                "name": "R",
                "fields": [{"name": "x", "type": {"type": "fixed", "name": "R", "size": 1}}],
            },
            "not Avro's",
        ),
        (
            functools.reduce(lambda inner, _: ["null", {"type": "map", "values": inner}], range(250), "long"),
            "too deeply",
        ),
    ],
    ids=["scale", "symbol", "default", "name", "deep"],
)
def test_a_schema_that_fastavro_does_not_take_is_bad_and_ends_nothing(schema: object, says: str):
    text = json.dumps(schema)
    with pytest.raises(ValueError, match=says):
        AvroSchema(Schema("AVRO", text))
    found = refusal(framed(1, b"\0"), Registry(_1=text))
    assert (found.stage, found.reason) == ("decode", "bad_schema")


@pytest.mark.parametrize("error", [RuntimeError("secret"), RecursionError(), KeyError("secret")])
def test_whatever_reading_a_schema_raises_the_schema_is_bad(error: Exception):
    asked = []

    def read(schema: Schema) -> object:
        asked.append(schema)
        raise error

    schemas = RegisteredSchemas(Registry(_1='"long"'), "AVRO", read)
    for _ in range(2):
        with pytest.raises(PoisonError) as caught:
            schemas.of(Record(ORIGIN, b"k", framed(1, b""), 0))
        assert caught.value.reason == "bad_schema"
        assert type(error).__name__ in caught.value.message and "secret" not in caught.value.message
    assert len(asked) == 1


def test_what_the_registry_or_the_machine_lacks_is_not_the_schemas_fault():
    faults: list[Exception] = [OSError(28, "No space left on device"), MemoryError()]

    def read(schema: Schema) -> object:
        if faults:
            raise faults.pop(0)
        return schema

    class Down(Registry):
        def schema(self, id: object) -> Schema | None:
            raise RetryableError("down")

    record = Record(ORIGIN, b"k", framed(1, b""), 0)
    with pytest.raises(RetryableError, match="down"):
        RegisteredSchemas(Down(), "AVRO", read).of(record)
    schemas = RegisteredSchemas(Registry(_1='"long"'), "AVRO", read)
    for _ in range(2):
        with pytest.raises(RetryableError, match="id 1 cannot be read here now"):
            schemas.of(record)
    assert schemas.of(record)[0] == Schema("AVRO", '"long"')


def test_fields_that_a_files_schema_does_not_have_are_said_at_the_start(tmp_path: Path):
    path = tmp_path / "row.avsc"
    path.write_text(json.dumps(EVERYTHING))

    def made(
        schema: Path = path, include: list[str] | None = None, prompt: str | None = None, **source: Any
    ) -> Decoder:
        return decoder_for(
            Settings(
                model={"prompt_text": prompt},
                source={"format": "avro", "schema_file": schema, **source},
                outputs=[{"topic": "v", "include": include or []}],
            )
        )

    found = made(text="{text} {author.name} {nowhere|none}", id="uid", include=["map.any", "editor.name"])
    assert found.decode(Record(ORIGIN, b"k", VALUE[5:], 0)).id == str(UID)  # type: ignore[union-attr]
    for given_, says in (
        ({"text": "titel"}, "source.text names titel"),
        ({"text": "titel", "id": "x"}, "source.text names titel"),
        ({"text": "{text.x}"}, "source.text names text.x"),
        ({"text": "{author.nam}"}, "source.text names author.nam"),
        ({"id": "nowhere"}, "source.id names nowhere"),
        ({"prompt": "title: {titel} | "}, "model.prompt_text names titel"),
        ({"include": ["text", "no"]}, "outputs.0.include names no"),
    ):
        with pytest.raises(SettingsError, match=re.escape(f"{says}, which {path} does not have")):
            made(**given_)
    events = {
        "type": "record",
        "name": "Envelope",
        "fields": [{"name": "after", "type": ["null", EVERYTHING]}, {"name": "op", "type": "string"}],
    }
    event = tmp_path / "event.avsc"
    event.write_text(json.dumps(events))
    made(event, envelope="debezium")
    made(envelope="debezium")
    with pytest.raises(SettingsError, match=r"source\.text names op"):
        made(event, envelope="debezium", text="op")


# ---- bytes that are meant to hurt

LIST = {"type": "record", "name": "L", "fields": [{"name": "next", "type": ["null", "L"]}]}
TREE = {"type": "record", "name": "T", "fields": [{"name": "c", "type": {"type": "array", "items": "T"}}]}
MAPS = {"type": "record", "name": "M", "fields": [{"name": "m", "type": {"type": "map", "values": "M"}}]}
NULLS = {"type": "record", "name": "N", "fields": [{"name": "n", "type": {"type": "array", "items": "null"}}]}
EMPTY = {"type": "record", "name": "E", "fields": []}
EMPTIES = {"type": "record", "name": "A", "fields": [{"name": "a", "type": {"type": "array", "items": EMPTY}}] * 1}
MANY = {
    "type": "record",
    "name": "B",
    "fields": [{"name": "b", "type": {"type": "array", "items": {"type": "array", "items": "null"}}}],
}
TEXTS = {"type": "array", "items": "string"}


@pytest.mark.parametrize("depth", [MOST_LEVELS + 1, 10_000, 1_000_000])
@pytest.mark.parametrize(("schema", "level"), [(LIST, b"\x02"), (TREE, b"\x02"), (MAPS, b"\x02\x00")])
def test_a_value_nested_a_million_times_is_refused(schema: object, level: bytes, depth: int):
    with pytest.raises(PoisonError) as caught:
        AvroSchema(Schema("AVRO", json.dumps(schema))).read(level * depth)
    assert caught.value.reason == "too_deep"


def test_a_value_nested_as_deep_as_we_take_is_read():
    found = AvroSchema(Schema("AVRO", json.dumps(LIST))).read(b"\x02" * 50 + b"\x00")
    for _ in range(50):
        found = found["next"]  # type: ignore[index]
    assert found == {"next": None}


@pytest.mark.parametrize("schema", [NULLS, EMPTIES])
def test_a_list_of_nothing_is_bounded(schema: object):
    read = AvroSchema(Schema("AVRO", json.dumps(schema))).read
    with pytest.raises(PoisonError) as caught:
        read(b"\xfe\xff\xff\xff\xff\xff\xff\xff\x7f\x00")
    assert caught.value.reason == "too_many_items"
    (items,) = read(
        write(schema, {next(iter(schema["fields"]))["name"]: [None if schema is NULLS else {}] * 5})
    ).values()  # type: ignore[index,attr-defined]
    assert len(items) == 5


def test_many_lists_of_nothing_are_bounded_together():
    one = write("long", MOST_EMPTY_ITEMS) + b"\0"
    body = write("long", 1000) + one * 1000 + b"\0"
    with pytest.raises(PoisonError) as caught:
        AvroSchema(Schema("AVRO", json.dumps(MANY))).read(body)
    assert caught.value.reason == "too_many_items"


WIDE = {
    "type": "record",
    "name": "W",
    "fields": [{"name": "b", "type": "boolean"}, *({"name": f"n{number}", "type": "null"} for number in range(300))],
}
# Each level is in the one above it twice, and takes no bytes.
DOUBLED = functools.reduce(
    lambda inner, level: {
        "type": "record",
        "name": f"D{level}",
        "fields": [{"name": "a", "type": inner}, {"name": "b", "type": "null" if inner == "null" else inner["name"]}],
    },
    range(40),
    "null",
)


@pytest.mark.parametrize(
    ("schema", "body"),
    [
        ({"type": "array", "items": WIDE}, write("long", 5_000) + b"\1" * 5_000 + b"\0"),
        ({"type": "map", "values": WIDE}, write("long", 5_000) + b"\0\1" * 5_000 + b"\0"),
        (DOUBLED, b""),
    ],
    ids=["array", "map", "doubled"],
)
def test_fields_of_nothing_are_bounded(schema: object, body: bytes):
    """Of five kilobytes they would take 31 megabytes, and of none at all any number."""
    with pytest.raises(PoisonError) as caught:
        AvroSchema(Schema("AVRO", json.dumps(schema))).read(body)
    assert (caught.value.stage, caught.value.reason) == ("decode", "too_many_items")


def test_fields_of_nothing_in_a_value_of_use_are_read():
    body = write("long", 30) + b"\1" * 30 + b"\0"
    found = AvroSchema(Schema("AVRO", json.dumps({"type": "array", "items": WIDE}))).read(body)
    assert found == [{"b": True, **{f"n{number}": None for number in range(300)}}] * 30
    thin = {"type": "record", "name": "T", "fields": [{"name": "a", "type": "int"}, {"name": "n", "type": "null"}]}
    body = write("long", 20_000) + b"\2" * 20_000 + b"\0"
    assert len(AvroSchema(Schema("AVRO", json.dumps({"type": "array", "items": thin}))).read(body)) == 20_000


@pytest.mark.parametrize(
    "body", [b"\xfe\xff\xff\xff\xff\xff\xff\xff\x7f", b"\x02\xfe\xff\xff\xff\x0f", b"\xff" * 12, b"\x01\x01\x02\x01"]
)
def test_a_length_beyond_the_value_is_refused(body: bytes):
    with pytest.raises(PoisonError) as caught:
        AvroSchema(Schema("AVRO", json.dumps(TEXTS))).read(body)
    assert caught.value.reason == "invalid_avro"


SCHEMAS = [AvroSchema(Schema("AVRO", json.dumps(each))) for each in (EVERYTHING, LIST, TREE, MAPS, NULLS, MANY, TEXTS)]


@settings(deadline=None, max_examples=300)
@given(schema=st.sampled_from(SCHEMAS), body=st.binary(max_size=200))
def test_any_bytes_are_a_value_or_poison(schema: AvroSchema, body: bytes):
    try:
        schema.read(body)
    except PoisonError as error:
        assert error.stage == "decode"
        assert error.__suppress_context__ or error.__context__ is None


# ---- out


def render(vector: np.ndarray, scale: np.float32 | None = None, **given: Any) -> tuple[dict[str, Any], Any]:
    precision = given.pop("precision", "float32")
    output: dict[str, Any] = {"topic": "vectors", "format": "avro", "precision": precision}
    output |= {"include": list(given.get("fields", {}))}
    if precision.endswith("_ranges"):
        output["ranges"] = "ranges.npz"
    made = Settings(outputs=[output], registry=REGISTRY).outputs[0]
    renderer = renderer_for(made, dim=2, model="a-model", fingerprint="ab12", schema_id=lambda _: 77)
    assert isinstance(renderer, AvroRenderer)
    document = Document(given.get("id", "key"), "x", given.get("fields", {}))
    headers = (("__value_schema_id", b"\1"), ("__key_schema_id", b"\2"), ("embedding-fingerprint", b"old"), ("a", b"b"))
    record = Record(ORIGIN, b"k", b"v", 12, given.get("headers", headers))
    message = renderer.render(record, Embedding(document, vector, tokens=7, truncated=True), vector, scale)
    assert (message.topic, message.key, message.timestamp_ms) == ("vectors", b"k", 12)
    assert message.value is not None
    assert message.value[:5] == framed(77, b"")
    schema = fastavro.parse_schema(json.loads(renderer.schema.text))
    return fastavro.schemaless_reader(io.BytesIO(message.value[5:]), schema, None), message


def test_an_avro_record_has_the_documented_fields():
    value, message = render(np.array([0.6, -0.8], np.float32), fields={"title": "ü", "a.b-c": [1]})
    assert list(value.items()) == [
        ("id", "key"),
        ("embedding", [pytest.approx(0.6), pytest.approx(-0.8)]),
        ("dim", 2),
        ("precision", "float32"),
        ("scale", None),
        ("model", "a-model"),
        ("fingerprint", "ab12"),
        ("tokens", 7),
        ("truncated", True),
        ("title", "ü"),
        ("a_b_c", "[1]"),
    ]
    assert message.headers == (("__key_schema_id", b"\2"), ("a", b"b"), ("embedding-fingerprint", b"ab12"))
    assert fingerprint_of(message.value, message.headers) == "ab12"


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [
        ("float16", "f2"),
        ("int8", "i1"),
        ("int8_ranges", "i1"),
        ("uint8_ranges", "u1"),
        ("binary", "i1"),
        ("ubinary", "u1"),
    ],
)
def test_components_come_back_exactly(precision: str, dtype: str):
    vector = np.array([0.1, -0.3333], "f2") if dtype == "f2" else np.array([np.iinfo(dtype).min, 7], dtype)
    scale = np.float32(0.0123) if precision == "int8" else None
    value, _ = render(vector, scale, precision=precision)
    assert np.array_equal(np.array(value["embedding"], dtype), vector)
    assert value["scale"] is None if scale is None else np.float32(value["scale"]) == scale


@given(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.lists(st.integers(), max_size=3)
)
@settings(deadline=None)
def test_included_fields_keep_their_types(value: object):
    found = render(np.array([1, 0], np.float32), fields={"field": value})[0]["field"]
    simple = value is None or isinstance(value, bool | float | str) or (isinstance(value, int) and abs(value) < 1 << 63)
    assert found == value if simple else json.loads(found) == value
    assert type(found) is type(value) or not simple


def test_the_schema_says_which_vector_space_it_is():
    made = Settings(outputs=[{"topic": "v", "format": "avro", "include": ["a.b"]}], registry=REGISTRY).outputs[0]
    renderer = renderer_for(made, dim=2, model="a-model", fingerprint="ab12")
    assert isinstance(renderer, AvroRenderer)
    schema = json.loads(renderer.schema.text)
    assert (schema["name"], schema["fingerprint"], schema["dim"], schema["precision"], schema["model"]) == (
        *("stream_embedder.Embedding", "ab12", 2, "float32", "a-model"),
    )
    assert "fingerprint ab12" in schema["doc"]
    assert schema["fields"][-1]["doc"] == "a.b of the source's record"


def test_what_avro_cannot_hold_is_refused():
    for given_, reason in (({"id": "\ud800"}, "lone_surrogate"), ({"fields": {"f": "\udfff"}}, "lone_surrogate")):
        with pytest.raises(PoisonError) as caught:
            render(np.array([1, 0], np.float32), **given_)
        assert (caught.value.stage, caught.value.reason) == ("output", reason)
    with pytest.raises(PoisonError, match="not finite"):
        render(np.array([np.inf, 0], np.float32))


@pytest.mark.parametrize(
    ("outputs", "registry", "complaint"),
    [
        ([{"topic": "v", "format": "avro"}], {}, r"outputs\.format avro needs registry\.url"),
        ([{"topic": "v", "format": "avro", "include": ["a.b", "a_b"]}], REGISTRY, "would be called a_b in Avro"),
        ([{"topic": "v", "format": "avro", "include": ["to.kens", "tokens"]}], REGISTRY, "uses itself"),
    ],
)
def test_settings_that_cannot_be(outputs: list[dict[str, object]], registry: dict[str, str], complaint: str):
    with pytest.raises(ValueError, match=complaint):
        Settings(outputs=outputs, registry=registry)
