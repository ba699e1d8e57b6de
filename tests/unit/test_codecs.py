"""Output records: what they hold, what they keep of the source, and that no input escapes as a strange error."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from workers.codecs import decoder_for, fingerprint_of, renderer_for
from workers.codecs.dead_letter import render_dead_letter
from workers.codecs.fields import FieldsDecoder
from workers.codecs.json import JsonValues, render_embedding
from workers.codecs.template import parse_template
from workers.codecs.tombstone import render_tombstone
from workers.errors import PoisonError, SettingsError
from workers.records import DeadLetter, Document, Embedding, Message, Origin, Record
from workers.settings import Settings

ORIGIN = Origin("documents", 2, 41, epoch=1)
RECORD = Record(ORIGIN, b"key", b'{"text": "x"}', 1_700_000_000_000, (("trace", b"1"), ("trace", b"2"), ("none", None)))
UNIT = np.array([0.6, -0.8], np.float32)

FLOATS = npst.arrays(
    np.float32, st.integers(1, 16), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)
)
HALVES = npst.arrays(
    np.float16, st.integers(1, 16), elements=st.floats(width=16, allow_nan=False, allow_infinity=False)
)
HEADERS = st.lists(
    st.tuples(
        st.sampled_from(
            ["trace", "embedding-dim", "embedding-fingerprint", "embedding-error-class", "embedding-error-x"]
        ),
        st.none() | st.binary(max_size=5),
    )
).map(tuple)
# Anything that json.loads can make of what a producer may write.
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=())),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def render(
    format: str,
    vector: np.ndarray,
    scale: np.float32 | None = None,
    *,
    precision: str | None = None,
    record: Record = RECORD,
    include: tuple[str, ...] = (),
    **document: object,
) -> Message:
    precision = precision or str(vector.dtype)
    output = {"topic": "vectors", "precision": precision, "format": format, "include": include}
    if precision.endswith("_ranges"):
        output["ranges"] = "ranges.npz"
    settings = Settings(outputs=[output])
    found = Document(**{"id": "key", "text": "x"} | document)
    dim = len(vector) * (8 if precision.endswith("binary") else 1)
    renderer = renderer_for(settings.outputs[0], dim=dim, model="a-model", fingerprint="ab12")
    return renderer.render(record, Embedding(found, UNIT, tokens=7, truncated=True), vector, scale)


# ---- JSON out


def test_a_json_record_has_the_documented_fields_in_order():
    message = render("json", UNIT, include=("title", "n.x"), fields={"title": "ü", "n.x": 10**40, "other": 1})
    assert list(json.loads(message.value).items()) == [
        ("id", "key"),
        ("embedding", [pytest.approx(0.6), pytest.approx(-0.8)]),
        ("dim", 2),
        ("precision", "float32"),
        ("model", "a-model"),
        ("fingerprint", "ab12"),
        ("tokens", 7),
        ("truncated", True),
        ("title", "ü"),
        ("n.x", 10**40),
    ]
    assert b'"embedding":[0.6,-0.8]' in message.value, "components are as short as float32 allows"
    assert "ü".encode() in message.value


def test_a_json_record_keeps_key_timestamp_and_headers():
    message = render("json", UNIT)
    assert (message.topic, message.key, message.timestamp_ms) == ("vectors", RECORD.key, RECORD.timestamp_ms)
    assert message.headers == RECORD.headers
    assert message.partition is None


@given(FLOATS | HALVES)
def test_vectors_come_back_from_json_exactly(vector: np.ndarray):
    found = json.loads(render("json", vector).value)["embedding"]
    assert np.array_equal(np.array(found, vector.dtype), vector)


@pytest.mark.parametrize("dtype", ["<f4", "<f2", "i1", "u1"])
def test_a_vector_may_be_a_view_into_others(dtype: str):
    wide = np.arange(12).astype(dtype).reshape(2, 6)
    precision = {"i1": "int8", "u1": "uint8_ranges"}.get(dtype)
    message = render("json", wide[1, ::2], precision=precision)
    assert json.loads(message.value)["embedding"] == [6, 8, 10]
    assert render("binary", wide[1, ::2], precision=precision).value == np.array([6, 8, 10], dtype).tobytes()


def test_a_float16_has_as_few_digits_as_it_needs():
    assert b'"embedding":[0.1,-0.3333,1.0,6e-08]' in render("json", np.array([0.1, -1 / 3, 1, 6e-8], np.float16)).value


def test_every_float16_comes_back_from_json_also_by_way_of_float32():
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    every = every[np.isfinite(every)]
    found = np.array(json.loads(render("json", every).value)["embedding"])
    assert np.array_equal(found.astype(np.float16), every)
    assert np.array_equal(found.astype(np.float32).astype(np.float16), every)


WHOLE = {"int8": "i1", "int8_ranges": "i1", "uint8_ranges": "u1", "binary": "i1", "ubinary": "u1"}


@pytest.mark.parametrize(("precision", "dtype"), list(WHOLE.items()))
def test_whole_numbers_are_written_as_such(precision: str, dtype: str):
    info = np.iinfo(dtype)
    vector = np.array([info.min, 0, 1, info.max], dtype)
    record = json.loads(render("json", vector, precision=precision).value)
    assert record["embedding"] == [info.min, 0, 1, info.max]
    assert all(type(number) is int for number in record["embedding"])
    assert (record["precision"], record["dim"]) == (precision, 32 if precision.endswith("binary") else 4)
    assert "scale" not in record
    message = render("binary", vector, precision=precision)
    assert message.value == vector.tobytes() and len(message.value) == 4
    headers = dict(message.headers)
    assert headers["embedding-dim"] == (b"32" if precision.endswith("binary") else b"4")
    assert headers["embedding-precision"] == precision.encode()
    assert "embedding-scale" not in headers


@given(st.floats(2.0**-20, 2.0**-6, width=32))
def test_the_scale_stands_on_the_record_and_comes_back_exactly(number: float):
    vector, scale = np.array([127, -3], np.int8), np.float32(number)
    found = json.loads(render("json", vector, scale).value)
    assert np.float32(found["scale"]) == scale
    assert list(found)[3:5] == ["precision", "scale"]
    old = replace(RECORD, headers=(("embedding-scale", b"of another pipeline"),))
    message = render("binary", vector, scale, record=old)
    ((_, written),) = [header for header in message.headers if header[0] == "embedding-scale"]
    assert np.float32(written) == np.float32(written.decode()) == scale
    assert len(written) <= 14, "as few digits as float32 needs"
    assert not [name for name, _ in render("binary", UNIT, record=old).headers if name == "embedding-scale"]


@given(JSON_VALUES)
def test_any_field_is_written_back_or_refused(value: object):
    try:
        message = render("json", UNIT, include=("field",), fields={"field": value})
    except PoisonError as error:
        assert (error.stage, error.reason) == ("output", "not_json")
    else:
        assert json.loads(message.value)["field"] == value


@pytest.mark.parametrize("value", ["\ud800", {"\ud800": 1}, [float("inf")], float("nan")])
def test_what_json_cannot_hold_is_refused(value: object):
    with pytest.raises(PoisonError) as caught:
        render("json", UNIT, include=("field",), fields={"field": value})
    assert caught.value.reason == "not_json"


def test_a_field_nested_too_deeply_to_be_written_is_refused():
    deep: object = 1
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(PoisonError) as caught:
        render("json", UNIT, include=("field",), fields={"field": deep})
    assert caught.value.reason == "not_json"


def test_a_vector_that_is_not_finite_is_refused():
    with pytest.raises(PoisonError) as caught:
        render("json", np.array([np.inf, 0], np.float16))
    assert caught.value.reason == "not_finite"


def test_one_embedding_is_one_line():
    line = render_embedding(
        "a\nb",
        UNIT,
        dim=2,
        precision="float32",
        model="m",
        fingerprint="f",
        tokens=1,
        truncated=False,
        fields={"title": "c\nd"},
    )
    assert b"\n" not in line
    assert json.loads(line)["title"] == "c\nd"


# ---- binary out


@given(FLOATS | HALVES)
def test_binary_values_are_the_vectors_bytes(vector: np.ndarray):
    message = render("binary", vector)
    assert message.value == vector.astype(vector.dtype.newbyteorder("<")).tobytes()


def test_binary_headers_say_the_rest():
    message = render("binary", UNIT.astype(np.float16), id="ä")
    assert (message.key, message.timestamp_ms) == (RECORD.key, RECORD.timestamp_ms)
    assert message.headers == (
        *RECORD.headers,
        ("embedding-id", "ä".encode()),
        ("embedding-dim", b"2"),
        ("embedding-precision", b"float16"),
        ("embedding-model", b"a-model"),
        ("embedding-fingerprint", b"ab12"),
        ("embedding-tokens", b"7"),
        ("embedding-truncated", b"true"),
        ("embedding-source", b"documents/2/41"),
    )


@given(HEADERS)
def test_binary_headers_of_ours_stand_once(headers: tuple[tuple[str, bytes | None], ...]):
    message = render("binary", UNIT, record=replace(RECORD, headers=headers))
    names = [name for name, _ in message.headers]
    assert names.count("embedding-dim") == names.count("embedding-fingerprint") == 1
    assert [header for header in message.headers if header[0] == "trace"] == [h for h in headers if h[0] == "trace"]


# ---- fingerprints


@pytest.mark.parametrize("format", ["json", "binary"])
def test_the_fingerprint_is_found_on_either_format(format: str):
    record = replace(RECORD, headers=(("embedding-fingerprint", b"of another pipeline"),))
    message = render(format, UNIT, record=record)
    assert fingerprint_of(message.value, message.headers) == "ab12"


@given(
    st.none() | st.binary() | JSON_VALUES.map(lambda value: json.dumps({"embedding": 1, "fingerprint": value}).encode())
)
def test_fingerprints_are_looked_for_in_anything(value: bytes | None):
    assert isinstance(fingerprint_of(value, (("embedding-fingerprint", None),)), str | None)


def test_a_tombstone_has_no_fingerprint():
    assert fingerprint_of(None, (("embedding-fingerprint", b"old"),)) is None
    assert fingerprint_of(b'{"a":' * 100_000, ()) is None


# ---- dead letters and tombstones


@given(st.none() | st.binary(), st.none() | st.binary(), HEADERS)
def test_a_dead_letter_is_the_record_with_headers_added(
    key: bytes | None, value: bytes | None, headers: tuple[tuple[str, bytes | None], ...]
):
    record = Record(ORIGIN, key, value, 12, headers)
    message = render_dead_letter(record, DeadLetter("text", "empty", "no text"), "dead", "ab12")
    assert (message.topic, message.key, message.value, message.timestamp_ms) == ("dead", key, value, 12)
    kept = tuple(header for header in headers if header[0] != "embedding-error-class")
    assert message.headers[: len(kept)] == kept
    assert message.headers[len(kept) :] == (
        ("embedding-error-topic", b"documents"),
        ("embedding-error-partition", b"2"),
        ("embedding-error-offset", b"41"),
        ("embedding-error-timestamp", b"12"),
        ("embedding-error-stage", b"text"),
        ("embedding-error-class", b"empty"),
        ("embedding-error-message", b"no text"),
        ("embedding-error-attempts", b"1"),
        ("embedding-error-fingerprint", b"ab12"),
    )


def test_a_dead_letter_sent_round_again_carries_the_newer_reason():
    first = render_dead_letter(RECORD, DeadLetter("encode", "failed", "once", 3), "dead", "ab12")
    again = replace(RECORD, headers=first.headers)
    second = render_dead_letter(again, DeadLetter("text", "empty", "twice"), "dead", "cd34")
    assert len(second.headers) == len(first.headers)
    assert dict(second.headers)["embedding-error-message"] == b"twice"


def test_a_tombstone_keeps_what_it_deletes_by():
    message = render_tombstone(RECORD, "vectors")
    assert message == Message("vectors", RECORD.key, None, RECORD.headers, RECORD.timestamp_ms)
    of_a_schema = replace(RECORD, headers=(("__value_schema_id", b"\0\0\0\0\7"), *RECORD.headers))
    assert render_tombstone(of_a_schema, "vectors") == message


# ---- JSON in: what is its own


def decode(value: bytes, *, text: str = "{text}", id: str | None = None, include: tuple[str, ...] = ()) -> Document:
    name = parse_template(id) if id else None
    fields = {each: each for each in include}
    decoder = FieldsDecoder(JsonValues(), parse_template(text), name, fields, refuse_empty=True)
    return decoder.decode(replace(RECORD, value=value))


def prompted(prompt: str | None, value: bytes, **source: object) -> Document:
    decoder = decoder_for(Settings(model={"prompt_text": prompt}, source=source))
    return decoder.decode(replace(RECORD, value=value))


@pytest.mark.parametrize(
    ("value", "prompt"),
    [
        (b'{"text": "x", "title": "A title"}', "title: A title | text: "),
        (b'{"text": "x", "title": null}', "title: none | text: "),
        (b'{"text": "x"}', "title: none | text: "),
        (b'{"text": "x", "title": 7}', "title: 7 | text: "),
        (b'{"text": "x", "title": "{title}"}', "title: {title} | text: "),
    ],
)
def test_a_prompt_is_made_of_the_records_fields(value: bytes, prompt: str):
    document = prompted("title: {title|none} | text: ", value)
    assert (document.text, document.prompt) == ("x", prompt)


def test_a_prompt_without_fields_is_not_the_documents():
    for literal in (None, "", "query: ", "a {{ '{brace}' }}"):
        assert prompted(literal, b'{"text": "x", "title": "t"}').prompt is None


@pytest.mark.parametrize(
    ("prompt", "value", "reason"),
    [
        ("title: {title} | ", b'{"text": "x"}', "missing_field"),
        ("title: {title|none} | ", b'{"text": "x", "title": []}', "wrong_type"),
        ("title: {title|none} | ", b'{"text": "x", "title": "\\ud800"}', "lone_surrogate"),
    ],
)
def test_a_prompt_that_cannot_be_made_is_refused(prompt: str, value: bytes, reason: str):
    with pytest.raises(PoisonError) as caught:
        prompted(prompt, value)
    assert (caught.value.stage, caught.value.reason) == ("text", reason)


def test_a_title_alone_is_no_text():
    with pytest.raises(PoisonError, match="empty"):
        prompted("title: {title|none} | text: ", b'{"text": " ", "title": "A title"}')


def test_a_plain_text_has_the_defaults_of_its_prompt():
    assert prompted("title: {title|none} | ", b"x", format="text").prompt == "title: none | "
    with pytest.raises(
        SettingsError, match=r"has the field title, and source\.format text has no fields: .*{title\|none}"
    ):
        decoder_for(Settings(model={"prompt_text": "title: {title} | "}, source={"format": "text"}))


def test_a_prompt_that_is_no_template_is_said():
    with pytest.raises(SettingsError, match=r"model\.prompt_text: .* nothing closes"):
        decoder_for(Settings(model={"prompt_text": "title: {title | text: "}))


@pytest.mark.parametrize(
    ("value", "stage", "reason"),
    [
        (b"", "decode", "invalid_json"),
        (b"{", "decode", "invalid_json"),
        (b'\xef\xbb\xbf{"text": "x"}', "decode", "invalid_json"),
        (b'{"text": "x"} trailing', "decode", "invalid_json"),
        (b'{"text": "x", "n": NaN}', "decode", "invalid_json"),
        (b'{"text": "x", "n": -Infinity}', "decode", "invalid_json"),
        (b'{"text": "x", "n": ' + b"9" * 10_000 + b"}", "decode", "invalid_json"),
        (b'{"text": "x", "n": ' + b"[" * 200_000, "decode", "invalid_json"),
        (b'{"text": "a\nb"}', "decode", "invalid_json"),
        (b"\xff", "decode", "invalid_utf8"),
        ('{"text": "x"}'.encode("utf-16"), "decode", "invalid_utf8"),
        (b"[]", "decode", "not_an_object"),
        (b"null", "decode", "not_an_object"),
        (b'"text"', "decode", "not_an_object"),
        (b'\0\0\0\0\1{"text": "x"}', "decode", "invalid_json"),
        (b'{"body": "x"}', "text", "missing_field"),
        (b'{"text": null}', "text", "missing_field"),
        (b'{"text": ["x"]}', "text", "wrong_type"),
        (b'{"text": "\\ud800"}', "text", "lone_surrogate"),
        (b'{"text": " \\n\\u2003"}', "text", "empty"),
    ],
)
def test_bad_json_is_poison_with_its_reason(value: bytes, stage: str, reason: str):
    with pytest.raises(PoisonError) as caught:
        decode(value)
    assert (caught.value.stage, caught.value.reason) == (stage, reason)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b'{"text": "x"}', "missing_id"),
        (b'{"text": "x", "id": null}', "missing_id"),
        (b'{"text": "x", "id": 1.0}', "wrong_type"),
        (b'{"text": "x", "id": true}', "wrong_type"),
        (b'{"text": "x", "id": "\\udfff"}', "lone_surrogate"),
    ],
)
def test_a_bad_id_is_poison_with_its_reason(value: bytes, reason: str):
    with pytest.raises(PoisonError) as caught:
        decode(value, id="id")
    assert (caught.value.stage, caught.value.reason) == ("text", reason)


def test_ids_come_from_a_field_or_a_template():
    assert decode(b'{"text": "x", "id": 12}', id="id").id == "12"
    assert decode(b'{"text": "x", "id": "a", "shop": {"n": 3}}', id="{shop.n}/{id}").id == "3/a"


def test_included_fields_come_along_by_name():
    value = b'{"text": "x", "n": 12345678901234567890123, "a": {"b": [1, null]}}'
    assert decode(value, include=("n", "a.b", "a.c", "text.d")).fields == {
        "n": 12345678901234567890123,
        "a.b": [1, None],
        "a.c": None,
        "text.d": None,
    }


def test_of_two_equal_names_the_last_one_counts():
    assert decode(b'{"text": "first", "text": "last"}').text == "last"


# ---- the factories


def test_settings_choose_the_decoder_and_its_fields():
    outputs = [
        {"kind": "kafka", "topic": topic, "include": include} for topic, include in (("a", ["x"]), ("b", ["y", "x"]))
    ]
    decoder = decoder_for(Settings(source={"text": "body", "id": "n"}, outputs=outputs))
    record = replace(RECORD, value=b'{"body": "b", "n": 1, "x": 2, "y": 3, "z": 4}')
    assert decoder.decode(record) == Document("1", "b", {"x": 2, "y": 3})
    assert decoder_for(Settings(source={"format": "text"})).decode(replace(record, value=b"b")) == Document("key", "b")


@pytest.mark.parametrize("setting", ["text", "id"])
def test_a_template_that_is_none_is_a_settings_error(setting: str):
    with pytest.raises(SettingsError, match=f"source.{setting}: .*nothing closes"):
        decoder_for(Settings(source={setting: "{body"}))
