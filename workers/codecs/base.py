"""The two seams, and what every decoder does alike.

Comes in: a record. Goes out: a document, or a PoisonError that never quotes the record. Never here: a format's own rules.
"""

from __future__ import annotations

import base64
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from workers.errors import PoisonError, RetryableError, StreamEmbedderError
from workers.records import Document, Embedding, Message, Record, Tombstone, type_headers

# Where Confluent's newer wire format has the id of the value's schema.
SCHEMA_HEADER = "__value_schema_id"

type_vector = npt.NDArray[np.floating[Any]] | npt.NDArray[np.integer[Any]]
# A chunk's vector as an output writes it, and its scale with precision int8.
type_projected_chunk = tuple[type_vector, np.float32 | None]


class Decoder(Protocol):
    """Understands a source record."""

    def decode(self, record: Record) -> Document | Tombstone:
        """The record's document, or that it deletes one; any bytes give one of the two or a PoisonError, and nothing else.

        Raises:
            PoisonError: stage ``decode`` or ``text``.
            RetryableError: what the format needs from outside, such as a schema, cannot be had now; nothing is the record's fault.
            EnvironmentFault: so it is, and somebody has to do something.
        """


def understood(decoder: Decoder, record: Record) -> Document | Tombstone | PoisonError:
    """What a decoder makes of a record, or why it makes nothing of it.

    What a decoder should never raise it raises again at every start, for the record is still the next one: so that, too, is a
    reason, of the class ``decoder_raised``. It says where, which is ours to mend, and not what, which may quote the record.

    Raises:
        RetryableError, EnvironmentFault: as :meth:`Decoder.decode`; and when there is no memory or no file here just now.
    """
    try:
        return decoder.decode(record)
    except PoisonError as error:
        return error
    except StreamEmbedderError:
        raise
    except (OSError, MemoryError) as error:
        raise RetryableError(f"a record cannot be read here now ({type(error).__name__})") from None
    except Exception as error:  # noqa: BLE001 - one record may not end the reader of all
        place = traceback.extract_tb(error.__traceback__)[-1]
        what = f"{type(error).__name__}, {Path(place.filename).name}:{place.lineno}"
        message = (
            f"reading the value fails in a way that no value should ({what}): that is a mistake in stream-embedder"
        )
        return PoisonError("decode", "decoder_raised", message)


class Renderer(Protocol):
    """Writes an embedding down as an output record."""

    def render(
        self, record: Record, embedding: Embedding, vector: type_vector, scale: np.float32 | None = None
    ) -> Message:
        """The output record of ``record``: its key, timestamp and headers stay; of a chunk, key and id have its number.

        Args:
            record: where the embedding came from.
            embedding: document, tokens, truncated, chunk; its own vector is not used.
            vector: what the output writes, in its precision's type: [dim], or [dim / 8] where bits are packed.
            scale: of precision int8: components are about ``vector * scale``.

        Raises:
            PoisonError: stage ``output``: the format has no way to write this.
        """


class WholeRenderer(Protocol):
    """Writes all chunks of a record down as one output record."""

    def render_whole(
        self, record: Record, parts: Sequence[Embedding], vectors: Sequence[type_projected_chunk]
    ) -> Message:
        """The output record of ``record``: its key, timestamp and headers stay.

        Args:
            record: where the embeddings came from.
            parts: of one document, a chunk each, in order, all of them.
            vectors: of each what the output writes, as in :meth:`Renderer.render`.

        Raises:
            PoisonError: stage ``output``: the format has no way to write this.
        """


class RowRenderer(Protocol):
    """Writes outcomes down as rows."""

    def row(self, record: Record, embedding: Embedding, vector: type_vector, scale: np.float32 | None) -> object:
        """The row of an embedding, ``vector`` in the output's precision.

        Raises:
            PoisonError: stage ``output``: it cannot be written.
        """

    def deletion(self, record: Record) -> object:
        """The row that says: what had this record's key is gone."""


class WholeRowRenderer(Protocol):
    """Writes all chunks of a record down as one row."""

    def whole_row(self, record: Record, parts: Sequence[Embedding], vectors: Sequence[type_projected_chunk]) -> object:
        """The row of a record in chunks; arguments and errors as :meth:`WholeRenderer.render_whole`."""


def key_of(record: Record, embedding: Embedding) -> bytes | None:
    """The key of an output record: that of the source's, of a chunk with its number.

    Raises:
        PoisonError: it comes from an id that is no text.
    """
    try:
        return embedding.key(record)
    except UnicodeEncodeError:
        message = "the id holds half of a surrogate pair, which is no character"
        raise PoisonError("output", "lone_surrogate", message) from None


def shortest(number: np.floating[Any]) -> str:
    """The fewest digits that give the same number of its type again."""
    return str(number)


def bytes_of(record: Record) -> bytes:
    """The value.

    Raises:
        PoisonError: there is none.
    """
    if record.value is None:
        # One with a key never comes here: it is passed through.
        raise PoisonError("decode", "tombstone_without_key", "a null value without a key deletes nothing")
    return record.value


def utf8_value(record: Record) -> str:
    """The value as text.

    Raises:
        PoisonError: there is none, or it is not UTF-8.
    """
    return utf8(bytes_of(record))


def utf8(value: bytes) -> str:
    """Bytes as text.

    Raises:
        PoisonError: they are not UTF-8.
    """
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise PoisonError("decode", "invalid_utf8", f"the value is not UTF-8: byte {error.start} is wrong") from None


def kept_headers(record: Record) -> type_headers:
    """The headers that an output record keeps: all but the one that says which schema the source's value is in."""
    return tuple(header for header in record.headers if header[0] != SCHEMA_HEADER)


def id_of(record: Record) -> str:
    """A document's id when no template says otherwise: the key as text, else in base64; without a key, the origin."""
    if record.key is None:
        return str(record.origin)
    try:
        return record.key.decode()
    except UnicodeDecodeError:
        return base64.b64encode(record.key).decode("ascii")


def refuse_surrogates(text: str, what: str) -> None:
    """Refuse what no tokenizer and no UTF-8 writer takes, and JSON's escapes can still spell.

    Raises:
        PoisonError: ``what`` holds half of a surrogate pair.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        message = f"{what} holds half of a surrogate pair, which is no character"
        raise PoisonError("text", "lone_surrogate", message) from None


def refuse_blank(text: str) -> None:
    """Refuse a text without a visible character.

    Raises:
        PoisonError: it is empty, or white space.
    """
    if not text.strip():
        raise PoisonError("text", "empty", "the text is empty or white space; source.empty: embed would take it")
