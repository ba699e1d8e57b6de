"""What every decoder promises, asked of each."""

from __future__ import annotations

import base64
import functools
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import fastavro
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.codecs import decoder_for
from workers.codecs.base import Decoder
from workers.codecs.protobuf_schema import ProtobufSchema
from workers.errors import EnvironmentFault, PoisonError, RetryableError
from workers.outcomes import prepare
from workers.records import DeadLetter, Document, Origin, Record, Tokens
from workers.schema_registry import Schema
from workers.settings import Settings

ORIGIN = Origin("documents", 0, 7, epoch=3)
STAGES = {"decode", "text"}
REASONS = {
    "tombstone_without_key",
    "invalid_utf8",
    "invalid_json",
    "invalid_avro",
    "invalid_protobuf",
    "too_deep",
    "too_many_items",
    "not_framed",
    "unknown_schema",
    "other_format",
    "schema_mismatch",
    "too_many_steps",
    "not_an_object",
    "missing_field",
    "missing_id",
    "unknown_prompt",
    "wrong_type",
    "lone_surrogate",
    "empty",
}
SCHEMAS = Path(__file__).parents[1] / "schemas"
AVRO = fastavro.parse_schema(json.loads((SCHEMAS / "document.avsc").read_text()))


class Registry:
    """Knows one schema of each kind, by the ids 1 to 3."""

    def __init__(self) -> None:
        read = {name: (SCHEMAS / name).read_text() for name in ("document.avsc", "document.json", "document.proto")}
        parts = (("parts/kinds.proto", (SCHEMAS / "parts/kinds.proto").read_text()),)
        self.known = {
            1: Schema("AVRO", read["document.avsc"]),
            2: Schema("JSON", read["document.json"]),
            3: Schema("PROTOBUF", read["document.proto"], parts),
        }

    def schema(self, id: object) -> Schema | None:
        return self.known.get(id)


REGISTRY = Registry()


def write_avro(text: str) -> bytes:
    out = io.BytesIO()
    fastavro.schemaless_writer(out, AVRO, {"text": text, "children": []})
    return out.getvalue()


@functools.cache
def proto() -> ProtobufSchema:
    return ProtobufSchema(REGISTRY.known[3])


def write_protobuf(text: str) -> bytes:
    return bytes(proto().named("tests.Document")(text=text).SerializeToString())


def write_json(text: str) -> bytes:
    return json.dumps({"text": text}, ensure_ascii=False).encode()


@functools.cache
def made(**source: object) -> Decoder:
    """Decoders are made once: a compiler is called for some."""
    return decoder_for(Settings(source=source, registry={"url": "http://localhost:1"}), REGISTRY)


@dataclass(frozen=True)
class Kind:
    """A decoder by format, how a text is written in it, and what stands before a value."""

    format: str
    write: Callable[[str], bytes]
    schema_file: str | None = None
    prefix: bytes = b""

    def decoder(self, **source: object) -> Decoder:
        if self.schema_file is not None:
            source["schema_file"] = SCHEMAS / self.schema_file
        return made(format=self.format, **source)

    def decode(self, value: bytes | None, key: bytes | None = b"key", **source: object) -> Document:
        found = self.decoder(**source).decode(Record(ORIGIN, key, value, 0))
        assert isinstance(found, Document)
        return found

    def refusal(self, value: bytes | None, key: bytes | None = b"key", **source: object) -> PoisonError:
        with pytest.raises(PoisonError) as caught:
            self.decode(value, key, **source)
        return caught.value


def framed(prefix: bytes, write: Callable[[str], bytes]) -> Callable[[str], bytes]:
    return lambda text: prefix + write(text)


IDS = {"avro": b"\0\0\0\0\1", "json_schema": b"\0\0\0\0\2", "protobuf": b"\0\0\0\0\3\0"}
WRITE = {"avro": write_avro, "json_schema": write_json, "protobuf": write_protobuf}
FILES = {"avro": "document.avsc", "json_schema": "document.json", "protobuf": "document.proto"}
KINDS = [
    Kind("json", write_json),
    Kind("text", lambda text: text.encode()),
    *(Kind(name, WRITE[name], FILES[name]) for name in FILES),
    *(Kind(name, framed(IDS[name], WRITE[name]), prefix=IDS[name]) for name in FILES),
]
kinds = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind.format}{'-framed' * bool(kind.prefix)}")


@kinds
@settings(deadline=None)
@given(text=st.text().filter(str.strip))
def test_a_text_comes_out_as_it_went_in(kind: Kind, text: str):
    assert kind.decode(kind.write(text)).text == text


@kinds
@settings(deadline=None)
@given(value=st.none() | st.binary(), key=st.none() | st.binary(), whole=st.booleans())
def test_any_bytes_give_a_document_or_poison(kind: Kind, value: bytes | None, key: bytes | None, whole: bool):
    if value is not None and whole:
        value = kind.prefix + value
    try:
        document = kind.decode(value, key)
    except PoisonError as error:
        assert error.stage in STAGES
        assert error.reason in REASONS
    else:
        document.text.encode()
        document.id.encode()


@kinds
@settings(deadline=None)
@given(
    secret=st.text(st.characters(min_codepoint=0x4E00, max_codepoint=0x9FFF), min_size=3, max_size=8),
    around=st.sampled_from(
        [("", ""), ("{", "}"), ('{"text":', "}"), ('{"text":"', ""), ('{"text":["', '"]}'), ('["', '"]')]
    ),
    broken=st.sampled_from([b"", b"\xff", b"\xed\xa0\x80", b"\x00"]),
)
def test_no_message_quotes_the_record(kind: Kind, secret: str, around: tuple[str, str], broken: bytes):
    try:
        kind.decode(f"{around[0]}{secret}{around[1]}".encode() + broken)
    except PoisonError as error:
        assert not set(secret) & set(str(error))
        assert error.__cause__ is None
        assert error.__suppress_context__ or error.__context__ is None, (
            "a traceback would print the parser's own message"
        )


@kinds
def test_a_blank_text_is_refused_or_embedded(kind: Kind):
    for text in ("", " ", "\n\t", "\u2003"):
        assert kind.refusal(kind.write(text)).reason == "empty"
        assert kind.decode(kind.write(text), empty="embed").text == text


@kinds
@settings(deadline=None)
@given(data=st.data())
def test_a_value_that_was_damaged_gives_a_document_or_poison(kind: Kind, data: st.DataObject):
    value = bytearray(kind.write("some text"))
    for _ in range(data.draw(st.integers(1, 4))):
        value[data.draw(st.integers(0, len(value) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(value)))
    try:
        kind.decode(bytes(value[:cut]) + data.draw(st.binary(max_size=4)))
    except PoisonError as error:
        assert error.stage in STAGES
        assert error.reason in REASONS


@kinds
def test_bytes_that_are_not_utf8_are_refused(kind: Kind):
    found = kind.refusal(kind.write("café").replace("é".encode(), b"\xe9\xe9"))
    assert found.stage == "decode"
    if kind.format in ("json", "text", "json_schema"):
        assert found.reason == "invalid_utf8"


@kinds
def test_a_null_value_without_a_key_is_refused(kind: Kind):
    found = kind.refusal(None, None)
    assert (found.stage, found.reason) == ("decode", "tombstone_without_key")


@kinds
def test_the_id_is_the_key_or_the_origin(kind: Kind):
    value = kind.write("text")
    assert kind.decode(value, "schlüssel".encode()).id == "schlüssel"
    assert kind.decode(value, b"\xff\x00").id == base64.b64encode(b"\xff\x00").decode()
    assert kind.decode(value, None).id == "documents/0/7"


class NoTexts:
    """A tokenizer that nothing comes to."""

    def encode(self, texts: Sequence[str], prompts: Sequence[str | None]) -> list[Tokens | PoisonError]:
        assert not texts
        return []


class Raising:
    """Breaks the promise."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def decode(self, record: Record) -> Document:
        raise self._error


@pytest.mark.parametrize(
    "error", [AttributeError("a secret"), KeyError("a secret"), RecursionError(), AssertionError()]
)
def test_whatever_a_decoder_raises_is_one_records_and_says_where(error: Exception):
    _, [(origin, letter)] = prepare([Record(ORIGIN, b"k", b"v", 0)], Raising(error), NoTexts(), reject_overflow=False)
    assert isinstance(letter, DeadLetter) and origin == ORIGIN
    assert (letter.stage, letter.reason) == ("decode", "decoder_raised")
    assert type(error).__name__ in letter.message and "test_decoders.py:" in letter.message
    assert "secret" not in letter.message


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (RetryableError("down"), RetryableError),
        (EnvironmentFault("no token"), EnvironmentFault),
        (OSError(28, "No space left on device"), RetryableError),
        (MemoryError(), RetryableError),
    ],
)
def test_what_is_not_a_records_fault_makes_no_dead_letter(error: Exception, kind: type[Exception]):
    with pytest.raises(kind):
        prepare([Record(ORIGIN, b"k", b"v", 0)], Raising(error), NoTexts(), reject_overflow=False)
