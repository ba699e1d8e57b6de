"""Rows of Parquet files: every precision, every engine, and the notes in a footer."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.codecs.parquet import ParquetRenderer, Row, read_notes
from workers.encoder.quantize import Projection
from workers.encoder.ranges import Ranges
from workers.errors import PoisonError
from workers.records import Document, Embedding, Origin, Record

DIM = 16


def source(offset: int = 7, **changes: Any) -> Record:
    facts: dict[str, Any] = {"key": b"k", "value": b"{}", "timestamp_ms": 1_700_000_000_000, **changes}
    return Record(Origin("docs", 3, offset, 1), **facts)


def embedding(**fields: object) -> Embedding:
    return Embedding(Document("id-1", "text", fields), np.ones(DIM, np.float32) / 4, 5, True)


def projection(precision: str) -> Projection:
    low, high = np.full(DIM, -1, np.float32), np.full(DIM, 1, np.float32)
    ranges = Ranges(low, high) if precision.endswith("_ranges") else None
    return Projection(DIM, precision, ranges)


def made(renderer: ParquetRenderer, rows: list[Row], **notes: str) -> bytes:
    return renderer.file([renderer.batch(rows)], notes)


@pytest.mark.parametrize(
    "precision", ["float32", "float16", "int8", "int8_ranges", "uint8_ranges", "binary", "ubinary"]
)
def test_every_engine_reads_the_same_vectors_in_every_precision(precision: str, tmp_path: Path):
    vectors = np.random.default_rng(1).normal(size=(3, DIM)).astype(np.float32)
    quantized = projection(precision)(vectors)
    renderer = ParquetRenderer(DIM, precision, "m", "f" * 16, ("title",))
    rows = [renderer.row(source(n), embedding(title="T"), *one) for n, one in enumerate(quantized.rows())]
    rows.insert(1, renderer.deletion(source(1)))
    folder = tmp_path / "topic-docs" / "id-0" / "partition-3"
    folder.mkdir(parents=True)
    (folder / f"{0:020d}.parquet").write_bytes(made(renderer, rows))

    glob = f"{tmp_path}/**/*.parquet"
    found = {
        "pyarrow": pq.read_table(tmp_path).to_pylist(),
        "dataset": ds.dataset(tmp_path, partitioning="hive").to_table().to_pylist(),
        "polars": pl.read_parquet(glob).to_dicts(),
        "duckdb": duckdb.sql(f"select * from read_parquet('{glob}')").arrow().read_all().to_pylist(),
    }
    wanted = [quantized.values[0], None, *quantized.values[1:]]
    for engine, table in found.items():
        for row, vector in zip(table, wanted, strict=True):
            if vector is None:
                assert (row["embedding"], row["deleted"], row["id"]) == (None, True, "k"), engine
            else:
                assert not row["deleted"]
                assert np.array_equal(np.array(row["embedding"], vector.dtype), vector), engine
        assert [row["title"] for row in table] == ["T", None, "T", "T"]
        assert ("scale" in table[0]) == (precision == "int8")
        if quantized.scales is not None:
            assert np.float32(table[2]["scale"]) == quantized.scales[1]
            assert table[1]["scale"] is None


def test_a_row_says_where_it_came_from_and_what_the_text_was():
    renderer = ParquetRenderer(DIM, "float32", "m", "0123456789abcdef", ("n", "tags", "gone"))
    row = renderer.row(
        source(offset=2**40, timestamp_ms=-1, key=None), embedding(n=1.50, tags=["a", "é"]), np.zeros(DIM, "f4"), None
    )
    (found,) = pq.read_table(io.BytesIO(made(renderer, [row]))).to_pylist()
    del found["embedding"]
    assert found == {
        "id": "id-1",
        "tokens": 5,
        "truncated": True,
        "deleted": False,
        "fingerprint": "0123456789abcdef",
        "topic": "docs",
        "partition": 3,
        "offset": 2**40,
        "timestamp": None,
        "key": None,
        "n": "1.5",
        "tags": '["a","é"]',
        "gone": None,
    }


def test_files_of_one_output_have_one_schema_whatever_is_in_them():
    renderer = ParquetRenderer(DIM, "int8", "m", "f" * 16, ("title",))
    empty = renderer.file([], {})
    deletions = made(renderer, [renderer.deletion(source())])
    vectors = made(renderer, [renderer.row(source(), embedding(title=3), np.zeros(DIM, "i1"), np.float32(1))])
    schemas = [pq.read_schema(io.BytesIO(each)) for each in (empty, deletions, vectors)]
    assert schemas[0].equals(schemas[1]) and schemas[1].equals(schemas[2])
    assert pq.read_table(io.BytesIO(empty)).num_rows == 0


@pytest.mark.parametrize("fields", [{"title": "half \ud83d"}, {"title": {"a": "half \ud83d"}}])
def test_what_no_text_can_hold_is_refused(fields: dict[str, object]):
    renderer = ParquetRenderer(DIM, "float32", "m", "f" * 16, ("title",))
    with pytest.raises(PoisonError) as refused:
        renderer.row(source(), embedding(**fields), np.zeros(DIM, "f4"), None)
    assert (refused.value.stage, refused.value.reason) == ("output", "lone_surrogate")
    assert "half \ud83d" not in str(refused.value)


def test_rows_from_an_offset_on():
    renderer = ParquetRenderer(DIM, "float32", "m", "f" * 16)
    batch = renderer.batch([renderer.deletion(source(offset)) for offset in (3, 4, 9)])
    for offset, count in ((0, 3), (3, 3), (4, 2), (5, 1), (9, 1), (10, 0)):
        assert renderer.after(batch, offset).num_rows == count


def test_notes_are_read_from_a_files_end_alone():
    renderer = ParquetRenderer(DIM, "float32", "m", "f" * 16)
    content = made(renderer, [renderer.deletion(source())] * 50, start="3", group="gr\u00fcn")
    wanted = {
        "start": "3",
        "group": "gr\u00fcn",
        "model": "m",
        "fingerprint": "f" * 16,
        "precision": "float32",
        "dim": "16",
    }
    assert read_notes(content) == wanted
    assert read_notes(content[-4000:]) == wanted, "all that is asked of a store"
    assert read_notes(content[-20:]) is None, "more of it is needed"


@given(st.binary(max_size=200))
def test_what_is_no_parquet_file_is_told_apart(content: bytes):
    for bytes_ in (content, content + b"PAR1", content + (len(content)).to_bytes(4, "little") + b"PAR1"):
        try:
            found = read_notes(bytes_)
        except ValueError:
            continue
        assert found is None or isinstance(found, dict)
