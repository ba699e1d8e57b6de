"""Embeddings read back from what outputs hold: every format, every precision, and what is none of ours."""

from __future__ import annotations

import datetime
import io
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from workers.codecs import renderer_for
from workers.codecs.avro_record import AvroRenderer
from workers.codecs.parquet import ParquetRenderer
from workers.codecs.parquet_rows import column_names, plain_rows, stored_rows
from workers.codecs.stored import Space, Stored, StoredReader
from workers.encoder.quantize import PRECISIONS, WITH_RANGES, Projection
from workers.encoder.ranges import Ranges
from workers.errors import RetryableError
from workers.records import Document, Embedding, Message, Origin, Record
from workers.schema_registry import Schema
from workers.settings import KafkaOutput, Settings
from workers.settings.outputs import ColumnType

DIM = 16
VECTOR = np.random.default_rng(5).normal(size=(1, DIM)).astype(np.float32)
SPACE = Space("m", "f" * 16, DIM, "float32")


class Registry:
    def __init__(self) -> None:
        self.schemas: dict[Any, Schema] = {}

    def schema(self, id: Any) -> Schema | None:
        return self.schemas.get(id)

    def __call__(self, schema: Schema) -> int:
        self.schemas[7] = schema
        return 7


def quantized(precision: str) -> tuple[Any, Any]:
    ranges = None
    if precision in WITH_RANGES:
        ranges = Ranges(np.full(DIM, -1, np.float32), np.full(DIM, 1, np.float32))
    return next(Projection(DIM, precision, ranges)(VECTOR).rows())


def record(key: bytes | None = b"k", value: bytes | None = b"{}", headers: Any = ()) -> Record:
    return Record(Origin("vectors", 0, 3, 0), key, value, 1_700_000_000_000, headers)


def embedding(**fields: object) -> Embedding:
    return Embedding(Document("id-1", "text", fields), VECTOR[0], 5, False)


def of_message(message: Message) -> Record:
    return Record(Origin(message.topic, 0, 0, 0), message.key, message.value, message.timestamp_ms, message.headers)


def same(found: Stored, precision: str, fields: dict[str, object]) -> None:
    values, scale = quantized(precision)
    assert found.values is not None
    assert (found.key, found.id, found.space) == (b"k", "id-1", Space("m", "f" * 16, DIM, precision))
    assert found.values.dtype == values.dtype and np.array_equal(found.values, values)
    assert found.scale == scale and dict(found.fields) == fields


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("format", ["json", "binary", "avro"])
def test_a_record_says_again_what_was_written(format: str, precision: str):
    registry, fields = Registry(), {} if format == "binary" else {"title": "T"}
    given: dict[str, Any] = {"topic": "vectors", "format": format, "include": tuple(fields)}
    output = KafkaOutput.model_construct(**given, precision=precision)
    renderer = renderer_for(output, dim=DIM, model="m", fingerprint="f" * 16, schema_id=registry)
    if format == "avro":
        assert isinstance(renderer, AvroRenderer)
    message = renderer.render(record(), embedding(**fields), *quantized(precision))
    (found,) = StoredReader(Settings(), registry).read(of_message(message))
    same(found, precision, fields)


def test_avro_waits_for_its_registry():
    registry = Registry()
    output = KafkaOutput(topic="vectors", format="avro")
    renderer = renderer_for(output, dim=DIM, model="m", fingerprint="f" * 16, schema_id=registry)
    message = of_message(renderer.render(record(), embedding(), VECTOR[0], None))
    with pytest.raises(RetryableError, match=r"registry\.url"):
        StoredReader(Settings()).read(message)
    registry.schemas.clear()
    assert StoredReader(Settings(), registry).read(message) == []


def test_a_tombstone_deletes_its_key_and_an_id_stands_in_for_one():
    reader = StoredReader(Settings())
    assert reader.read(record(value=None)) == [Stored(b"k", "k")]
    assert reader.read(record(key=None, value=None)) == []
    output = KafkaOutput(topic="vectors")
    renderer = renderer_for(output, dim=DIM, model="m", fingerprint="f" * 16)
    (found,) = reader.read(of_message(renderer.render(record(key=None), embedding(), VECTOR[0], None)))
    assert found.key == "id-1"


@pytest.mark.parametrize(
    ("value", "headers"),
    [
        (b'{"id": "a", "text": "no vector"}', ()),
        (b'{"id": "a", "embedding": ["x"], "dim": 1, "precision": "float32", "model": "m", "fingerprint": "f"}', ()),
        (b'{"id": "a", "embedding": [300], "dim": 1, "precision": "int8", "model": "m", "fingerprint": "f"}', ()),
        (b'{"id": "a", "embedding": [1.0], "dim": 2, "precision": "float32", "model": "m", "fingerprint": "f"}', ()),
        (b'{"id": "a", "embedding": [], "dim": 0, "precision": "float32", "model": "m", "fingerprint": "f"}', ()),
        (b'{"id": "a", "embedding": [1], "dim": 1, "precision": "int3", "model": "m", "fingerprint": "f"}', ()),
        (b"{", ()),
        (b"plain", ()),
        (b"\0\0\0\0\7x", ()),
        (b"\0\0\0\0\7x", (("embedding-fingerprint", b"f"),)),
        (b"abc", (("embedding-precision", b"float32"), ("embedding-dim", b"1"))),
        (b"abcd", (("embedding-precision", b"float32"), ("embedding-dim", b"one"))),
        (b"abcd", (("embedding-precision", None), ("embedding-dim", b"1"))),
        (b"a", (("embedding-precision", b"int8"), ("embedding-dim", b"1"), ("embedding-scale", b"x"))),
    ],
)
def test_what_is_none_of_ours_is_none(value: bytes, headers: Any):
    assert StoredReader(Settings(), Registry()).read(record(value=value, headers=headers)) == []


def test_a_binary_vector_that_begins_as_json_does():
    (number,) = np.frombuffer(b"{\0\0\x40", "<f4")
    headers = (("embedding-id", b"a"), ("embedding-precision", b"float32"), ("embedding-dim", b"1"))
    (found,) = StoredReader(Settings()).read(record(value=b"{\0\0\x40", headers=headers))
    assert found.values is not None and found.values.tolist() == [number]


# ---- Parquet


def file(precision: str, rows: int = 3, **include: str) -> bytes:
    """Embeddings ``rows`` times, the second one a deletion."""
    columns = {name: ColumnType.parse(type) for name, type in include.items()}
    renderer = ParquetRenderer(DIM, precision, "m", "f" * 16, columns)
    made = [renderer.row(record(), embedding(title="T", price=1.5), *quantized(precision)) for _ in range(rows)]
    made[1:2] = [renderer.deletion(record())]
    return renderer.file([renderer.batch(made)], {})


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_file_says_again_what_was_written(precision: str):
    (rows,) = stored_rows(file(precision, title="string", price="float64"))
    same(rows[0], precision, {"title": "T", "price": 1.5})
    assert rows[1] == Stored(b"k", "k")
    same(rows[2], precision, {"title": "T", "price": 1.5})


@pytest.mark.parametrize("precision", ["float32", "float16", "int8", "int8_ranges", "binary", "ubinary"])
def test_a_file_that_another_engine_wrote_anew(precision: str, tmp_path: Path):
    """No footer of ours, and lists of any length for vectors: what the columns say must do, or it is refused."""
    table = pl.read_parquet(io.BytesIO(file(precision))).with_columns(pl.col("embedding").arr.to_list())
    table.write_parquet(tmp_path / "merged.parquet")
    content = (tmp_path / "merged.parquet").read_bytes()
    if precision in ("int8_ranges", "binary", "ubinary"):
        with pytest.raises(ValueError, match="which several precisions are"):
            list(stored_rows(content))
        return
    (rows,) = stored_rows(content)
    values, scale = quantized(precision)
    for row in (rows[0], rows[2]):
        assert row.values is not None and np.array_equal(row.values, values)
        assert (row.space, row.scale) == (Space("", "f" * 16, DIM, precision), scale)
    assert rows[1] == Stored(b"k", "k")


def test_a_table_of_somebody_who_has_ids_and_vectors_alone(tmp_path: Path):
    path = tmp_path / "plain.parquet"
    duckdb.sql(f"copy (select 'a' as id, [1.0, 2.0]::double[] as embedding) to '{path}'")
    (((row,)),) = stored_rows(path.read_bytes())
    assert (row.key, row.id, row.space) == ("a", "a", Space("", "", 2, "float32"))
    assert row.values is not None and row.values.dtype == np.float32 and row.values.tolist() == [1, 2]


def written(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"not Parquet", "no Parquet file"),
        (file("float32")[:-100], "no Parquet file"),
        (written(pa.table({"id": ["a"], "text": ["b"]})), "no columns id and embedding"),
        (written(pa.table({"id": [1], "embedding": [[1.0]]})), "ids are text"),
        (written(pa.table({"id": ["a"], "embedding": [1.0]})), "a vector is a list"),
        (written(pa.table({"id": ["a"], "embedding": [["x"]]})), "which several precisions are"),
        (written(pa.table({"id": ["a", "b"], "embedding": [[1.0], [1.0, 2.0]]})), "not of one length"),
        (written(pa.table({"id": ["a"], "embedding": pa.array([[]], pa.list_(pa.float32()))})), "not of one length"),
    ],
)
def test_what_is_no_file_of_ours_is_said(content: bytes, says: str):
    with pytest.raises(ValueError, match=says):
        list(stored_rows(content))


def test_files_without_rows_have_none():
    empty = ParquetRenderer(DIM, "float32", "m", "f" * 16).file([], {})
    assert [row for rows in stored_rows(empty) for row in rows] == []
    deletions = ParquetRenderer(DIM, "float32", "m", "f" * 16)
    content = deletions.file([deletions.batch([deletions.deletion(record())])], {})
    assert list(stored_rows(content)) == [[Stored(b"k", "k")]]


def test_anybodys_rows_come_as_they_are(tmp_path: Path):
    path = tmp_path / "any.parquet"
    path.write_bytes(written(pa.table({"n": [1, 2], "text": ["a", None], "x": [0.5, 1.5]})))
    assert column_names(path) == ["n", "text", "x"]
    assert list(plain_rows(path, ["text"])) == [{"text": "a"}, {"text": None}]
    times = pa.array([1_700_000_000_123_456_789, 0], pa.timestamp("ns"))
    text = pa.array([b"good", b"\xff"], pa.binary()).cast(pa.string(), safe=False)
    path.write_bytes(written(pa.table({"at": times, "text": text})))
    first, second = plain_rows(path, ["at", "text"])
    assert first == {"at": datetime.datetime(2023, 11, 14, 22, 13, 20, 123456), "text": "good"}  # noqa: DTZ001 - no zone
    assert second is None, "of bytes that are no UTF-8 Python has no text"
    path.write_bytes(b"PAR1")
    with pytest.raises(ValueError, match="no Parquet file"):
        column_names(path)
