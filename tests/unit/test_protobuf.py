"""Protobuf in: what its types become, which message a record is, and schemas that do not compile."""

from __future__ import annotations

import base64
import functools
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.test_avro import Registry, framed
from workers.codecs import decoder_for, protobuf_bounds
from workers.codecs.protobuf_schema import ProtobufSchema, compiled
from workers.errors import EnvironmentFault, PoisonError, SettingsError
from workers.records import Document, Origin, Record
from workers.schema_registry import Schema
from workers.settings import Settings

ORIGIN = Origin("documents", 2, 41, epoch=1)
TEXT = """
syntax = "proto3";
package shop;
import "parts/author.proto";
import "google/protobuf/timestamp.proto";
import "google/protobuf/duration.proto";
import "google/protobuf/wrappers.proto";
import "google/protobuf/struct.proto";
import "google/protobuf/any.proto";
import "google/type/decimal.proto";
import "confluent/meta.proto";
import "confluent/type/decimal.proto";

message First { map<string, int32> entries = 1; message Inner { string text = 1; message Deep { string text = 1; } } }
message Row {
  string text = 1 [(confluent.field_meta).doc = "what it says"];
  optional string note = 2;
  int64 number = 3;
  uint64 large = 4;
  bytes raw = 5;
  Kind kind = 6;
  repeated string tags = 7;
  map<int32, string> names = 8;
  map<bool, Author> authors = 9;
  Author author = 10;
  google.protobuf.Timestamp at = 11;
  google.protobuf.Duration took = 12;
  google.protobuf.StringValue maybe = 13;
  google.protobuf.Struct more = 14;
  google.protobuf.Any any = 15;
  google.type.Decimal rate = 16;
  confluent.type.Decimal price = 17;
  oneof one { string left = 18; int32 right = 19; }
  double ratio = 20;
  enum Kind { BOOK = 0; FILM = 1; }
}
"""
AUTHOR = 'syntax = "proto3"; package shop; message Author { string name = 1; }'
SCHEMA = Schema("PROTOBUF", TEXT, (("parts/author.proto", AUTHOR),))
ROW = (1,)
INCLUDE = [
    *(
        "text",
        "note",
        "number",
        "large",
        "raw",
        "kind",
        "tags",
        "names",
        "authors",
        "author",
        "at",
        "took",
        "maybe",
        "more",
    ),
    *("any", "rate", "price", "left", "right", "ratio"),
]


@functools.cache
def schema() -> ProtobufSchema:
    return ProtobufSchema(SCHEMA)


@functools.cache
def decoder(**source: Any) -> Any:
    made = Settings(
        source={"format": "protobuf", **source},
        registry={"url": "http://localhost:1"},
        outputs=[{"topic": "v", "include": INCLUDE}],
    )
    return decoder_for(made, Registry(_7=SCHEMA))


def row(**fields: Any) -> Any:
    return schema().named("shop.Row")(**fields)


def value(body: bytes, indexes: bytes = b"\x02\x02") -> bytes:
    return framed(7, indexes + body)


def decode(body: bytes, **source: Any) -> Document:
    found = decoder(**source).decode(Record(ORIGIN, b"key", body, 0))
    assert isinstance(found, Document)
    return found


def refusal(body: bytes, **source: Any) -> PoisonError:
    with pytest.raises(PoisonError) as caught:
        decode(body, **source)
    return caught.value


def test_every_type_is_included_as_json_has_it():
    found = row(
        text="some text",
        number=-1,
        large=1 << 63,
        raw=b"\xff\x00",
        kind=1,
        tags=["a"],
        names={5: "five"},
        ratio=0.5,
        right=0,
    )
    found.authors[True].name = "Ann"
    found.author.name = "Bob"
    found.at.FromJsonString("2026-05-01T12:00:00.123456789Z")
    found.took.FromJsonString("1.5s")
    found.maybe.value = ""
    found.more.update({"a": [1, None, {"b": True}]})
    found.any.type_url, found.any.value = "type.googleapis.com/x.Y", b"\x01"
    found.rate.value = "0.19"
    found.price.value, found.price.scale = (-1250).to_bytes(2, "big", signed=True), 2
    assert decode(value(found.SerializeToString())).fields == {
        "text": "some text",
        "note": None,
        "number": -1,
        "large": 1 << 63,
        "raw": "/wA=",
        "kind": "FILM",
        "tags": ["a"],
        "names": {"5": "five"},
        "authors": {"true": {"name": "Ann"}},
        "author": {"name": "Bob"},
        "at": "2026-05-01T12:00:00.123456789Z",
        "took": "1.500s",
        "maybe": "",
        "more": {"a": [1.0, None, {"b": True}]},
        "any": {"type_url": "type.googleapis.com/x.Y", "value": "AQ=="},
        "rate": "0.19",
        "price": "-12.50",
        "left": None,
        "right": 0,
        "ratio": 0.5,
    }


def test_what_is_not_set_is_null_where_that_shows():
    found = decode(value(row(text="x").SerializeToString())).fields
    assert {name for name, each in found.items() if each is None} == {
        *("note", "author", "at", "took", "maybe", "more", "any", "rate", "price", "left", "right")
    }
    assert (found["number"], found["raw"], found["kind"], found["tags"], found["names"]) == (0, "", "BOOK", [], {})


def test_templates_and_ids_are_made_of_its_types():
    found = row(text="x", number=12, kind=1)
    found.price.value, found.price.scale = b"\x05", 1
    body = value(found.SerializeToString())
    assert decode(body, text="{text} {kind} {price} {author.name|nobody}", id="{number}").text == "x FILM 0.5 nobody"
    assert decode(body, id="{number}/{kind}").id == "12/FILM"
    assert refusal(body, text="raw").reason == "wrong_type"
    assert refusal(value(b""), text="note").reason == "missing_field"


def test_an_enums_number_without_a_name_stays_a_number():
    assert decode(value(row(text="x", kind=9).SerializeToString())).fields["kind"] == 9


@pytest.mark.parametrize(
    ("indexes", "name"),
    [
        (b"\x00", "shop.First"),
        (b"\x02\x00", "shop.First"),
        (b"\x02\x02", "shop.Row"),
        (b"\x04\x00\x00", "shop.First.Inner"),
        (b"\x06\x00\x00\x00", "shop.First.Inner.Deep"),
    ],
)
def test_a_record_says_which_message_it_is(indexes: bytes, name: str):
    """Entries of maps do not count, though the compiler makes messages of them."""
    body = schema().named(name)(**({} if name == "shop.First" else {"text": name})).SerializeToString()
    if name == "shop.First":
        assert refusal(value(body, indexes)).message == "field text is missing or null, and has no default"
    else:
        assert decode(value(body, indexes)).text == name


@pytest.mark.parametrize(
    "indexes", [b"", b"\x02", b"\x02\x08", b"\x02\x01", b"\x04\x02\x00", b"\x01", b"\xfe\xff\xff\xff\x0f", b"\xff" * 10]
)
def test_a_message_that_is_not_there_is_refused(indexes: bytes):
    found = refusal(value(b"", indexes))
    assert (found.stage, found.reason) == ("decode", "not_framed")


def test_the_newer_header_names_schema_and_message():
    made = decoder()
    record = Record(
        ORIGIN, b"k", row(text="x").SerializeToString(), 0, (("__value_schema_id", framed(7, b"\x02\x02")),)
    )
    assert made.decode(record).text == "x"


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=200), st.binary(max_size=3) | st.just(b"\x02\x02"))
def test_any_bytes_are_a_document_or_poison(body: bytes, indexes: bytes):
    try:
        decode(value(body, indexes))
    except PoisonError as error:
        assert error.stage in ("decode", "text", "output")


def test_a_value_nested_too_deeply_is_refused():
    name = "google.protobuf.Value"
    text = 'syntax = "proto3"; import "google/protobuf/struct.proto"; message R { google.protobuf.Value text = 1; }'
    registry = Registry(_1=Schema("PROTOBUF", text))
    made = decoder_for(Settings(source={"format": "protobuf"}, registry={"url": "http://localhost:1"}), registry)
    body = b""
    for _ in range(5_000):  # lists of one list each
        inner = b"\x0a" + _varint(len(body)) + body
        body = b"\x32" + _varint(len(inner)) + inner
    with pytest.raises(PoisonError) as caught:
        made.decode(Record(ORIGIN, b"k", framed(1, b"\x00\x0a" + _varint(len(body)) + body), 0))
    assert caught.value.reason == "invalid_protobuf", name


WIDE = "".join(f"string f{number} = {number + 2};" for number in range(100))

WIDE_2 = "".join(f"optional string f{number} = {number + 2};" for number in range(100))


def test_many_empty_messages_are_refused_before_they_are_parsed():
    """A megabyte of these would take 800."""
    text = f'syntax = "proto3"; message R {{ string text = 1; repeated W w = 2; message W {{ {WIDE} }} }}'
    registry = Registry(_1=Schema("PROTOBUF", text))
    made = decoder_for(Settings(source={"format": "protobuf"}, registry={"url": "http://localhost:1"}), registry)

    def read(count: int) -> Document:
        return made.decode(Record(ORIGIN, b"k", framed(1, b"\x00\x0a\x01x" + b"\x12\x00" * count), 0))

    assert read(20_000).text == "x"
    with pytest.raises(PoisonError) as caught:
        read(500_000)
    assert (caught.value.stage, caught.value.reason) == ("decode", "too_many_items")


@pytest.mark.parametrize(
    ("field", "begin", "end"),
    [
        (f"repeated group W = 2 {{ {WIDE_2} }}", b"\x13", b"\x14"),
        (f"message W {{ {WIDE_2} }} repeated group Z = 3 {{ repeated W w = 2; }}", b"\x1b\x12\x00", b"\x1c"),
        (f"message W {{ {WIDE_2} }} repeated W w = 3; optional group U = 4 {{ }}", b"\x23\x24\x2b\x2c\x1a\x00", b""),
        (f"message W {{ {WIDE_2} }} extensions 2; }} extend R {{ repeated R.W w = 2;", b"\x12\x00", b""),
    ],
    ids=["groups", "messages in groups", "messages after groups", "extensions"],
)
def test_groups_and_extensions_count_as_messages_do(field: str, begin: bytes, end: bytes):
    text = f'syntax = "proto2"; message R {{ optional string text = 1; {field} }}'
    made = decoder_for(
        Settings(source={"format": "protobuf"}, registry={"url": "http://localhost:1"}),
        Registry(_1=Schema("PROTOBUF", text)),
    )

    def read(count: int) -> Document:
        return made.decode(Record(ORIGIN, b"k", framed(1, b"\x00\x0a\x01x" + (begin + end) * count), 0))

    assert read(20_000).text == "x"
    with pytest.raises(PoisonError) as caught:
        read(60_000)
    assert (caught.value.stage, caught.value.reason) == ("decode", "too_many_items")


def test_wrong_bytes_hide_nothing_that_stands_before_them():
    """The parser comes to them last, when it has made room for the rest."""
    text = f'syntax = "proto3"; message R {{ repeated R r = 1; repeated W w = 2; message W {{ {WIDE} }} }}'
    many = b"\x12\x00" * 60_000
    body = b"\x0a" + _varint(len(many)) + many + b"\x0a\x01\xff"
    with pytest.raises(PoisonError) as caught:
        protobuf_bounds.check(ProtobufSchema(Schema("PROTOBUF", text)).named("R").DESCRIPTOR, body)
    assert caught.value.reason == "too_many_items"


@settings(deadline=None)
@given(st.binary(max_size=100))
def test_looking_before_parsing_judges_no_wrong_bytes(body: bytes):
    protobuf_bounds.check(
        schema().named("shop.Row").DESCRIPTOR, body * (1 + protobuf_bounds.SHORT // max(1, len(body)))
    )


def test_a_field_that_is_out_of_range_is_refused_when_it_is_asked_for():
    found = row(text="x")
    found.at.seconds = 1 << 60
    body = value(found.SerializeToString())
    made = decoder_for(
        Settings(source={"format": "protobuf"}, registry={"url": "http://localhost:1"}), Registry(_7=SCHEMA)
    )
    assert made.decode(Record(ORIGIN, b"k", body, 0)).text == "x"
    assert refusal(body).reason == "invalid_protobuf"


@pytest.mark.parametrize(
    ("text", "body"),
    [
        (
            "package google.protobuf; message Struct { map<string, Value> fields = 1; } message Value { oneof kind { double "
            "number_value = 2; } }",
            b"\x0a\x0e\x0a\x01a\x12\x09\x11" + struct.pack("<d", float("nan")),
        ),
        (
            "package google.protobuf; message Timestamp { int64 seconds = 1; int32 nanos = 2; }",
            b"\x08" + b"\xff" * 8 + b"\x7f",
        ),
        ("package google.protobuf; message Timestamp { string seconds = 1; }", b"\x0a\x01x"),
        ("package google.type; message Decimal { string text = 1; }", b"\x0a\x01x"),
        ("package confluent.type; message Decimal { string value = 1; string scale = 2; }", b"\x0a\x01x"),
    ],
    ids=["nan", "late", "alike", "decimal", "other decimal"],
)
def test_a_record_that_is_itself_of_a_known_type_and_wrong_is_refused(text: str, body: bytes):
    made = decoder_for(
        Settings(source={"format": "protobuf"}, registry={"url": "http://localhost:1"}),
        Registry(_1=Schema("PROTOBUF", f'syntax = "proto3"; {text}')),
    )
    with pytest.raises(PoisonError) as caught:
        made.decode(Record(ORIGIN, b"k", framed(1, b"\x00" + body), 0))
    assert (caught.value.stage, caught.value.reason) == ("decode", "invalid_protobuf")


def _varint(number: int) -> bytes:
    out = b""
    while number > 0x7F:
        out += bytes([number & 0x7F | 0x80])
        number >>= 7
    return out + bytes([number])


@pytest.mark.parametrize(
    ("text", "references", "says"),
    [
        ("message {", (), "does not compile: stream-embedder-schema.proto:1:"),
        ('syntax = "proto3"; import "nowhere.proto";', (), "nowhere.proto"),
        ('syntax = "proto3";', (("../../outside.proto", ""),), "leads out of its folder"),
        ('syntax = "proto3";', (("/outside.proto", ""),), "leads out of its folder"),
        ('syntax = "proto3";', (("a\0b", ""),), "leads out of its folder"),
        ('syntax = "proto3";', (("a", ""), ("a/b.proto", "")), "cannot be a folder's, or not together"),
        ('syntax = "proto3";', (("a/b.proto", ""), ("a", "")), "cannot be a folder's, or not together"),
        ('syntax = "proto3";', (("a" * 300, ""),), "cannot be a folder's, or not together"),
    ],
)
def test_a_schema_that_does_not_compile_says_where(text: str, references: tuple[tuple[str, str], ...], says: str):
    with pytest.raises(ValueError, match=says.replace(".", r"\.")):
        ProtobufSchema(Schema("PROTOBUF", text, references))
    made = decoder_for(
        Settings(source={"format": "protobuf"}, registry={"url": "http://localhost:1"}),
        Registry(_1=Schema("PROTOBUF", text, references)),
    )
    with pytest.raises(PoisonError) as found:
        made.decode(Record(ORIGIN, b"k", framed(1, b"\0"), 0))
    assert found.value.reason == "bad_schema"


def test_a_schema_may_be_a_descriptor_in_base64():
    """Confluent's Python client registers them so, and not every registry makes text of it."""
    files = compiled(SCHEMA).file
    texts = {file.name: base64.b64encode(file.SerializeToString()).decode() for file in files}
    both = ProtobufSchema(
        Schema(
            "PROTOBUF", texts["stream-embedder-schema.proto"], (("parts/author.proto", texts["parts/author.proto"]),)
        )
    )
    assert both.names == schema().names
    mixed = ProtobufSchema(Schema("PROTOBUF", texts["stream-embedder-schema.proto"], SCHEMA.references))
    assert mixed.named("shop.Row")(text="x").SerializeToString() == row(text="x").SerializeToString()


# ---- plain, by a file


def plain(path: Path, body: bytes, message: str | None = None) -> str:
    made = decoder_for(Settings(source={"format": "protobuf", "schema_file": path, "message": message}))
    found = made.decode(Record(ORIGIN, b"k", body, 0))
    assert isinstance(found, Document)
    return found.text


def test_plain_values_are_read_by_a_file(tmp_path: Path):
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts/author.proto").write_text(AUTHOR)
    path = tmp_path / "row.proto"
    path.write_text(TEXT)
    body = row(text="x").SerializeToString()
    assert plain(path, body, "shop.Row") == "x"
    with pytest.raises(SettingsError, match=r"source\.message is needed: .*row\.proto has shop\.First, .* shop\.Row"):
        plain(path, body)
    with pytest.raises(SettingsError, match=r"source\.message shop\.No is not there"):
        plain(path, body, "shop.No")
    for path_, missing in (
        ({"text": "{text} {nowhere}"}, "source.text names nowhere"),
        ({"id": "author.no"}, "source.id names author.no"),
    ):
        with pytest.raises(SettingsError, match=f"{missing}, which .*row.proto does not have"):
            decoder_for(Settings(source={"format": "protobuf", "schema_file": path, "message": "shop.Row", **path_}))
    compact = tmp_path / "row.desc"
    compact.write_bytes(compiled(SCHEMA).SerializeToString())
    assert plain(compact, body, "shop.Row") == "x"


def test_a_file_that_is_no_schema_says_so(tmp_path: Path):
    for name, content, says in (
        ("no.proto", b"message {", "does not compile"),
        ("no.desc", b"\xff\xff", "neither"),
        ("utf.proto", b"\xff", "not UTF-8"),
    ):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(EnvironmentFault, match=f"source.schema_file .*{says}"):
            plain(path, b"")
    with pytest.raises(EnvironmentFault, match="cannot be read: No such file"):
        plain(tmp_path / "nowhere.proto", b"")
    for format, name in (("avro", "x.avsc"), ("json_schema", "x.json")):
        (tmp_path / name).write_text('{"type": "nonsense"}')
        with pytest.raises(EnvironmentFault, match="is not a schema that we take"):
            decoder_for(Settings(source={"format": format, "schema_file": tmp_path / name}))
