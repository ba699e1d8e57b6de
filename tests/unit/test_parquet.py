"""Rows of Parquet files: every precision, every engine, and the notes in a footer."""

from __future__ import annotations

import datetime
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

from workers.codecs.columns import arrow_type
from workers.codecs.parquet import ParquetRenderer, Row, read_notes
from workers.encoder.quantize import Projection
from workers.encoder.ranges import Ranges
from workers.errors import PoisonError
from workers.records import Document, Embedding, Origin, Record
from workers.settings.outputs import ColumnType

DIM = 16


def texts(*names: str) -> dict[str, ColumnType]:
    return {name: ColumnType("string") for name in names}


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
    renderer = ParquetRenderer(DIM, precision, "m", "f" * 16, texts("title"))
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


@pytest.mark.parametrize(
    ("precision", "most"),
    [("int8", 280), ("uint8_ranges", 280), ("ubinary", 60), ("float32", 1100)],
)
def test_components_of_a_byte_take_a_byte_in_a_file(precision: str, most: int):
    dim, count = 256, 1_000
    vectors = np.random.default_rng(5).normal(size=(count, dim)).astype(np.float32)
    ranges = Ranges(np.full(dim, -0.25, "f4"), np.full(dim, 0.25, "f4")) if precision.endswith("_ranges") else None
    renderer = ParquetRenderer(dim, precision, "m", "f" * 16)
    found = embedding()
    rows = [
        renderer.row(source(n), found, *one) for n, one in enumerate(Projection(dim, precision, ranges)(vectors).rows())
    ]
    content = made(renderer, rows)
    assert len(content) / count < most
    meta = pq.ParquetFile(io.BytesIO(content)).metadata.row_group(0)
    columns = {meta.column(n).path_in_schema: meta.column(n).encodings for n in range(meta.num_columns)}
    packed = precision != "float32"
    assert ("RLE_DICTIONARY" in columns["embedding.list.element"]) == packed


def test_a_row_says_where_it_came_from_and_what_the_text_was():
    renderer = ParquetRenderer(DIM, "float32", "m", "0123456789abcdef", texts("n", "tags", "gone"))
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
    renderer = ParquetRenderer(DIM, "int8", "m", "f" * 16, texts("title"))
    empty = renderer.file([], {})
    deletions = made(renderer, [renderer.deletion(source())])
    vectors = made(renderer, [renderer.row(source(), embedding(title=3), np.zeros(DIM, "i1"), np.float32(1))])
    schemas = [pq.read_schema(io.BytesIO(each)) for each in (empty, deletions, vectors)]
    assert schemas[0].equals(schemas[1]) and schemas[1].equals(schemas[2])
    assert pq.read_table(io.BytesIO(empty)).num_rows == 0


@pytest.mark.parametrize("fields", [{"title": "half \ud83d"}, {"title": {"a": "half \ud83d"}}])
def test_what_no_text_can_hold_is_refused(fields: dict[str, object]):
    renderer = ParquetRenderer(DIM, "float32", "m", "f" * 16, texts("title"))
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


ZONE = datetime.timezone(datetime.timedelta(hours=2))


@pytest.mark.parametrize(
    ("declared", "taken", "refused"),
    [
        ("string", [("a", "a"), (3, "3"), (1.50, "1.5"), ([1, "x"], '[1,"x"]'), (True, "true"), (None, None)], []),
        ("boolean", [(True, True), (False, False), (None, None)], [1, 0, "true", "", []]),
        (
            "int32",
            [(3, 3), (3.0, 3), ("3", 3), (-(2**31), -(2**31)), ("1e3", 1000)],
            [3.5, "3.5", 2**31, True, "x", "", " 3"],
        ),
        (
            "int64",
            [(2**63 - 1, 2**63 - 1), ("-9", -9), (1e3, 1000)],
            [2**63, 1e300, float("nan"), "1_000", "1e999999", {}],
        ),
        (
            "float64",
            [(1.5, 1.5), (3, 3.0), ("12.50", 12.5)],
            ["NaN", "inf", "1e400", float("inf"), False, "1,5", "9" * 500],
        ),
        ("float32", [(0.5, 0.5), ("0.1", float(np.float32(0.1)))], [1e39, "1e39", "x"]),
        (
            "decimal(5, 2)",
            [("12.50", "12.50"), (12.5, "12.50"), (999.99, "999.99"), (0, "0.00"), ("-1.1", "-1.10")],
            ["1.234", 1000, "x"],
        ),
        ("decimal(38,0)", [(10**38 - 1, str(10**38 - 1))], [10**38, 10**5000, "1e5000", 0.5]),
        ("date", [("2026-05-01", datetime.date(2026, 5, 1))], ["2026-13-01", "2026-05-01T00:00:00Z", 20260501, ""]),
        (
            "timestamp",
            [
                ("2026-05-01T12:00:00Z", datetime.datetime(2026, 5, 1, 12, tzinfo=datetime.UTC)),
                ("2026-05-01T12:00:00.5+02:00", datetime.datetime(2026, 5, 1, 12, 0, 0, 500_000, tzinfo=ZONE)),
            ],
            ["2026-05-01T12:00:00", "2026-05-01", 1_777_777_777, "0001-01-01T00:00:00+14:00"],
        ),
        ("list<string>", [(["a", None, 1], ["a", None, "1"]), ([], [])], ["a", {"a": 1}]),
        ("list<int64>", [([1, "2", None], [1, 2, None])], [[1, "x"], [True]]),
        ("list<decimal(3, 1)>", [([1, "2.5"], ["1.0", "2.5"])], [[1.25]]),
    ],
)
def test_a_column_takes_what_is_of_its_declared_type_and_nothing_else(
    declared: str, taken: list[tuple[object, object]], refused: list[object]
):
    column = ColumnType.parse(declared)
    renderer = ParquetRenderer(DIM, "float32", "m", "f" * 16, {"f": column})
    vector = np.ones(DIM, np.float32) / 4
    rows = [renderer.row(source(), embedding(f=value), vector, None) for value, _ in taken]
    rows.append(renderer.deletion(source()))
    table = pq.read_table(io.BytesIO(made(renderer, rows)))
    assert table.schema.field("f").type == arrow_type(column)

    def plainly(value: object) -> object:
        return (
            [plainly(each) for each in value]
            if isinstance(value, list)
            else str(value)
            if "decimal" in declared
            else value
        )

    assert [plainly(each) for each in table.column("f").to_pylist()[:-1]] == [wanted for _, wanted in taken]
    assert table.column("f").to_pylist()[-1] is None
    for value in refused:
        with pytest.raises(
            PoisonError, match=r"^included field f is an? .* that its column of type \S+ does not take"
        ) as caught:
            renderer.row(source(), embedding(f=value), vector, None)
        assert (caught.value.stage, caught.value.reason) == ("output", "wrong_type")


@given(
    st.sampled_from(
        [
            "string",
            "boolean",
            "int32",
            "int64",
            "float32",
            "float64",
            "decimal(9, 3)",
            "date",
            "timestamp",
            "list<int32>",
        ]
    ),
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats()
        | st.text()
        | st.decimals().map(str)
        | st.datetimes().map(str),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=2),
        max_leaves=5,
    ),
)
def test_whatever_a_field_holds_is_written_or_refused(declared: str, value: object):
    renderer = ParquetRenderer(DIM, "float32", "m", "f" * 16, {"f": ColumnType.parse(declared)})
    try:
        row = renderer.row(source(), embedding(f=value), np.ones(DIM, np.float32) / 4, None)
    except PoisonError as error:
        assert error.reason in ("wrong_type", "not_json", "lone_surrogate")
    else:
        assert renderer.batch([row]).num_rows == 1


@pytest.mark.parametrize(
    "text",
    [
        "int",
        "decimal",
        "decimal(39, 2)",
        "decimal(2, 3)",
        "decimal(0,0)",
        "list<>",
        "list<list<string>>",
        "list<x>",
        "",
    ],
)
def test_what_is_no_type_says_which_there_are(text: str):
    with pytest.raises(ValueError, match=r"is no (type: there are string, boolean|decimal: it has 1 to 38)"):
        ColumnType.parse(text)
