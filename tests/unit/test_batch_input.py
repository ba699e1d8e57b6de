"""What a batch job reads: which files, cut where, and what each row of them is, in every format."""

from __future__ import annotations

import csv
import datetime
import gzip
import io
import json
from collections.abc import Callable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.batch import lines, pieces
from pipelines.batch.csv_file import csv_rows
from pipelines.batch.inputs import find
from pipelines.batch.pieces import Fields, Piece, Stores, parts_of, plan, version_digest
from pipelines.batch.rows import FileRow, Part, RowValues
from tests.batch_job import write_groups
from workers.errors import EnvironmentFault, PoisonError, SettingsError
from workers.object_store import Location
from workers.settings import Settings


def settings(*inputs: str | Path, text: str = "text", **batch: object) -> Settings:
    outputs = [{"kind": "parquet", "uri": "file:///out", "include": ["title"]}]
    return Settings(source={"text": text}, batch={"inputs": [str(each) for each in inputs], **batch}, outputs=outputs)


def read(chosen: Settings) -> tuple[list[Piece], list[list[Part]]]:
    found = plan(find(chosen.batch.inputs, chosen.batch.format, []), chosen)
    assert not found.broken
    columns = Fields(chosen).names
    return list(found.pieces), [list(parts_of(piece, Stores(), columns, chosen.batch)) for piece in found.pieces]


def rows(chosen: Settings) -> list[FileRow]:
    return [row for each in read(chosen)[1] for part in each for row in part.rows]


def values(found: Sequence[FileRow]) -> list[object]:
    """Each row's fields, or why it has none."""
    said: list[object] = []
    for row in found:
        try:
            said.append(RowValues().read(row))
        except PoisonError as error:
            said.append(f"{error.stage}/{error.reason}")
    return said


# ------------------------------------------------------------------ which files


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("a.jsonl", "b.parquet", "sub/c.jsonl", "sub/deep/d.jsonl", "sub/notes.md", "_SUCCESS", "sub/.e.jsonl"):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('{"text": "t"}\n')
    return tmp_path / "in"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("", ["a.jsonl", "b.parquet", "sub/c.jsonl", "sub/deep/d.jsonl"]),
        ("sub", ["sub/c.jsonl", "sub/deep/d.jsonl"]),
        ("a.jsonl", ["a.jsonl"]),
        ("*.jsonl", ["a.jsonl"]),
        ("*/*.jsonl", ["sub/c.jsonl"]),
        ("**/*.jsonl", ["a.jsonl", "sub/c.jsonl", "sub/deep/d.jsonl"]),
        ("sub/**", ["sub/c.jsonl", "sub/deep/d.jsonl"]),
        ("s*b/d**p/*", ["sub/deep/d.jsonl"]),
    ],
)
@pytest.mark.parametrize("as_uri", [False, True])
def test_an_input_is_a_file_a_folder_or_a_pattern(tree: Path, name: str, expected: list[str], as_uri: bool):
    path = str(tree / name)
    if name == "sub/**":
        (tree / "sub/notes.md").unlink()  # a pattern means what it matches
    found = find([f"file://{path}" if as_uri else path], "auto", [])
    assert [file.uri for file in found] == [f"file://{tree}/{each}" for each in expected]


def test_a_path_is_seen_from_here_and_from_home(tree: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tree)
    monkeypatch.setenv("HOME", str(tree))
    (file,) = find(["sub/*.jsonl", "./sub/c.jsonl", "~/sub/c.jsonl"], "auto", [])
    assert file.uri == f"file://{tree}/sub/c.jsonl"


@pytest.mark.parametrize(
    ("name", "format", "error", "says"),
    [
        ("*.csv", "auto", EnvironmentFault, "names no file"),
        ("absent", "auto", EnvironmentFault, "there is no such folder"),
        ("sub/notes.md", "auto", SettingsError, "does not say what it is: set batch.format"),
        ("sub/*", "auto", SettingsError, "names notes.md"),
        ("", "auto", SettingsError, "it would feed itself"),
    ],
)
def test_an_input_that_is_none_is_said(tree: Path, name: str, format: str, error: type[Exception], says: str):
    written = [] if name else [Location("file", "", str(tree / "sub"))]
    with pytest.raises(error, match=says):
        find([str(tree / name)], format, written)


def test_a_uri_with_a_query_is_refused_without_it():
    with pytest.raises(SettingsError) as caught:
        find(["s3://bucket/a.jsonl?X-Amz-Signature=SENTINEL"], "auto", [])
    assert "SENTINEL" not in str(caught.value)


def test_a_format_that_is_set_is_that_of_every_file(tree: Path):
    chosen = settings(tree / "sub/notes.md", format="text")
    assert values(rows(chosen)) == [{"text": '{"text": "t"}'}]


# ------------------------------------------------------------------ lines

_LINE = st.binary(max_size=12).map(lambda data: data.replace(b"\n", b"."))


@given(st.lists(_LINE, max_size=30), st.booleans(), st.integers(1, 40))
def test_every_line_is_in_one_range_of_bytes_wherever_they_are_cut(texts: list[bytes], ended: bool, step: int):
    content = b"\n".join(texts) + b"\n" * ended
    found = [
        line
        for start in range(0, len(content), step)
        for line in lines.lines(io.BytesIO(content), start, min(start + step, len(content)))
    ]
    assert found == list(lines.lines(io.BytesIO(content), 0, None))
    for offset, line in found:
        assert line is not None and content[offset:].startswith((line, b"\xef\xbb\xbf" + line))
    assert len(found) == sum(
        bool(each.removeprefix(b"\xef\xbb\xbf" if n == 0 else b"").strip()) for n, each in enumerate(texts)
    )


def test_lines_of_windows_and_their_byte_order_mark(tmp_path: Path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbffirst\r\n\r\n  \nsecond \xff\r\nthird")
    found = rows(settings(tmp_path / "a.txt"))
    assert values(found) == [{"text": "first"}, "decode/invalid_utf8", {"text": "third"}]
    assert [row.origin.offset for row in found] == [0, 15, 25]
    assert [row.value for row in found] == [b"first", b"second \xff", b"third"]


def test_a_line_that_is_too_long_is_refused_and_those_after_it_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lines, "MOST_LINE", 100)
    long = json.dumps({"text": "x" * 1000})
    (tmp_path / "a.jsonl").write_text(f'{{"text": "a"}}\n{long}\n{{"text": "b"}}\n')
    found = rows(settings(tmp_path / "a.jsonl"))
    assert values(found) == [{"text": "a"}, "decode/too_large", {"text": "b"}]
    assert [row.origin.offset for row in found] == [0, 14, 14 + len(long) + 1]


def test_a_large_file_of_lines_is_cut_and_each_line_is_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pieces, "PIECE_BYTES", 1000)
    texts = [{"text": f"number {n} " + "x" * (n % 77)} for n in range(500)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(text) + "\n" for text in texts))
    chosen = settings(tmp_path / "a.jsonl", rows=7)
    cut, found = read(chosen)
    assert len(cut) > 10
    assert values([row for each in found for part in each for row in part.rows]) == texts
    assert sum(piece.weight for piece in cut) == (tmp_path / "a.jsonl").stat().st_size
    for each in found:
        assert [part.number for part in each] == list(range(len(each)))
        assert [part.last for part in each] == [False] * (len(each) - 1) + [True]
        assert all(len(part.rows) == 7 for part in each[:-1]) and 1 <= len(each[-1].rows) <= 7
        assert sum(part.share for part in each) == pytest.approx(1)
    assert read(chosen) == (cut, found)  # and another run has the same


def test_a_part_ends_at_its_bytes_too(tmp_path: Path):
    (tmp_path / "a.txt").write_text("".join(f"{'x' * 9}\n" for _ in range(10)))
    _, (parts,) = read(settings(tmp_path / "a.txt", bytes=30))
    assert [len(part.rows) for part in parts] == [3, 3, 3, 1]
    _, (parts,) = read(settings(tmp_path / "a.txt", bytes=5))  # a row above it is a part
    assert [len(part.rows) for part in parts] == [1] * 10


def test_an_empty_file_of_lines_is_no_piece_and_a_range_without_a_line_start_an_empty_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "a.jsonl").write_text("")
    assert read(settings(tmp_path / "a.jsonl")) == ([], [])
    monkeypatch.setattr(pieces, "PIECE_BYTES", 10)
    (tmp_path / "a.jsonl").write_text('{"text": "some 25 bytes"}')
    assert [[len(part.rows) for part in each] for each in read(settings(tmp_path / "a.jsonl"))[1]] == [[1], [0], [0]]


# ------------------------------------------------------------------ CSV


def csv_file(path: Path, table: Sequence[Sequence[str]], **options: Any) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, **options).writerows(table)
    return path


def test_csv_has_names_and_fields_with_line_ends(tmp_path: Path):
    table = [["title", "text"], ["one", 'a "quoted"\nline, and more'], ["", "zwei äöü"], ["three", ""]]
    file = csv_file(tmp_path / "a.csv", table)
    found = rows(settings(file))
    assert values(found) == [
        {"title": "one", "text": 'a "quoted"\nline, and more'},
        {"title": None, "text": "zwei äöü"},
        {"title": "three", "text": None},
    ]
    content = file.read_bytes()
    for row in found:
        assert row.value is not None and content[row.origin.offset :].startswith(row.value)


def test_tsv_and_a_byte_order_mark(tmp_path: Path):
    (tmp_path / "a.tsv").write_bytes(b"\xef\xbb\xbftitle\ttext\na,b\tc\n")
    assert values(rows(settings(tmp_path / "a.tsv"))) == [{"title": "a,b", "text": "c"}]


def test_a_bad_row_of_csv_is_refused_alone(tmp_path: Path):
    (tmp_path / "a.csv").write_bytes(b'title,text\na,b\na,b,c\n"a"x,b\n\xff,b\n\nlast,row\n')
    found = rows(settings(tmp_path / "a.csv"))
    assert values(found) == [
        {"title": "a", "text": "b"},
        "decode/wrong_columns",
        "decode/invalid_csv",
        "decode/invalid_utf8",
        {"title": "last", "text": "row"},
    ]
    assert [row.value for row in found[1:4]] == [b"a,b,c\n", b'"a"x,b\n', b"\xff,b\n"]


def test_an_unclosed_quote_takes_the_rest_along_and_is_one_bad_row(tmp_path: Path):
    (tmp_path / "a.csv").write_bytes(b'title,text\na,b\na,"open\nand\nlost\n')
    assert values(rows(settings(tmp_path / "a.csv"))) == [{"title": "a", "text": "b"}, "decode/invalid_csv"]


_CELL = st.text(st.characters(codec="utf-8", exclude_characters="\r\0"), max_size=6)


@given(st.lists(st.tuples(_CELL, _CELL), max_size=20))
def test_whatever_csv_writes_is_read(table: list[tuple[str, str]]):
    written = io.StringIO(newline="")
    csv.writer(written, quoting=csv.QUOTE_ALL).writerows([("title", "text"), *table])
    content = written.getvalue().encode()
    found = list(csv_rows(io.BytesIO(content), "f", ",", lambda offset: offset / len(content)))
    expected = [{"title": title or None, "text": text or None} for title, text in table]
    assert values([each.row for each in found]) == expected
    assert not found or found[-1].done == 1.0


def test_a_column_that_is_missing_stops_the_job_and_names_those_that_are_there(tmp_path: Path):
    file = csv_file(tmp_path / "a.csv", [["title", "body"], ["a", "b"]])
    with pytest.raises(SettingsError, match=r"has no column text, which source\.text.* its columns: title, body"):
        read(settings(file))
    assert values(rows(settings(file, text="{body}{text|}")))  # one with a default may be missing


# ------------------------------------------------------------------ gzip


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.csv.gz", "a.txt.gz"])
def test_packed_files_are_read_whole(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pieces, "PIECE_BYTES", 10)
    content = {
        "a.jsonl.gz": '{"text": "one"}\n{"text": "two"}\n',
        "a.csv.gz": "text\none\ntwo\n",
        "a.txt.gz": "one\ntwo\n",
    }
    (tmp_path / name).write_bytes(gzip.compress(content[name].encode()))
    (piece,), (parts,) = read(settings(tmp_path / name))
    assert values(parts[0].rows) == [{"text": "one"}, {"text": "two"}]
    assert piece.weight == (tmp_path / name).stat().st_size


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.csv.gz"])
@pytest.mark.parametrize("spoil", [lambda data: data[:-12], lambda _: b"plain", lambda data: data[:20] + b"?" * 20])
def test_a_packed_file_that_is_broken_is_a_fault_of_the_file(
    tmp_path: Path, name: str, spoil: Callable[[bytes], bytes]
):
    text = "".join(
        f'{{"text": "{n * 7919}"}}\n' if "json" in name else f"{'text' if n == 0 else n * 7919}\n" for n in range(999)
    )
    (tmp_path / name).write_bytes(spoil(gzip.compress(text.encode())))
    chosen = settings(tmp_path / name)
    found = plan(find(chosen.batch.inputs, "auto", []), chosen)
    if found.broken:
        assert name in found.broken[0] and "not packed by gzip, or not whole" in found.broken[0]
        return
    with pytest.raises(EnvironmentFault, match=f"{name}: it is not packed by gzip, or not whole"):
        list(parts_of(found.pieces[0], Stores(), ["text"], chosen.batch))


# ------------------------------------------------------------------ Parquet


def test_parquet_rows_are_python_values_of_the_columns_that_are_needed(tmp_path: Path):
    moment = datetime.datetime(2026, 5, 1, 12, tzinfo=datetime.UTC)
    table = pa.table(
        {
            "text": ["one", None],
            "title": pa.array([{"a": 1}, {"a": 2}]),
            "unused": pa.array([b"\xff" * 100] * 2),
            "when": pa.array([1_777_000_000_123_456_789, None], pa.timestamp("ns", "UTC")),
            "price": pa.array([Decimal("1.50"), None]),
            "kind": pa.array(["x", "x"]).dictionary_encode(),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    found = rows(settings(tmp_path / "a.parquet", text="{text}{when|}{price|}{kind}"))
    first, second = values(found)
    assert isinstance(first, dict) and isinstance(first["when"], datetime.datetime)
    assert first["when"].astimezone(datetime.UTC).year == moment.year
    assert (first["text"], first["title"], first["price"], first["kind"]) == ("one", {"a": 1}, Decimal("1.50"), "x")
    assert second == {"text": None, "title": {"a": 2}, "when": None, "price": None, "kind": "x"}
    assert [row.origin.offset for row in found] == [0, 1]
    assert found[0].origin.topic == f"file://{tmp_path}/a.parquet"


def test_parquet_pieces_are_whole_row_groups_small_ones_together(tmp_path: Path):
    table = pa.table({"text": [f"number {n}" for n in range(100)], "title": ["t"] * 100})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=10)
    cut, found = read(settings(tmp_path / "a.parquet", rows=25))
    assert [(piece.start, piece.stop, piece.groups) for piece in cut] == [
        (n * 20, n * 20 + 20, (2 * n, 2 * n + 1)) for n in range(5)
    ]
    every = [row for each in found for part in each for row in part.rows]
    assert [row.origin.offset for row in every] == list(range(100))
    assert [value["text"] for value in values(every) if isinstance(value, dict)] == table["text"].to_pylist()
    cut, found = read(settings(tmp_path / "a.parquet", rows=4))  # a group that is larger than a part is several of them
    assert len(cut) == 10 and [len(part.rows) for part in found[0]] == [4, 4, 2]
    assert [part.share for part in found[0]] == pytest.approx([0.4, 0.4, 0.2])


@pytest.mark.parametrize("sizes", [[0, 30], [30, 0, 30], [0, 0, 12, 0], [5, 0, 3, 0], [0], []])
def test_groups_without_rows_are_in_no_piece_and_no_two_start_at_one_row(tmp_path: Path, sizes: list[int]):
    write_groups(tmp_path / "a.parquet", sizes)
    cut, found = read(settings(tmp_path / "a.parquet", rows=10))
    assert all(size == 0 for number, size in enumerate(sizes) if number not in {g for p in cut for g in p.groups})
    assert len({piece.start for piece in cut}) == len(cut) and all(piece.stop > piece.start for piece in cut)
    every = [row.origin.offset for each in found for part in each for row in part.rows]
    assert every == list(range(sum(sizes)))


def test_parquet_rows_that_python_cannot_have_are_refused_alone(tmp_path: Path):
    broken = pa.StringArray.from_buffers(
        3, pa.py_buffer(pa.array([0, 1, 2, 3], pa.int32()).buffers()[1]), pa.py_buffer(b"a\xffb")
    )
    pq.write_table(pa.table({"text": broken}), tmp_path / "a.parquet")
    assert values(rows(settings(tmp_path / "a.parquet"))) == [{"text": "a"}, "decode/invalid_value", {"text": "b"}]


def test_a_parquet_file_without_any_of_the_columns_still_has_its_rows(tmp_path: Path):
    pq.write_table(pa.table({"other": [1, 2, 3]}), tmp_path / "a.parquet")
    assert values(rows(settings(tmp_path / "a.parquet", text="{text|nothing}"))) == [{}, {}, {}]


def test_a_file_that_is_broken_leaves_the_others(tmp_path: Path):
    pq.write_table(pa.table({"text": ["a"] * 1000}), tmp_path / "good.parquet")
    whole = (tmp_path / "good.parquet").read_bytes()
    (tmp_path / "cut.parquet").write_bytes(whole[:-20])
    (tmp_path / "empty.parquet").write_bytes(b"")
    chosen = settings(tmp_path)
    found = plan(find(chosen.batch.inputs, "auto", []), chosen)
    assert [piece.file.stored.path for piece in found.pieces] == ["good.parquet"]
    assert [sentence.partition(": ")[0] for sentence in found.broken] == [
        f"file://{tmp_path}/cut.parquet",
        f"file://{tmp_path}/empty.parquet",
    ]


# ------------------------------------------------------------------ versions


def test_a_file_that_changes_while_it_is_read_is_a_fault_and_has_another_name(tmp_path: Path):
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "one"}\n')
    chosen = settings(file)
    planned = plan(find(chosen.batch.inputs, "auto", []), chosen)
    file.write_text('{"text": "two"}\n{"text": "more"}\n')
    with pytest.raises(EnvironmentFault, match="changed while it was read"):
        list(parts_of(planned.pieces[0], Stores(), ["text"], chosen.batch))
    (now,) = find(chosen.batch.inputs, "auto", [])
    before = planned.pieces[0].file
    assert version_digest(before, chosen.batch) != version_digest(now, chosen.batch)
    assert version_digest(now, chosen.batch) != version_digest(now, settings(file, rows=3).batch)
