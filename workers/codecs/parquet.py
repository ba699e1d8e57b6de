"""Embeddings as rows of Parquet files, which any engine reads.

Comes in: records and their outcomes. Goes out: rows, batches of them, a file's bytes; and the notes in a file's footer. Never
here: where files go, or what a chain of them means.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from workers.codecs.base import id_of, type_projected_chunk, type_vector
from workers.codecs.columns import arrow_type, converter
from workers.codecs.parquet_vectors import TYPES, Part, chunks_array, chunks_type, vector_array, vector_type
from workers.errors import PoisonError
from workers.records import Chunk, Document, Embedding, Record
from workers.settings.outputs import ColumnType

_MAGIC = b"PAR1"
NOTES = "stream-embedder."
_CHUNK = ("index", "count", "start", "end")
# The column that vectors are to Parquet, of rows, and of chunks in a row.
_COMPONENT = "embedding.list.element"
_COMPONENT_OF_CHUNK = f"chunks.list.element.{_COMPONENT}"


class Row(NamedTuple):
    """One row, its vector in the output's precision, or its ``parts``; neither where a key is deleted."""

    id: str
    embedding: type_vector | None
    scale: np.float32 | None
    tokens: int
    truncated: bool
    record: Record
    include: tuple[Any, ...]
    key: bytes | None
    chunk: Chunk | None = None
    chunk_text: str | None = None
    parts: tuple[Part, ...] | None = None

    @property
    def deleted(self) -> bool:
        """Whether it says that a key is gone."""
        return self.embedding is None and self.parts is None


@dataclass(frozen=True)
class ParquetRenderer:
    """Writes embeddings, and deletions, as rows.

    Columns: ``id``; ``embedding``, a fixed-size list of ``dim`` components (an eighth of it where bits are packed), null in a
    deletion; ``scale`` with precision int8 alone; ``tokens``; ``truncated``; ``deleted``; ``fingerprint``; ``topic``,
    ``partition``, ``offset``, ``timestamp`` and ``key`` of the source's record; and the included fields, each of the type that
    ``include`` declares. Where texts are cut into chunks (``chunked``), ``chunk_index``, ``chunk_count``, ``chunk_start`` and
    ``chunk_end`` stand before those, null in a deletion, and with ``chunk_text`` a column of that name. Where a row has all of a
    document's (``together``), none of these, no ``embedding`` and no ``scale``, but ``chunks``, a list of structs: ``index``,
    ``embedding``, ``scale``, ``tokens``, ``start``, ``end``, ``text``.
    """

    dim: int
    precision: str
    model: str
    fingerprint: str
    include: Mapping[str, ColumnType] = field(default_factory=dict)
    compression: str = "zstd"
    chunked: bool = False
    chunk_text: bool = False
    together: bool = False

    @cached_property
    def _converters(self) -> tuple[tuple[str, Callable[[object], Any]], ...]:
        """Each included field, and what makes its values those of its column."""
        return tuple((name, converter(name, column)) for name, column in self.include.items())

    @property
    def _in_bytes(self) -> bool:
        """Whether a component, or eight of them packed, is a whole number of 8 bits."""
        return TYPES[self.precision] in (pa.int8(), pa.uint8())

    @cached_property
    def schema(self) -> pa.Schema:
        """The columns of every file."""
        vector = [pa.field("embedding", vector_type(self.precision, self.dim))]
        vector += [pa.field("scale", pa.float32())] if self.precision == "int8" else []
        chunk = [pa.field(f"chunk_{name}", pa.int32()) for name in _CHUNK] if self.chunked else []
        chunk += [pa.field("chunk_text", pa.string())] if self.chunk_text else []
        if self.together:
            vector, chunk = [pa.field("chunks", chunks_type(vector, text=self.chunk_text))], []
        return pa.schema(
            [
                pa.field("id", pa.string(), nullable=False),
                *vector,
                pa.field("tokens", pa.int32(), nullable=False),
                pa.field("truncated", pa.bool_(), nullable=False),
                pa.field("deleted", pa.bool_(), nullable=False),
                pa.field("fingerprint", pa.string(), nullable=False),
                pa.field("topic", pa.string(), nullable=False),
                pa.field("partition", pa.int32(), nullable=False),
                pa.field("offset", pa.int64(), nullable=False),
                pa.field("timestamp", pa.timestamp("ms", "UTC")),
                pa.field("key", pa.binary()),
                *chunk,
                *(pa.field(name, arrow_type(column)) for name, column in self.include.items()),
            ]
        )

    def row(self, record: Record, embedding: Embedding, vector: type_vector, scale: np.float32 | None) -> Row:
        """The row of an embedding; ``vector`` [dim], or [dim / 8] where bits are packed, in the output's type.

        Raises:
            PoisonError: stage ``output``: an included field is not of its column's type, or it or the id is something that no
                text can hold.
        """
        fields = self._included(embedding.document)
        return Row(
            embedding.id,
            vector,
            scale,
            embedding.tokens,
            embedding.truncated,
            record,
            fields,
            embedding.key(record),
            embedding.chunk,
            embedding.text if self.chunk_text else None,
        )

    def whole_row(self, record: Record, parts: Sequence[Embedding], vectors: Sequence[type_projected_chunk]) -> Row:
        """The row of a record in chunks, all of them; errors as above."""
        document = parts[0].document
        fields = self._included(document)
        made = tuple(
            Part(part.chunk, vector, scale, part.tokens, part.text if self.chunk_text else None)
            for part, (vector, scale) in zip(parts, vectors, strict=True)
            if part.chunk is not None
        )
        tokens, truncated = sum(part.tokens for part in parts), any(part.truncated for part in parts)
        return Row(document.id, None, None, tokens, truncated, record, fields, record.key, parts=made)

    def _included(self, document: Document) -> tuple[Any, ...]:
        """What is included of a document, as its columns have it; errors as above."""
        fields = tuple(convert(document.fields.get(name)) for name, convert in self._converters)
        for value in (document.id, *fields):
            _refuse_surrogates(value)
        return fields

    def deletion(self, record: Record) -> Row:
        """The row that says: what had this record's key is gone."""
        return Row(id_of(record), None, None, 0, False, record, (None,) * len(self.include), record.key)

    def batch(self, rows: Sequence[Row]) -> pa.RecordBatch:
        """The rows as columns."""
        schema = self.schema
        origins = [row.record.origin for row in rows]
        columns = {
            "id": [row.id for row in rows],
            "tokens": [row.tokens for row in rows],
            "truncated": [row.truncated for row in rows],
            "deleted": [row.deleted for row in rows],
            "fingerprint": [self.fingerprint] * len(rows),
            "topic": [origin.topic for origin in origins],
            "partition": [origin.partition for origin in origins],
            "offset": [origin.offset for origin in origins],
            "timestamp": [None if row.record.timestamp_ms < 0 else row.record.timestamp_ms for row in rows],
            "key": [row.key for row in rows],
            "chunk_text": [row.chunk_text for row in rows],
        }
        for name in _CHUNK:
            columns[f"chunk_{name}"] = [None if row.chunk is None else getattr(row.chunk, name) for row in rows]
        if self.together:
            columns["chunks"] = chunks_array(schema.field("chunks").type, [row.parts for row in rows])
        else:
            columns["embedding"] = vector_array(schema.field("embedding").type, [row.embedding for row in rows])
            columns["scale"] = [row.scale for row in rows]
        for number, name in enumerate(self.include):
            columns[name] = [row.include[number] for row in rows]
        return pa.RecordBatch.from_arrays(
            [
                values if isinstance(values := columns[field.name], pa.Array) else pa.array(values, field.type)
                for field in schema
            ],
            schema=schema,
        )

    def after(self, batch: pa.RecordBatch, offset: int) -> pa.RecordBatch:
        """The rows of source offsets from ``offset`` on; a batch's rows are in their order."""
        return batch.slice(int(np.searchsorted(batch.column("offset").to_numpy(), offset)))

    def file(self, batches: Sequence[pa.RecordBatch], notes: Mapping[str, str]) -> bytes:
        """A file of these batches, none is one without rows; ``notes`` stand in its footer, beside what it holds."""
        about = {"model": self.model, "fingerprint": self.fingerprint}
        about |= {"dim": str(self.dim), "precision": self.precision, **notes}
        metadata = {NOTES + name: value for name, value in about.items()}
        table = pa.Table.from_batches(batches, self.schema).replace_schema_metadata(metadata)
        components = _COMPONENT_OF_CHUNK if self.together else _COMPONENT
        sink = io.BytesIO()
        pq.write_table(
            table,
            sink,
            compression=self.compression,
            # Vectors do not repeat, and what does, repeats in every row. But Parquet has no integers below 32 bits: of a byte it
            # writes four, and of 256 different ones their number, which compresses to two thirds of that.
            use_dictionary=["fingerprint", "topic", "partition", *([components] if self._in_bytes else [])],
            store_schema=True,
        )
        return sink.getvalue()


def read_notes(tail: bytes) -> dict[str, str] | None:
    """The notes of a file's footer, by its last bytes; None when there are more of them than ``tail`` holds.

    Raises:
        ValueError: it is no Parquet file.
    """
    if len(tail) < 12 or tail[-4:] != _MAGIC:
        raise ValueError("not a Parquet file")
    (length,) = struct.unpack("<I", tail[-8:-4])
    if length + 8 > len(tail):
        return None
    try:
        # A reader wants the file's first bytes too; the footer is all that it goes on to read.
        metadata: Any = pq.read_metadata(io.BytesIO(_MAGIC + tail[-length - 8 :]))
    except (pa.ArrowException, OSError) as error:
        raise ValueError("not a Parquet file") from error
    found = metadata.metadata or {}
    return {
        name.decode()[len(NOTES) :]: value.decode("utf-8", "replace")
        for name, value in found.items()
        if name.startswith(NOTES.encode())
    }


def _refuse_surrogates(value: object) -> None:
    """Raise for what no text can hold, in a column's value or in one of its list."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            message = "the id or an included field holds half of a surrogate pair, which is no character"
            raise PoisonError("output", "lone_surrogate", message) from None
    elif isinstance(value, list):
        for each in value:
            _refuse_surrogates(each)
