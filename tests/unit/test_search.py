"""Which vectors count, and where they are looked for; the nearest of them by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.search import ranking
from pipelines.search.places import Files
from pipelines.search.questions import cosines
from pipelines.search.ranking import Ranking
from workers.codecs.parquet import ParquetRenderer
from workers.codecs.stored import Space, Stored
from workers.encoder.quantize import Quantized
from workers.errors import EnvironmentFault, SettingsError
from workers.records import Document, Embedding, Origin, Record

SPACE = Space("m", "f", 2, "float32")
OTHER = SPACE._replace(fingerprint="g")
QUESTIONS = np.array([[1, 0], [0, 1]], np.float32)


def compare(space: Space, stored: Quantized) -> Any:
    return cosines(stored.values.astype(np.float32), QUESTIONS) if space == SPACE else None


def row(key: str, *numbers: float, space: Space = SPACE, **fields: object) -> Stored:
    return Stored(key.encode(), f"id of {key}", space, np.array(numbers, np.float32), None, fields)


def found(rank: Ranking, k: int = 9) -> list[list[tuple[str, float]]]:
    return [[(hit.id[6:], round(hit.score, 3)) for hit in hits] for hits in rank.best(k)]


def test_the_nearest_by_cosine_for_each_question():
    rank = Ranking(compare)
    rank.add([row("a", 2, 0, title="A"), row("b", 1, 1)])
    rank.add([row("c", 0, -3), row("zero", 0, 0)])
    assert found(rank) == [
        [("a", 1.0), ("b", 0.707), ("c", 0.0), ("zero", 0.0)],
        [("b", 0.707), ("a", 0.0), ("zero", 0.0), ("c", -1.0)],
    ]
    assert found(rank, 1) == [[("a", 1.0)], [("b", 0.707)]]
    assert rank.best(1)[0][0].fields == {"title": "A"}
    assert len(rank) == 4 and rank.spaces == {SPACE: 4}


def test_of_a_key_the_latest_counts_and_a_deletion_ends_it():
    rank = Ranking(compare)
    rank.add([row("a", 1, 0), row("b", 1, 0), row("a", 0, 1)])
    assert found(rank)[0] == [("b", 1.0), ("a", 0.0)]
    rank.add([Stored(b"b", "b"), Stored(b"unknown", "unknown"), row("c", 1, 0), Stored(b"c", "c"), row("c", 1, 1)])
    assert found(rank)[0] == [("c", 0.707), ("a", 0.0)]
    rank.add([Stored(b"a", "a"), Stored(b"c", "c")])
    assert len(rank) == 0 and rank.best(3) == []


def test_what_cannot_be_compared_matters_only_while_it_counts():
    rank = Ranking(compare)
    rank.add([row("a", 1, 0, space=OTHER), row("b", 1, 0), row("c", 1, 0, space=OTHER)])
    assert rank.foreign == {OTHER: 2}
    rank.add([row("a", 1, 0), Stored(b"c", "c")])
    assert rank.foreign == {} and len(found(rank)[0]) == 2


def test_too_many_to_be_looked_at_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ranking, "MOST_VECTORS", 2)
    rank = Ranking(compare)
    rank.add([row("a", 1, 0), row("b", 1, 0)])
    with pytest.raises(EnvironmentFault, match="more than 2 vectors lie there"):
        rank.add([row("c", 1, 0)])


# ---- places


def put(folder: Path, name: str, *ids: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    renderer = ParquetRenderer(2, "float32", "m", "f")
    rows = [
        renderer.row(
            Record(Origin("t", 0, 0, 0), id.encode(), b"", -1),
            Embedding(Document(id, ""), np.ones(2, np.float32), 1, False),
            np.ones(2, np.float32),
            None,
        )
        for id in ids
    ]
    path.write_bytes(renderer.file([renderer.batch(rows)], {}))
    return path


def ids(place: Files) -> list[str]:
    return [stored.id for rows in place for stored in rows]


def test_files_are_read_in_the_order_of_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    put(tmp_path, "t/partition-0/00000000000000000020.parquet", "c")
    put(tmp_path, "t/partition-0/00000000000000000003.parquet", "a", "b")
    put(tmp_path, "t/partition-1/00000000000000000000.parquet", "d")
    put(tmp_path, "t/_dead/00000000000000000000.parquet", "hidden")
    put(tmp_path, "t/.part.parquet", "hidden")
    (tmp_path / "t" / "notes.txt").write_text("no data")
    assert ids(Files(str(tmp_path))) == ["a", "b", "c", "d"]
    assert ids(Files(tmp_path.as_uri())) == ["a", "b", "c", "d"]
    assert ids(Files(str(tmp_path / "t" / ".part.parquet"))) == ["hidden"], "a file that is named is meant"
    monkeypatch.chdir(tmp_path)
    assert ids(Files("t/")) == ["a", "b", "c", "d"]


def test_a_folder_may_be_called_as_a_file_is(tmp_path: Path):
    put(tmp_path / "spark.parquet", "part-0.parquet", "a")
    assert ids(Files(str(tmp_path / "spark.parquet"))) == ["a"]
    assert ids(Files((tmp_path / "spark.parquet" / "part-0.parquet").as_uri())) == ["a"]
    (tmp_path / "a.txt").write_text("SENTINEL")
    with pytest.raises(EnvironmentFault, match=r"a\.txt cannot be searched"):
        list(Files(str(tmp_path / "a.txt")))
    with pytest.raises(EnvironmentFault, match=r"absent\.parquet: there is no such folder"):
        list(Files((tmp_path / "absent.parquet").as_uri()))


def test_folders_may_be_called_anything(tmp_path: Path):
    folder = tmp_path / "a b#c?ü%20"
    put(folder, "x.parquet", "a")
    assert ids(Files(str(folder))) == ["a"]


def test_a_place_that_is_none_is_said(tmp_path: Path):
    with pytest.raises(EnvironmentFault, match="there is no such file or folder"):
        Files(str(tmp_path / "absent"))
    with pytest.raises(SettingsError, match="a URI starts with"):
        Files("ftp://host/x")
    with pytest.raises(EnvironmentFault, match="there is no such folder"):
        list(Files("file:///absent/folder"))
    assert list(Files(str(tmp_path))) == []


def test_a_file_that_is_none_is_named(tmp_path: Path):
    put(tmp_path, "a.parquet", "a")
    (tmp_path / "b.parquet").write_bytes(b"SENTINEL" * 10)
    with pytest.raises(EnvironmentFault, match=r"b\.parquet cannot be searched: it is no Parquet file") as told:
        list(Files(str(tmp_path)))
    assert "SENTINEL" not in str(told.value)
