"""Refused rows as a Parquet file, each with where it came from, why, and its line; and refused records of topics, whole.

Comes in: rows and their reasons. Goes out: a file's bytes, and its name. Never here: a row's text outside of its value.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.batch.rows import FileRow
from workers.codecs.json import as_json
from workers.codecs.plain import plain
from workers.errors import PoisonError
from workers.records import DeadLetter, Record

SCHEMA = pa.schema(
    [
        pa.field("file", pa.string(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("stage", pa.string(), nullable=False),
        pa.field("class", pa.string(), nullable=False),
        pa.field("message", pa.string(), nullable=False),
        pa.field("value", pa.binary()),
    ]
)

# Of a topic's records: all that came, byte for byte.
RECORD_SCHEMA = pa.schema(
    [
        pa.field("topic", pa.string(), nullable=False),
        pa.field("partition", pa.int32(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("timestamp", pa.timestamp("ms", "UTC")),
        pa.field("key", pa.binary()),
        pa.field(
            "headers",
            pa.list_(
                pa.struct([pa.field("name", pa.binary(), nullable=False), pa.field("value", pa.binary())]),
            ),
            nullable=False,
        ),
        *(SCHEMA.field(name) for name in ("stage", "class", "message", "value")),
    ]
)


def dead_letters_file(refused: Sequence[tuple[FileRow, DeadLetter]]) -> bytes:
    """The file. ``value`` is the row's line byte for byte; of a row that has none, its fields in JSON; else null."""
    columns: list[Sequence[object]] = [
        [row.origin.topic for row, _ in refused],
        [row.origin.offset for row, _ in refused],
        [letter.stage for _, letter in refused],
        [letter.reason for _, letter in refused],
        [letter.message.encode("utf-8", "replace").decode() for _, letter in refused],
        [_value(row) for row, _ in refused],
    ]
    return _file(columns, SCHEMA)


def dead_records_file(refused: Sequence[tuple[Record, DeadLetter]]) -> bytes:
    """The file of records of topics; a header's name is its bytes, for it need not be text."""
    columns: list[Sequence[object]] = [
        [record.origin.topic for record, _ in refused],
        [record.origin.partition for record, _ in refused],
        [record.origin.offset for record, _ in refused],
        [None if record.timestamp_ms < 0 else record.timestamp_ms for record, _ in refused],
        [record.key for record, _ in refused],
        [[{"name": name.encode(), "value": value} for name, value in record.headers] for record, _ in refused],
        [letter.stage for _, letter in refused],
        [letter.reason for _, letter in refused],
        [letter.message.encode("utf-8", "replace").decode() for _, letter in refused],
        [record.value for record, _ in refused],
    ]
    return _file(columns, RECORD_SCHEMA)


def _file(columns: Sequence[Sequence[object]], schema: pa.Schema) -> bytes:
    arrays = [pa.array(values, column.type) for values, column in zip(columns, schema, strict=True)]
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_arrays(arrays, schema=schema), sink, compression="zstd")
    return sink.getvalue()


def digest(refused: Sequence[tuple[Record, DeadLetter]]) -> str:
    """Names which rows are refused: the same part has the same, unless an output that came later refuses more."""
    told = ",".join(f"{row.origin.offset}:{letter.stage}:{letter.reason}" for row, letter in refused)
    return hashlib.sha256(told.encode()).hexdigest()[:8]


def _value(row: FileRow) -> bytes | None:
    if row.value is not None or row.fields is None:
        return row.value
    try:
        return as_json(plain(row.fields)).encode("utf-8", "surrogatepass")
    except (PoisonError, UnicodeEncodeError):
        return None
