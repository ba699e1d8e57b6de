"""Change events as Debezium and Kafka Connect write them: what is a row, what deletes one, and what is refused by its name."""

from __future__ import annotations

import base64
import datetime
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.test_avro import Registry, framed, write
from workers.codecs import decoder_for
from workers.codecs.base import Decoder
from workers.codecs.connect import as_typed
from workers.errors import PoisonError
from workers.outcomes import prepare
from workers.records import Document, Origin, Record, Tombstone, TopicPartition
from workers.settings import Settings

ORIGIN = Origin("shop.public.books", 0, 7, epoch=1)
ROW = {"id": 1, "text": "some text"}
SOURCE = {"connector": "postgresql", "table": "books", "snapshot": "false"}
GONE = object()


def made(envelope: str, **source: object) -> Decoder:
    return decoder_for(
        Settings(source={"envelope": envelope, **source}, outputs=[{"topic": "v", "include": ["price"]}])
    )


DEBEZIUM, CONNECT = made("debezium"), made("connect")


def decode(value: object, decoder: Decoder = DEBEZIUM, key: bytes | None = b'{"id":1}') -> object:
    """The document's text, or GONE."""
    found = decoder.decode(Record(ORIGIN, key, json.dumps(value).encode(), 0))
    assert isinstance(found, Document | Tombstone)
    return found.text if isinstance(found, Document) else GONE


def refusal(value: object, decoder: Decoder = DEBEZIUM, key: bytes | None = b"k") -> PoisonError:
    with pytest.raises(PoisonError) as caught:
        decode(value, decoder, key)
    return caught.value


def event(op: str, **given: object) -> dict[str, object]:
    return {"before": None, "after": None, "source": SOURCE, "op": op, "ts_ms": 1, "transaction": None, **given}


def wrapped(payload: object, schema: object = None) -> dict[str, object]:
    return {
        "schema": schema or {"type": "struct", "name": "shop.public.books.Envelope", "fields": []},
        "payload": payload,
    }


@pytest.mark.parametrize("wrap", [lambda value: value, wrapped], ids=["bare", "in connect's envelope"])
@pytest.mark.parametrize(
    ("value", "found"),
    [
        (event("c", after=ROW), "some text"),
        (event("r", after=ROW), "some text"),
        (event("u", before=ROW, after={"id": 1, "text": "newer"}), "newer"),
        ({"op": "c", "after": ROW}, "some text"),
        (event("d", before=ROW), GONE),
        ({"op": "d", "before": ROW}, GONE),
        ({**ROW, "__deleted": "false"}, "some text"),
        ({**ROW, "__deleted": False, "__op": "u"}, "some text"),
        ({**ROW, "text": None, "__deleted": "true"}, GONE),
        ({"__deleted": True}, GONE),
        (event("c", after=json.dumps({"_id": {"$oid": "1"}, "text": "of a document"})), "of a document"),
    ],
)
def test_a_change_event_is_its_row_or_its_end(wrap: Any, value: object, found: object):
    assert decode(wrap(value)) == found


@pytest.mark.parametrize(
    ("value", "reason", "says"),
    [
        (event("t"), "truncate", "truncated"),
        ({"op": "m", "ts_ms": 1, "source": SOURCE, "message": {"prefix": "p", "content": "x"}}, "message", "log"),
        (event("u", before=ROW), "no_after", "change_streams_update_full"),
        (event("c", after=[1]), "no_after", "does not say"),
        (event("x", after=ROW), "not_an_envelope", "op"),
        (event("c", after="{"), "invalid_json", "JSON"),
        (
            {
                "source": SOURCE,
                "ts_ms": 1,
                "databaseName": "shop",
                "schemaName": None,
                "ddl": "ALTER",
                "tableChanges": [],
            },
            "schema_change",
            "read the tables' topics alone",
        ),
        (
            {"status": "BEGIN", "id": "1", "event_count": None, "data_collections": None, "ts_ms": 1},
            "transaction",
            "bounds",
        ),
        ({"ts_ms": 1}, "heartbeat", "heartbeat"),
        (ROW, "not_an_envelope", "source.envelope none reads plain rows"),
        ([ROW], "not_an_envelope", "not an object"),
        (wrapped([ROW], {"type": "array"}), "not_an_envelope", "not an object"),
        (wrapped([ROW]), "wrong_envelope", "not what its schema says"),
    ],
)
def test_what_holds_no_row_is_refused_by_its_name(value: object, reason: str, says: str):
    found = refusal(value)
    assert (found.stage, found.reason) == ("decode", reason)
    assert says in found.message


def test_a_column_that_did_not_travel_is_not_embedded():
    held_back = event("u", after=ROW | {"text": "__debezium_unavailable_value"})
    found = refusal(held_back)
    assert (found.stage, found.reason) == ("decode", "unavailable_value")
    assert "field text did not change" in found.message and "REPLICA IDENTITY FULL" in found.message
    assert decode(event("u", after=ROW | {"other": "__debezium_unavailable_value"})) == "some text"
    included = refusal(event("u", after=ROW | {"price": "__debezium_unavailable_value"}))
    assert "field price" in included.message
    assert refusal({**ROW, "text": "__debezium_unavailable_value", "__deleted": "false"}).reason == "unavailable_value"


@pytest.mark.parametrize(
    "value",
    [
        ["__debezium_unavailable_value"],
        list(b"__debezium_unavailable_value"),
        {"__debezium_unavailable_value": "__debezium_unavailable_value"},
        '{"__debezium_unavailable_value":"__debezium_unavailable_value"}',
        ["b68a35a7-17ad-35b3-af2a-ae46edb4545a"],
        base64.b64encode(b"__debezium_unavailable_value").decode(),
        [base64.b64encode(b"__debezium_unavailable_value").decode()],
        b"__debezium_unavailable_value".hex(),
    ],
    ids=["texts", "numbers", "hstore", "hstore in json", "uuids", "bytes", "list of bytes", "hex"],
)
def test_no_column_that_did_not_travel_is_written_as_data(value: object):
    assert refusal(event("u", after=ROW | {"price": value})).reason == "unavailable_value"
    assert refusal(event("u", after=ROW | {"text": value})).reason == "unavailable_value"


@pytest.mark.parametrize("value", [[], {}, ["a"], ["__debezium_unavailable_value", "b"], [95], {"a": "b"}])
def test_a_column_that_only_looks_alike_is_data(value: object):
    found = DEBEZIUM.decode(Record(ORIGIN, b"k", json.dumps(event("u", after=ROW | {"price": value})).encode(), 0))
    assert isinstance(found, Document)
    assert found.fields == {"price": value}


def test_a_deletion_without_a_key_is_refused():
    assert refusal(event("d", before=ROW), key=None).reason == "tombstone_without_key"
    assert refusal(wrapped(None), CONNECT, None).reason == "tombstone_without_key"


def test_a_null_payload_deletes():
    assert decode(wrapped(None)) is decode(wrapped(None), CONNECT) is GONE


def test_a_deletion_and_the_tombstone_after_it_are_two_tombstones():
    class NoTexts:
        def encode(self, texts: list[str], prompts: list[str | None]) -> list[Any]:
            assert not texts
            return []

    records = [
        Record(ORIGIN, b"k", json.dumps(event("d", before=ROW)).encode(), 0),
        Record(Origin(*TopicPartition("t", 0), 8, 1), b"k", None, 0),
    ]
    texts, settled = prepare(records, DEBEZIUM, NoTexts(), reject_overflow=False)
    assert not texts
    assert settled == [(record.origin, Tombstone()) for record in records]


# ---- Kafka Connect


def test_connects_envelope_is_its_payload():
    assert decode(wrapped(ROW), CONNECT) == "some text"
    for other in (ROW, {"schema": {}, "payload": ROW, "more": 1}, [], "x"):
        assert refusal(other, CONNECT).reason == "not_an_envelope"
    assert refusal(wrapped("x", {"type": "string"}), CONNECT).reason == "not_an_object"


def field(name: str, kind: str, logical: str | None = None, **parameters: str) -> dict[str, object]:
    made: dict[str, object] = {"field": name, "type": kind, "optional": True}
    if logical is not None:
        made |= {"name": f"org.apache.kafka.connect.data.{logical}", "version": 1, "parameters": parameters}
    return made


def struct(*fields: dict[str, object]) -> dict[str, object]:
    return {"type": "struct", "fields": list(fields)}


TYPES = struct(
    field("price", "bytes", "Decimal", scale="2"),
    field("day", "int32", "Date"),
    field("hour", "int32", "Time"),
    field("at", "int64", "Timestamp"),
    field("raw", "bytes"),
    {"field": "inner", **struct(field("price", "bytes", "Decimal", scale="1"))},
    {"field": "list", "type": "array", "items": field("", "int32", "Date")},
    {"field": "map", "type": "map", "values": field("", "int32", "Date")},
)
PAYLOAD = {
    "price": base64.b64encode((-1250).to_bytes(2, "big", signed=True)).decode(),
    "day": 20574,
    "hour": 43_200_000,
    "at": 1_777_636_800_123,
    "raw": "/wA=",
    "inner": {"price": base64.b64encode(b"\x05").decode()},
    "list": [20574],
    "map": {"a": 20574},
    "unknown": 1,
}


def test_connects_types_are_what_they_would_be_in_avro():
    text = "{price} {day} {hour} {at} {inner.price} {map.a} {unknown} {nothing|none}"
    decoder = made("connect", text=text)
    assert decode(wrapped(PAYLOAD, TYPES), decoder) == (
        "-12.50 2026-05-01 12:00:00 2026-05-01T12:00:00.123000Z 0.5 2026-05-01 1 none"
    )
    assert refusal(wrapped(PAYLOAD, TYPES), made("connect", text="raw")).reason == "wrong_type"
    assert decode(wrapped(PAYLOAD | {"price": None}, TYPES), made("connect", text="{price|none}")) == "none"
    assert decode(wrapped(PAYLOAD | {"price": 12.5}, TYPES), made("connect", text="{price} EUR")) == "12.5 EUR"


def test_the_fields_of_a_struct_are_looked_through_once_for_all_of_its_values():
    """Thousands of fields and of empty values take a record of 100 kB, and took minutes."""

    class Counted(list[object]):
        looked = 0

        def __iter__(self) -> Iterator[object]:
            self.looked += 1
            return super().__iter__()

    fields = Counted([field("day", "int32", "Date"), field("price", "bytes", "Decimal", scale="1")])
    items: dict[str, object] = {"type": "struct", "fields": fields}
    found = as_typed({"type": "array", "items": items}, [{"day": 20574}, {}, {"day": 20575, "more": 1}])
    assert found == [{"day": datetime.date(2026, 5, 1)}, {}, {"day": datetime.date(2026, 5, 2), "more": 1}]
    assert fields.looked == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"price": "%"}, {"price": []}, {"price": base64.b64encode(b"x" * 2000).decode()}, {"day": "1"}, {"day": 10**12},
        {"at": 10**20}, {"raw": "é"}, {"inner": 1}, {"list": {}}, {"hour": True},
    ],
)  # fmt: skip
def test_a_payload_that_is_not_of_its_schema_is_refused(wrong: dict[str, object]):
    found = refusal(wrapped(PAYLOAD | wrong, TYPES), CONNECT)
    assert (found.stage, found.reason) == ("decode", "wrong_envelope")


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "schema",
                    "payload",
                    "op",
                    "after",
                    "before",
                    "__deleted",
                    "type",
                    "fields",
                    "field",
                    "name",
                    "items",
                    "text",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
NAMES = st.sampled_from(["struct", "array", "map", "bytes", "org.apache.kafka.connect.data.Decimal"])


@settings(deadline=None, max_examples=300)
@given(
    value=JSON_VALUES
    | st.fixed_dictionaries({"schema": JSON_VALUES, "payload": JSON_VALUES})
    | st.fixed_dictionaries(
        {
            "schema": st.fixed_dictionaries({"type": NAMES, "name": NAMES, "parameters": JSON_VALUES}),
            "payload": JSON_VALUES,
        }
    ),
    decoder=st.sampled_from([DEBEZIUM, CONNECT]),
)
def test_any_object_is_a_row_a_deletion_or_poison(value: object, decoder: Decoder):
    try:
        decode(value, decoder)
    except PoisonError as error:
        assert error.stage in ("decode", "text")


# ---- in other formats


def test_a_change_event_in_avro_is_as_one_in_json():
    row = {
        "type": "record",
        "name": "Value",
        "fields": [{"name": "id", "type": "int"}, {"name": "text", "type": ["null", "string"]}],
    }
    schema = {
        "type": "record",
        "name": "Envelope",
        "namespace": "shop.public.books",
        "fields": [
            {"name": "before", "type": ["null", row], "default": None},
            {"name": "after", "type": ["null", "Value"], "default": None},
            {"name": "op", "type": "string"},
            {"name": "ts_ms", "type": ["null", "long"], "default": None},
        ],
    }
    registry = Registry(_1=json.dumps(schema))
    decoder = decoder_for(
        Settings(source={"format": "avro", "envelope": "debezium"}, registry={"url": "http://localhost:1"}), registry
    )

    def read(**value: object) -> object:
        body = framed(1, write(schema, {"before": None, "after": None, "ts_ms": 1, **value}))
        found = decoder.decode(Record(ORIGIN, b"k", body, 0))
        return found.text if isinstance(found, Document) else GONE

    assert read(op="c", after=ROW) == "some text"
    assert read(op="d", before=ROW) is GONE


def test_an_envelope_needs_fields():
    with pytest.raises(ValueError, match="envelope debezium needs fields"):
        Settings(source={"format": "text", "envelope": "debezium"})
