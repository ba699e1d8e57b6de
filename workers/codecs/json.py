"""JSON objects in, JSON objects out.

Comes in: a record whose value is an object. Goes out: its document; and an embedding as an object, vector and all. Never
here: a guess: what is not strictly JSON is refused, and numbers leave with the digits that they came with.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import NoReturn

import numpy as np
import orjson

from workers.codecs.base import kept_headers, key_of, shortest, type_vector, utf8_value
from workers.errors import PoisonError
from workers.records import Chunk, Embedding, Message, Record


def _refuse_constant(_: str) -> NoReturn:
    raise ValueError("NaN and Infinity are not JSON")


# The standard library's, for orjson would turn an integer above 64 bits into a float.
_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)
_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))


class JsonValues:
    """Reads a value that is JSON. Of two equal names the last one counts."""

    def read(self, record: Record) -> object:
        """See :class:`workers.codecs.fields.Values`."""
        if record.value is not None and record.value.startswith(b"\0"):
            message = (
                "the value is not JSON: it may be in Confluent's wire format, which source.format json_schema reads"
            )
            raise PoisonError("decode", "invalid_json", message)
        return parse_json(utf8_value(record))


def parse_json(text: str) -> object:
    """A text that is strictly JSON.

    Raises:
        PoisonError: it is not.
    """
    # The messages are ours: a parser's may quote what it read.
    try:
        values: object = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        message = f"the value is not JSON: line {error.lineno}, column {error.colno} is wrong"
        raise PoisonError("decode", "invalid_json", message) from None
    except ValueError:
        message = "the value is not JSON that we take: it holds NaN, Infinity, or a number of thousands of digits"
        raise PoisonError("decode", "invalid_json", message) from None
    except RecursionError:
        message = "the value is not JSON that we take: it is nested too deeply"
        raise PoisonError("decode", "invalid_json", message) from None
    return values


def as_json(value: object) -> str:
    """A value of a decoded record in JSON again, numbers with the digits that they came with.

    Raises:
        PoisonError: stage ``output``: it is nested too deeply.
    """
    try:
        return _ENCODER.encode(value)
    except (ValueError, RecursionError):
        message = "an included field holds what JSON cannot: a number out of range, or too many levels"
        raise PoisonError("output", "not_json", message) from None


@dataclass(frozen=True, slots=True)
class JsonRenderer:
    """Writes embeddings for people: an object, its vector a list of numbers."""

    topic: str
    dim: int
    precision: str
    model: str
    fingerprint: str
    include: tuple[str, ...] = ()
    chunk_text: bool = False

    def render(
        self, record: Record, embedding: Embedding, vector: type_vector, scale: np.float32 | None = None
    ) -> Message:
        """See :class:`workers.codecs.base.Renderer`."""
        value = render_embedding(
            embedding.id,
            vector,
            dim=self.dim,
            precision=self.precision,
            scale=scale,
            model=self.model,
            fingerprint=self.fingerprint,
            tokens=embedding.tokens,
            truncated=embedding.truncated,
            fields=own_fields(embedding, self.include, chunk_text=self.chunk_text),
        )
        return Message(self.topic, key_of(record, embedding), value, kept_headers(record), record.timestamp_ms)


def own_fields(embedding: Embedding, include: tuple[str, ...], *, chunk_text: bool) -> dict[str, object]:
    """What only some outputs say of an embedding: which chunk it is, the chunk's text, and the included fields."""
    fields: dict[str, object] = {}
    if (chunk := embedding.chunk) is not None:
        fields["chunk"] = chunk_fields(chunk)
        if chunk_text:
            fields["chunk_text"] = embedding.text
    return fields | {name: embedding.document.fields.get(name) for name in include}


def chunk_fields(chunk: Chunk) -> dict[str, int]:
    """Which part of a document's text it is, as an object or a record says it."""
    return {"index": chunk.index, "count": chunk.count, "start": chunk.start, "end": chunk.end}


def render_embedding(
    id: str,
    vector: type_vector,
    *,
    dim: int,
    precision: str,
    scale: np.float32 | None = None,
    model: str,
    fingerprint: str,
    tokens: int,
    truncated: bool,
    fields: Mapping[str, object],
) -> bytes:
    """One embedding as a JSON object in UTF-8, without a line end.

    Components are written with the fewest digits that give back the same number of their type, whole numbers as such.
    ``dim`` counts dimensions, also where the vector holds packed bits. ``fields`` come last, beside the others.

    Raises:
        PoisonError: the id or a field is something that JSON in UTF-8 cannot hold, or the vector is not finite.
    """
    if not np.isfinite(vector).all():
        raise PoisonError("output", "not_finite", "the vector holds a number that is not finite")
    about: dict[str, object] = {"dim": dim, "precision": precision}
    if scale is not None:
        about["scale"] = float(shortest(scale))
    about |= {"model": model, "fingerprint": fingerprint}
    try:
        head = _ENCODER.encode({"id": id})[:-1].encode()
        tail = _ENCODER.encode({**about, "tokens": tokens, "truncated": truncated, **fields})[1:].encode()
    except (ValueError, RecursionError):
        message = "the id or an included field holds what JSON cannot: half a surrogate pair, or a number out of range"
        raise PoisonError("output", "not_json", message) from None
    return b'%b,"embedding":%b,%b' % (head, numbers(vector), tail)


def numbers(vector: type_vector) -> bytes:
    """A finite vector as a list in JSON: of each component the fewest digits that give it back."""
    if vector.dtype == np.float16:
        digits = _float16_digits()
        return b"[%b]" % b",".join([digits[bits] for bits in vector.view(np.uint16).tolist()])
    return orjson.dumps(np.ascontiguousarray(vector), option=orjson.OPT_SERIALIZE_NUMPY)


@cache
def _float16_digits() -> list[bytes]:
    """Every float16 in JSON, by its bits: orjson would write it with the digits of a float32, twice as many."""
    return [shortest(number).encode() for number in np.arange(1 << 16, dtype=np.uint16).view(np.float16)]
