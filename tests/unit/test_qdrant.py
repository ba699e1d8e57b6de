"""Points for Qdrant's sink: what its connector reads of a record, and what we read back."""

from __future__ import annotations

import json
import uuid

import numpy as np
import pytest
from pydantic import ValidationError

from tests.fakes import record
from workers.codecs import fingerprint_of, renderer_for
from workers.codecs.qdrant import point_id
from workers.codecs.stored import StoredReader
from workers.errors import PoisonError
from workers.records import Chunk, Document, Embedding
from workers.settings import KafkaOutput, Settings

VECTOR = np.array([0.6, -0.8], np.float32)


def output(**more: object) -> KafkaOutput:
    return KafkaOutput.model_validate({"topic": "points", "format": "qdrant", "collection": "books", **more})


def rendered(document: Document, key: bytes | None = b"k", chunk: Chunk | None = None, **more: object):
    renderer = renderer_for(output(**more), dim=2, model="m", fingerprint="f" * 16)
    return renderer.render(record(3, key=key), Embedding(document, VECTOR, 5, False, chunk), VECTOR)


def test_a_point_has_what_the_sink_reads():
    message = rendered(Document("1", "text", {"title": "a title"}), include=("title",))
    point = json.loads(message.value or b"")
    assert point.keys() == {"collection_name", "id", "vector", "payload"}
    assert point["collection_name"] == "books"
    assert uuid.UUID(point["id"]).version == 5 and point["id"] == point_id(b"k")
    assert np.array_equal(np.float32(point["vector"]), VECTOR)
    assert point["payload"] == {
        "id": "1",
        "dim": 2,
        "precision": "float32",
        "model": "m",
        "fingerprint": "f" * 16,
        "tokens": 5,
        "truncated": False,
        "title": "a title",
    }
    assert message.key == b"k" and message.topic == "points"


def test_a_key_is_a_point_and_a_chunk_one_of_its_own():
    whole = json.loads(rendered(Document("1", "text")).value or b"")
    chunk = rendered(Document("1", "a text"), chunk=Chunk(1, 2, 2, 6), chunk_text=True)
    part = json.loads(chunk.value or b"")
    assert chunk.key == b"k#1" and part["id"] == point_id(b"k#1") != whole["id"]
    assert part["payload"]["chunk"] == {"index": 1, "count": 2, "start": 2, "end": 6}
    assert part["payload"]["chunk_text"] == "text"
    keyless = json.loads(rendered(Document("1", "text"), key=None).value or b"")
    assert keyless["id"] == point_id(b"1")


def test_a_point_is_read_back_and_says_its_fingerprint():
    message = rendered(Document("1", "text", {"title": "a title"}), include=("title",))
    assert fingerprint_of(message.value, message.headers) == "f" * 16
    (stored,) = StoredReader(Settings()).read(
        type(record(0))(record(0).origin, message.key, message.value, 0, message.headers)
    )
    assert stored.space is not None and stored.values is not None
    assert (stored.id, stored.space.fingerprint, dict(stored.fields)) == ("1", "f" * 16, {"title": "a title"})
    assert np.array_equal(stored.values, VECTOR)


@pytest.mark.parametrize("document", [Document("\ud800", "text"), Document("1", "text", {"title": "\ud800"})])
def test_half_a_character_is_refused(document: Document):
    with pytest.raises(PoisonError, match="surrogate"):
        rendered(document, include=("title",))


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        ({"collection": None}, "collection and format: qdrant go together"),
        ({"format": "json"}, "collection and format: qdrant go together"),
        ({"precision": "int8"}, "nothing that Qdrant takes"),
        ({"include": ("embedding",)}, "which the output record uses itself"),
    ],
)
def test_what_does_not_go_together_is_said(more: dict[str, object], complaint: str):
    with pytest.raises(ValidationError, match=complaint):
        output(**more)
