"""Topics as a batch job's input: offsets fixed once, parts that stay the same whatever the topic loses, rows as the stream's."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.batch import topic
from pipelines.batch.finished import Tally, folder_of, settings_digest
from pipelines.batch.outlets import batch_outlets, dead_letter_folder
from pipelines.batch.there import There
from pipelines.batch.topic import TopicPiece, topic_parts, topic_pieces
from pipelines.batch.work import Worker
from pipelines.topic_ranges import PartitionRange, Ranges
from tests.batch_job import Job, pool_of, vector_of
from tests.fakes import FakeTokenizer
from workers.errors import EnvironmentFault, SettingsError
from workers.kafka_topics import Topic
from workers.records import Origin, Record, TopicPartition
from workers.settings import Settings

DOCUMENTS = TopicPartition("documents", 0)


class FakeReader:
    """What a topic holds now, and which ranges were asked for."""

    def __init__(self, records: Sequence[Record], begin: int = 0) -> None:
        self.records = records
        self.begin = begin
        self.gone = 0
        self.asked: list[tuple[int, int]] = []

    def read(self, partition: TopicPartition, start: int, stop: int) -> Iterator[list[Record]]:
        self.asked.append((start, stop))
        self.gone = max(0, min(self.begin, stop) - start)
        found = [
            each
            for each in self.records
            if each.origin.topic_partition == partition and max(start, self.begin) <= each.origin.offset < stop
        ]
        yield found[:1]
        yield found[1:]


def record(offset: int, value: object = None, key: bytes | None = b"k", **more: Any) -> Record:
    body = json.dumps(value).encode() if isinstance(value, dict) else value
    return Record(Origin("documents", 0, offset, 0), key, body, 1_700_000_000_000 + offset, more.get("headers", ()))


def document(offset: int) -> Record:
    return record(offset, {"id": f"n{offset}", "text": f"text {offset}", "title": f"t{offset}"}, b"k%d" % offset)


def piece(start: int, stop: int, step: int) -> TopicPiece:
    return TopicPiece(DOCUMENTS, start, stop, step, "0" * 16, "0" * 8)


# ------------------------------------------------------------------ parts


@given(st.integers(0, 20), st.integers(1, 60), st.integers(1, 25), st.sets(st.integers(0, 100)), st.integers(0, 100))
def test_a_record_is_in_the_same_part_whatever_its_topic_has_lost(
    start: int, length: int, step: int, lost: set[int], begin: int
):
    whole = [document(offset) for offset in range(100)]
    less = [each for each in whole if each.origin.offset not in lost]
    cut = piece(start, start + length, step)

    def placed(reader: FakeReader) -> dict[int, int]:
        parts = list(topic_parts(cut, reader, lambda _: True))  # type: ignore[arg-type]
        assert [part.number for part in parts] == list(range(-(-length // step)))
        assert [part.last for part in parts] == [False] * (len(parts) - 1) + [True]
        assert sum(part.share for part in parts) == pytest.approx(1)
        assert sum(part.gone for part in parts) == max(0, min(reader.begin, start + length) - start)
        return {each.origin.offset: part.number for part in parts for each in part.rows}

    before, after = placed(FakeReader(whole)), placed(FakeReader(less, begin))
    assert set(before) == set(range(start, start + length))
    assert after == {offset: number for offset, number in before.items() if offset not in lost and offset >= begin}


def test_parts_that_are_there_are_not_read():
    reader = FakeReader([document(offset) for offset in range(30)])
    parts = list(topic_parts(piece(10, 30, 5), reader, lambda number: number in (1, 3)))  # type: ignore[arg-type]
    assert reader.asked == [(15, 20), (25, 30)]
    assert [len(part.rows) for part in parts] == [0, 5, 0, 5]


# ------------------------------------------------------------------ what is fixed


class World:
    """The broker as :mod:`pipelines.batch.topic` sees it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ends = {0: 100, 1: 40}
        self.id = "aa"
        self.looked = 0
        monkeypatch.setattr(topic, "named_topics", lambda _: ["documents"])
        monkeypatch.setattr(topic, "batch_ranges", self.ranges)
        monkeypatch.setattr(topic, "TopicIds", lambda _: lambda _: self.id)
        monkeypatch.setattr(topic, "_step", lambda *_: 10)

    def ranges(self, _: Settings) -> Ranges:
        self.looked += 1
        found = [PartitionRange(TopicPartition("documents", n), 0, end) for n, end in self.ends.items()]
        return Ranges({"documents": Topic("documents", len(found))}, tuple(found))


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


def job(folder: Path, **sections: Any) -> Job:
    whole: dict[str, Any] = {"source": {"topics": ["documents"], "text": "text"}, "batch": {}, **sections}
    return Job(folder, **whole)


def fixed(of: Job) -> list[TopicPiece]:
    return topic_pieces(of.settings, batch_outlets(of.model))


def test_what_is_read_is_fixed_at_the_first_start(tmp_path: Path, world: World):
    first = fixed(job(tmp_path))
    assert [(str(each.partition), each.start, each.stop) for each in first] == [
        ("documents/0", 0, 40),
        ("documents/0", 40, 80),
        ("documents/0", 80, 100),
        ("documents/1", 0, 40),
    ]
    world.ends = {0: 200, 1: 50, 2: 5}
    assert fixed(job(tmp_path)) == first and world.looked == 1
    assert fixed(job(tmp_path, batch={"rows": 7})) == first, "how it is cut is fixed too"
    (kept,) = tmp_path.rglob("_offsets-*.json")
    assert json.loads(kept.read_bytes())["offsets"] == {"0": [0, 100], "1": [0, 40]}


def test_an_output_that_comes_later_has_the_same_offsets(tmp_path: Path, world: World):
    outputs = [{"kind": "parquet", "uri": f"file://{tmp_path}/{name}"} for name in ("late", "vectors")]
    first = fixed(job(tmp_path, outputs=outputs[1:]))
    world.ends = {0: 200, 1: 50}
    assert fixed(job(tmp_path, outputs=outputs)) == first
    assert len(list((tmp_path / "late").rglob("_offsets-*.json"))) == 1
    for kept in (tmp_path / "late").rglob("_offsets-*.json"):
        kept.write_bytes(kept.read_bytes().replace(b"100", b"101"))
    with pytest.raises(EnvironmentFault, match="says other offsets of topic documents"):
        fixed(job(tmp_path, outputs=outputs))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"batch": {"start": "documents/0=10"}}, r"read with batch.start earliest, and it is documents/0=10 now"),
        ({"batch": {"end": "2026-05-01"}}, r"read with batch.end latest, and it is 2026-05-01 now"),
        (
            {"source": {"topics": ["documents"], "text": "text", "envelope": "debezium"}},
            r"read with source.envelope none, and it is debezium now",
        ),
    ],
)
def test_another_range_or_reading_is_another_job(tmp_path: Path, world: World, change: dict[str, Any], says: str):
    fixed(job(tmp_path))
    with pytest.raises(EnvironmentFault, match=says):
        fixed(job(tmp_path, **change))


def test_what_a_mapping_makes_of_rows_is_in_the_name_of_their_folders(tmp_path: Path):
    def folders(*mappings: dict[str, Any]) -> tuple[str, str]:
        source = {"topics": ["documents", "notes"], "text": "text", "id": "id", "mappings": mappings}
        model = job(tmp_path, source=source).model
        (outlet,) = batch_outlets(model)
        return outlet.folder, dead_letter_folder(model)

    note: dict[str, Any] = {"topics": ["notes"], "id": "number"}
    more: list[dict[str, Any]] = [
        {"id": "nr"},
        {"empty": "embed"},
        {"pattern": "n.*", "topics": []},
        {"text": "title"},
        {"prompt_text": "a note: "},
    ]
    every = [folders(), folders(note), *(folders({**note, **change}) for change in more)]
    for made in zip(*every, strict=True):
        assert len(set(made)) == len(every)
    # What is included is the outputs', and not the dead letters'.
    included = folders({**note, "include": {"title": "headline"}})
    assert included[0] not in {made[0] for made in every} and included[1] == every[1][1]
    # Texts that change places make other rows of the same space.
    one, other = ({"topics": [name], "text": text} for name, text in (("documents", "title"), ("notes", "text")))
    same, swapped = folders(one, other), folders({**one, "topics": ["notes"]}, {**other, "topics": ["documents"]})
    assert same[0] != swapped[0]
    # Folders of earlier versions keep their names where there are no mappings.
    model = job(tmp_path, source={"topics": ["documents", "notes"], "text": "text", "id": "id"}).model
    space = model.fingerprint(model.layout.dim, "float32")
    assert every[0][0] == folder_of(settings_digest(space, "id", "reject", [("title", "title", None)]))
    assert every[0][1] == folder_of(settings_digest(space, "id", "reject"))


def test_a_topic_that_was_made_anew_is_another_one(tmp_path: Path, world: World):
    fixed(job(tmp_path))
    world.id = "bb"
    with pytest.raises(EnvironmentFault, match="was deleted and made anew since"):
        fixed(job(tmp_path))


def test_a_file_that_is_none_of_ours_is_said(tmp_path: Path, world: World):
    fixed(job(tmp_path))
    (kept,) = tmp_path.rglob("_offsets-*.json")
    for content in (b"{", b"[]", b'{"v": 2}'):
        kept.write_bytes(content)
        with pytest.raises(EnvironmentFault, match="is no file that this version of batch has written"):
            fixed(job(tmp_path))


def test_another_model_reads_the_topic_anew(tmp_path: Path, world: World):
    first = fixed(job(tmp_path))
    world.ends = {0: 10}
    other = fixed(job(tmp_path, model={"prompt_text": "a prompt: "}))
    assert len(other) == 1 and len(first) == 4


# ------------------------------------------------------------------ rows


class TopicJob:
    """A job over a topic, in this process, by a fake encoder and a fake reader."""

    def __init__(self, folder: Path, records: Sequence[Record], **sections: Any) -> None:
        self.job = job(folder, **sections)
        self.reader = FakeReader(records)

    def run(self, parts: int = 1_000) -> tuple[Tally, Tally, Mapping[str, int]]:
        """One run, which ends after so many parts that it made: what was found, what was made, why records were refused."""
        pieces = fixed(self.job)
        there = There(batch_outlets(self.job.model), pieces, self.job.settings)
        there.look()
        found, made, reasons = there.count(map(there.name, pieces)), Tally(), dict[str, int]()
        pool = pool_of()
        worker = Worker(self.job.model, pool, 4096)
        for task in there.tasks(pieces):
            assert isinstance(task.piece, TopicPiece)

            def wanted(number: int, there: Sequence[frozenset[int]] = task.there) -> bool:
                return not all(number in numbers for numbers in there)

            for part in topic_parts(task.piece, self.reader, wanted):  # type: ignore[arg-type]
                if not wanted(part.number) or made.parts == parts:
                    continue
                done = worker.do(task.name, part, [False], FakeTokenizer(), lambda _: None)
                made += done.tally
                reasons |= done.reasons
        pool.close()
        return found, made, reasons


def test_rows_are_those_of_the_stream(tmp_path: Path, world: World):
    world.ends = {0: 6}
    headers = (("trace", b"\x00\xff"), ("none", None))
    records = [
        document(0),
        record(1, None, b"k0"),
        record(2, None, None),
        record(4, b"{broken", b"bad", headers=headers),
        document(5),
        document(6),  # written after the job began
    ]
    topic_job = TopicJob(tmp_path, records)
    found, made, reasons = topic_job.run()
    assert found == Tally()
    assert (made.rows, made.deleted, made.refused, made.gone) == (2, 1, 2, 0)
    assert reasons == {"decode/tombstone_without_key": 1, "decode/invalid_json": 1}
    rows = sorted(topic_job.job.rows(), key=lambda row: row["offset"])
    assert [(row["id"], row["offset"], row["deleted"], row["key"]) for row in rows] == [
        ("k0", 0, False, b"k0"),
        ("k0", 1, True, b"k0"),
        ("k5", 5, False, b"k5"),
    ]
    assert rows[1]["embedding"] is None and rows[0]["title"] == "t0"
    assert rows[0]["embedding"] == pytest.approx(vector_of("text 0"), abs=1e-6)
    assert {(row["topic"], row["partition"]) for row in rows} == {("documents", 0)}
    assert [int(row["timestamp"].timestamp() * 1000) - 1_700_000_000_000 for row in rows] == [0, 1, 5]
    dead = {row["offset"]: row for row in topic_job.job.dead()}
    assert set(dead) == {2, 4} and dead[2]["value"] is None and dead[2]["key"] is None
    assert (dead[4]["value"], dead[4]["key"], dead[4]["topic"], dead[4]["partition"]) == (
        b"{broken",
        b"bad",
        "documents",
        0,
    )
    assert dead[4]["headers"] == [{"name": b"trace", "value": b"\x00\xff"}, {"name": b"none", "value": None}]


def test_an_update_that_is_refused_may_end_the_older_vector(tmp_path: Path, world: World):
    world.ends = {0: 2}
    records = [document(0), record(1, {"id": "n0", "text": ""}, b"k0")]
    topic_job = TopicJob(tmp_path, records, delivery={"on_dead_letter": "tombstone"})
    topic_job.run()
    assert [(row["offset"], row["deleted"]) for row in topic_job.job.rows()] == [(0, False), (1, True)]
    assert [row["offset"] for row in topic_job.job.dead()] == [1]


def test_a_job_goes_on_where_it_was_though_its_topic_has_lost_records(tmp_path: Path, world: World):
    world.ends = {0: 45}
    records = [document(offset) for offset in range(60)]
    topic_job = TopicJob(tmp_path, records)
    _, first, _ = topic_job.run(parts=2)
    assert first.rows == 20
    # Deleted up to 25, and compacted; what comes after is written later.
    topic_job.reader = FakeReader([each for each in records if each.origin.offset not in (30, 31, 42)], begin=25)
    found, made, _ = topic_job.run()
    assert found.rows == 20 and topic_job.reader.asked[0][0] == 20
    assert (made.rows, made.gone) == (45 - 25 - 3, 5)
    rows = [row["offset"] for row in topic_job.job.rows()]
    assert sorted(rows) == [*range(20), *(each for each in range(25, 45) if each not in (30, 31, 42))]
    again, nothing, _ = topic_job.run()
    assert (again.rows, again.gone, nothing) == (37, 5, Tally())


# ------------------------------------------------------------------ settings


def batch_of(**batch: str) -> Settings:
    return Settings(source={"topics": ["documents"]}, outputs=[{"kind": "parquet", "uri": "file:///v"}], batch=batch)


def test_bounds_are_words_moments_or_offsets():
    chosen = batch_of(start="2026-05-01T00:00:00Z", end="documents/0=10 documents/12=7").batch
    assert chosen.first == 1_777_593_600_000
    assert chosen.last == {"documents/0": 10, "documents/12": 7}
    assert (batch_of().batch.first, batch_of().batch.last) == (None, None)


@pytest.mark.parametrize(
    ("bounds", "says"),
    [
        ({"start": "latest"}, "write earliest, a timestamp such as"),
        ({"end": "documents/0"}, "write latest, a timestamp such as"),
        ({"end": "documents/0=1 documents/0=2"}, "names a partition twice"),
        ({"start": "a/0=1", "end": "a/0=2 a/1=3"}, "only one of them names a/1"),
        ({"start": "a/0=3", "end": "a/0=2"}, "start (a/0=3) lies after end (a/0=2)"),
        ({"start": "2026-05-02", "end": "2026-05-01"}, "start is later than end"),
    ],
)
def test_bounds_that_are_none_are_refused(bounds: dict[str, str], says: str):
    with pytest.raises(ValueError) as caught:
        batch_of(**bounds)
    assert says in str(caught.value)


def test_a_batch_needs_files_or_topics():
    batch_of(start="2026-05-01").require_batch()
    output = [{"kind": "parquet", "uri": "file:///v"}]
    mistakes: list[tuple[Callable[[], Settings], str]] = [
        (lambda: Settings(outputs=output), "or name topics in source.topics"),
        (lambda: Settings(source={"topics": ["a"]}, outputs=[{"topic": "v"}]), "batch writes files alone"),
        (lambda: Settings(source={"topics": ["a"], "pattern": "b.*"}, outputs=output), "one of them only"),
        (lambda: Settings(batch={"inputs": ["in"], "start": "2026-05-01"}, outputs=output), "are for topics"),
    ]
    for make, says in mistakes:
        with pytest.raises(SettingsError, match=says):
            make().require_batch()
