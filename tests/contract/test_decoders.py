"""What every decoder promises, asked of each."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.codecs import decoder_for
from workers.codecs.base import Decoder
from workers.errors import PoisonError
from workers.records import Document, Origin, Record
from workers.settings import Settings

ORIGIN = Origin("documents", 0, 7, epoch=3)
STAGES = {"decode", "text"}
REASONS = {
    "tombstone_without_key",
    "invalid_utf8",
    "invalid_json",
    "not_an_object",
    "missing_field",
    "missing_id",
    "wrong_type",
    "lone_surrogate",
    "empty",
}


@dataclass(frozen=True)
class Kind:
    """A decoder by format, and how a text is written in it."""

    format: str
    write: Callable[[str], bytes]

    def decoder(self, **source: object) -> Decoder:
        return decoder_for(Settings(source={"format": self.format, **source}))

    def decode(self, value: bytes | None, key: bytes | None = b"key", **source: object) -> Document:
        return self.decoder(**source).decode(Record(ORIGIN, key, value, 0))

    def refusal(self, value: bytes | None, key: bytes | None = b"key", **source: object) -> PoisonError:
        with pytest.raises(PoisonError) as caught:
            self.decode(value, key, **source)
        return caught.value


KINDS = [
    Kind("json", lambda text: json.dumps({"text": text}).encode()),
    Kind("text", lambda text: text.encode()),
]
kinds = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.format)


@kinds
@given(text=st.text().filter(str.strip))
def test_a_text_comes_out_as_it_went_in(kind: Kind, text: str):
    assert kind.decode(kind.write(text)).text == text


@kinds
@given(value=st.none() | st.binary(), key=st.none() | st.binary())
def test_any_bytes_give_a_document_or_poison(kind: Kind, value: bytes | None, key: bytes | None):
    try:
        document = kind.decode(value, key)
    except PoisonError as error:
        assert error.stage in STAGES
        assert error.reason in REASONS
    else:
        document.text.encode()
        document.id.encode()


@kinds
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
def test_bytes_that_are_not_utf8_are_refused(kind: Kind):
    found = kind.refusal(kind.write("caf") + b"\xe9")
    assert (found.stage, found.reason) == ("decode", "invalid_utf8")


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
