"""A new output beside an old one: what it must have, and what is said of what it lacks."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.cutover import documents
from pipelines.cutover.command import run_cutover
from pipelines.cutover.documents import Held, Mark, Verdict, Version, compare, later
from pipelines.cutover.places import held
from pipelines.model import Model
from pipelines.search.places import Files, TopicRecords
from workers.codecs import renderer_for, rows_for
from workers.codecs.tombstone import render_tombstone
from workers.errors import EnvironmentFault, SettingsError
from workers.records import Chunk, Document, Embedding, Message, Origin, Record
from workers.settings import KafkaOutput, ParquetOutput, Settings

OURS, THEIRS = "f" * 16, "0" * 16


def at(offset: int, partition: int = 0, timestamp: int = -1) -> Version:
    return Version("docs", partition, offset, timestamp)


def mark(name: str, offset: int = 0, fingerprint: str | None = OURS, **fields: Any) -> Mark:
    return Mark(fields.pop("key", name.encode()), name, fingerprint, fields.pop("version", at(offset)), **fields)


def holding(*marks: Mark, by_offset: bool = True) -> Held:
    found = Held(by_offset=by_offset)
    found.add(marks)
    return found


def verdict(old: Sequence[Mark], new: Sequence[Mark], until_ms: int | None = None) -> Verdict:
    return compare(holding(*old), holding(*new), OURS, until_ms)


def counts(found: Verdict) -> dict[str, int]:
    return {name: case.count for name, case in found.cases.items() if case.count}


# ---- which is later


def test_offsets_of_a_partition_say_which_is_later_and_else_timestamps():
    assert later(at(2, timestamp=1), at(1, timestamp=9)) == 1
    assert later(at(2, 0, 5), at(1, 1, 9)) == -4, "of two partitions"
    assert later(Version(timestamp_ms=9), at(1, 1, 9)) == 0
    assert later(at(2, 0), at(1, 1)) is None
    assert later(Version(), at(1, 1, 9)) is None


def test_when_the_broker_wrote_a_vector_says_nothing_of_its_record():
    appended = Version(timestamp_ms=9, appended=True)
    assert later(appended, at(1, timestamp=5)) is later(at(1, timestamp=5), appended) is None
    assert later(at(2)._replace(appended=True), at(1)) == 1, "offsets do"


def test_of_files_the_greater_offset_counts_and_of_a_topic_what_was_written_last():
    """A batch's files may come after those of the stream that went on from it."""
    several = [mark("a", 7), mark("a", 3, THEIRS)]
    assert holding(*several).documents()["a"].version == at(7)
    assert holding(*several, by_offset=False).documents()["a"].fingerprints == {THEIRS}
    other = mark("a", 3, THEIRS, version=at(3, 1))
    assert holding(mark("a", 7), other).documents()["a"].version == at(3, 1), "another partition's says nothing"


# ---- what must hold


def test_the_same_documents_of_the_right_fingerprint_are_ready():
    old = [mark("a", 1, THEIRS), mark("b", 2, THEIRS), mark("a", 5, THEIRS), mark("c", 6, THEIRS), mark("c", 7, None)]
    found = verdict(old, [mark("b", 2), mark("a", 5)])
    assert found.ready and (found.old, found.new, counts(found)) == (2, 2, {})


@pytest.mark.parametrize(
    ("new", "wrong"),
    [
        ([mark("a", 5)], {"missing": 1}),
        ([mark("a", 5), mark("b", 2, THEIRS)], {"foreign": 1}),
        ([mark("a", 1), mark("b", 2)], {"stale": 1}),
        ([mark("a", 5), mark("b", 2), mark("c", 6)], {"stale": 1}),
        ([mark("a", 5), mark("b", 2), mark("d", 9)], {"more": 1}),
        ([mark("a", 5), mark("b", 2, None)], {"missing": 1}),
        ([mark("a", 1, THEIRS), mark("d", 1, THEIRS)], {"missing": 1, "stale": 1, "more": 1, "foreign": 2}),
        ([], {"missing": 2}),
    ],
)
def test_what_is_wrong_is_counted(new: list[Mark], wrong: dict[str, int]):
    """Of two documents, and a third that was deleted."""
    old = [mark("a", 5, THEIRS), mark("b", 2, THEIRS), mark("c", 6, THEIRS), mark("c", 7, None)]
    found = verdict(old, new)
    assert counts(found) == wrong and not found.ready


def test_it_is_no_fault_to_be_further():
    """The new output is read after the old one: a newer text, a deletion, and what was written again after one."""
    old = [mark("a", 1, THEIRS), mark("b", 2, THEIRS), mark("c", 3, THEIRS), mark("c", 4, None)]
    found = verdict(old, [mark("a", 8), mark("b", 9, None), mark("c", 10)])
    assert found.ready and found.ahead == 3


def test_nothing_is_ready_to_take_the_place_of_nothing():
    assert not verdict([], []).ready


def test_what_is_later_than_asked_for_is_left_out():
    old = [mark("a", version=at(1, 0, 100)), mark("b", version=at(2, 0, 900)), mark("c", version=at(3, 0, 100))]
    new = [mark("a", version=at(1, 0, 100)), mark("c", version=at(9, 0, 950)), mark("d", version=at(9, 0, 990))]
    assert counts(verdict(old, new)) == {"missing": 1, "more": 1}
    found = verdict(old, new, until_ms=500)
    assert found.ready and found.recent == 3
    assert counts(verdict(old, new, until_ms=970)) == {"missing": 1}


def test_where_until_leaves_out_all_that_the_old_output_has_nothing_is_ready():
    """Deletions that are older, and what the new output knows beyond, make it no better."""
    old = [mark(f"d{n}", version=at(n, 0, 900)) for n in range(10)] + [mark("gone", None, None, version=at(10, 0, 100))]
    for new in ([], [mark("d0", version=at(0, 0, 900))], [mark("gone", None, None, version=at(10, 0, 100))]):
        found = verdict(old, new, until_ms=500)
        assert not found.ready and (found.old, found.judged, found.recent, counts(found)) == (10, 0, 10, {})
    one = mark("one", version=at(11, 0, 100))
    found = verdict([*old, one], [one], until_ms=500)
    assert found.ready and found.judged == 1


def test_where_nothing_says_which_record_it_was_that_is_told():
    found = verdict([mark("a", 5, THEIRS)], [mark("a", version=Version("file:///x", 0, 3))])
    assert found.ready and found.untold == 1


def chunks(name: str, offset: int, count: int, fingerprint: str | None = OURS, only: int | None = None) -> list[Mark]:
    rows = range(count if only is None else only)
    return [mark(name, offset, fingerprint, key=f"{name}#{n}".encode(), vectors=count, chunk=n) for n in rows]


def test_documents_in_chunks_are_compared_whole():
    """Models cut them differently; one that lacks a chunk lacks something."""
    old = chunks("a", 1, 3, THEIRS) + chunks("b", 2, 2, THEIRS)
    found = verdict(old, chunks("a", 1, 5) + chunks("b", 2, 1))
    assert found.ready and (found.old, found.new) == (2, 2)
    assert counts(verdict(old, chunks("a", 1, 5, only=4) + chunks("b", 2, 1))) == {"missing": 1}
    assert counts(verdict(old, chunks("a", 8, 5, only=4) + chunks("b", 2, 1))) == {"missing": 1}, (
        "also when it is newer"
    )
    shrunk = [*chunks("a", 1, 3, THEIRS), *chunks("a", 6, 2, THEIRS), mark("a#2", 6, None, key=b"a#2")]
    assert verdict(shrunk, chunks("a", 6, 4)).ready
    gone = [*shrunk, *(mark(f"a#{n}", 7, None, key=f"a#{n}".encode()) for n in range(2)), mark("b", 8, THEIRS)]
    assert counts(verdict(gone, [*chunks("a", 6, 4), mark("b", 8)])) == {"stale": 1}


def test_chunks_of_an_older_record_do_not_count_and_are_a_fault_of_their_own():
    """Of the newer record one of two has come, and two of the older one's three have stayed."""
    old = chunks("a", 6, 2, THEIRS)
    assert counts(verdict(old, [*chunks("a", 1, 3), *chunks("a", 6, 2, only=1)])) == {"missing": 1, "stale": 1}
    assert counts(verdict(old, [*chunks("a", 1, 3), *chunks("a", 6, 2)])) == {"stale": 1}, "the third of three"
    assert counts(verdict(old, [*chunks("a", 1, 2), *chunks("a", 6, 2, only=1)])) == {"missing": 1, "stale": 1}
    assert counts(verdict(old, [*chunks("a", 1, 3), *chunks("a", 9, 2)])) == {"stale": 1}, "also when it is newer"
    assert counts(verdict(old, [*chunks("a", 1, 3), *chunks("a", 6, 2), mark("a#2", 6, None, key=b"a#2")])) == {}
    assert verdict([*chunks("a", 1, 3, THEIRS), *old], chunks("a", 6, 2)).ready, (
        "the old output's are not held against it"
    )


def test_documents_of_one_id_under_two_keys_are_no_older_chunks_of_each_other():
    both = [mark("a", n, key=b"k%d#%d" % (n, i), vectors=2, chunk=i) for n in (1, 5) for i in range(2)]
    assert verdict(both, both).ready


def test_chunks_that_the_broker_has_dated_are_told_apart_by_their_count_alone():
    """It writes those of one record at different times."""

    def written(count: int, since: int, only: int | None = None) -> list[Mark]:
        found = chunks("a", 0, count, only=only)
        return [one._replace(version=Version(timestamp_ms=since + n, appended=True)) for n, one in enumerate(found)]

    old = chunks("a", 6, 2, THEIRS)
    found = verdict(old, written(3, 100))
    assert found.ready and found.untold == 1
    assert counts(verdict(old, [*written(3, 100), *written(2, 200)])) == {"stale": 1}
    assert counts(verdict(old, [*written(3, 100), *written(2, 200, only=1)])) == {"missing": 1, "stale": 1}


def test_too_many_keys_are_said(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(documents, "MOST", 2)
    with pytest.raises(EnvironmentFault, match="more than 2 keys"):
        holding(mark("a"), mark("b"), mark("c"))


# ---- from real outputs


def settings(uri: str, **sections: Any) -> Settings:
    return Settings(outputs=[{"kind": "parquet", "uri": uri, "dim": 64}], **sections)


def vector() -> Any:
    return np.full(384, 384**-0.5, np.float32)


def source(n: int, key: bytes | None = None) -> Record:
    return Record(Origin("docs", 0, n, 0), key or b"k%d" % n, b"{}", 1_700_000_000_000 + n)


def write(given: Settings, path: Path, records: Sequence[Record], deleted: Sequence[Record] = ()) -> None:
    """A file as an output of these settings has it."""
    (output,) = given.outputs
    assert isinstance(output, ParquetOutput)
    model = Model.open(given)
    projection = model.projection(output)
    fingerprint = model.fingerprint_of(projection)
    renderer = rows_for(output, dim=projection.dim, model=model.name, fingerprint=fingerprint)
    rows = []
    for each in records:
        (made,) = projection(vector()[None]).rows()
        rows.append(
            renderer.row(each, Embedding(Document((each.key or b"").decode(), "", {}), vector(), 3, False), *made)
        )
    rows += [renderer.deletion(each) for each in deleted]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(renderer.file([renderer.batch(rows)], {}))


@pytest.fixture
def places(tmp_path: Path) -> Callable[..., tuple[Settings, Path]]:
    """``places(records, deleted)`` → the new settings, and the old output of twenty records, one of which was deleted."""

    def make(records: Sequence[Record], deleted: Sequence[Record] = ()) -> tuple[Settings, Path]:
        old = settings(f"file://{tmp_path}/old", model={"max_tokens": 64})
        write(old, tmp_path / "old/topic-docs/0.parquet", [source(n) for n in range(20)], [source(20, b"k7")])
        new = settings(f"file://{tmp_path}/new", model={"max_tokens": 32})
        write(new, tmp_path / "new/batch-0/0.parquet", records, deleted)
        return new, tmp_path / "old"

    return make


def run(new: Settings, old: Path, **options: Any) -> tuple[int, str]:
    out = io.StringIO()
    given = {"old_topic": None, "until": None, "keys": False, "as_json": False, **options}
    return run_cutover(new, old=str(old), out=out, **given), out.getvalue()


def test_it_passes_and_fails_when_one_record_is_removed(places):
    every = [source(n) for n in range(20) if n != 7]
    code, said = run(*places(every))
    assert code == 0 and said.splitlines()[-1].startswith("ready")
    assert said.count(": 19 documents") == 2 and "NO" not in said
    code, said = run(*places([each for each in every if each.key != b"k13"]))
    assert code == 1 and said.splitlines()[-1] == "not ready"
    assert "every document is there  NO: 1 missing, such as docs/0/13\n" in said and said.count("NO") == 1
    assert "k13" not in said and "k13" in run(*places([source(n) for n in range(13)]), keys=True)[1]


def test_nothing_that_is_old_enough_is_said_and_so_is_nothing_at_all(tmp_path: Path, places):
    new, old = places([source(n) for n in range(20, 40)])
    code, said = run(new, old, until="2020-01-01T00:00:00Z")
    assert code == 1 and said.splitlines()[-1] == "not ready" and "yes" not in said
    assert "--until leaves out every document that the old output has, so nothing is known of the new one" in said
    found = json.loads(run(new, old, until="2020-01-01T00:00:00Z", as_json=True)[1])
    assert not found["ready"] and found["old"]["documents"] == 19 and found["judged"] == 0
    write(settings(f"file://{tmp_path}/empty"), tmp_path / "empty/0.parquet", [], [source(1)])
    code, said = run(new, tmp_path / "empty", until="1s")
    assert code == 1 and "the old output holds nothing, so nothing is known of the new one" in said


def test_as_json(places):
    code, said = run(*places([source(n) for n in range(19)], [source(19)]), as_json=True)
    found = json.loads(said)
    assert code == 1 and not found["ready"]
    assert (found["old"]["documents"], found["new"]["documents"]) == (19, 19)
    assert found["stale"] == {"count": 1, "examples": ["docs/0/20"]}
    assert found["missing"] == {"count": 1, "examples": ["docs/0/19"]}
    assert len(found["new"]["fingerprint"]) == 16


def test_other_vectors_are_told(places):
    new, old = places([source(n) for n in range(20) if n != 7])
    other = new.model_copy(update={"model": new.model.model_copy(update={"max_tokens": 33})})
    code, said = run(other, old)
    assert code == 1 and "NO: 19 of another, such as docs/0/0" in said


def message_as_record(message: Message, offset: int) -> Record:
    return Record(Origin("out", 0, offset, 0), message.key, message.value, message.timestamp_ms, message.headers)


@pytest.mark.parametrize("format", ["json", "binary"])
def test_a_topic_says_the_same_of_its_records(format: str, monkeypatch: pytest.MonkeyPatch):
    """A document, one in two chunks, and one that was deleted, as they lie in an output topic."""
    given = Settings(outputs=[{"topic": "out", "format": format}])
    (output,) = given.outputs
    assert isinstance(output, KafkaOutput)
    renderer = renderer_for(output, dim=384, model="m", fingerprint=OURS)
    whole = Embedding(Document("k1", "", {}), vector(), 3, False)
    cut = [Embedding(Document("k2", "", {}), vector(), 3, False, Chunk(n, 2, n, n + 1)) for n in range(2)]
    written = [renderer.render(source(n), each, each.vector) for n, each in [(1, whole), *((2, each) for each in cut)]]
    written += [renderer.render(source(3), Embedding(Document("k3", "", {}), vector(), 3, False), vector())]
    written += [render_tombstone(source(4, b"k3"), "out")]
    records = [message_as_record(message, n) for n, message in enumerate(written)]
    stranger = Record(Origin("out", 0, 9, 0), b"x", b"{}", 0)
    monkeypatch.setattr(TopicRecords, "records", lambda _: iter([records[:2], [*records[2:], stranger]]))
    found = held(given, TopicRecords(given, "out")).documents()
    stamps = {name: one.version.timestamp_ms - 1_700_000_000_000 for name, one in found.items()}
    assert {name: (one.live, one.vectors, one.count) for name, one in found.items()} == {
        "k1": (True, 1, 1),
        "k2": (True, 2, 2),
        "k3": (False, 0, 0),
    }
    assert stamps == {"k1": 1, "k2": 2, "k3": 4}
    assert found["k2"].version.offset == (2 if format == "binary" else -1)
    assert not any(one.version.appended for one in found.values())


@pytest.mark.parametrize("format", ["json", "binary"])
def test_a_topic_whose_records_the_broker_dates_says_so_of_the_whole_document(
    format: str, monkeypatch: pytest.MonkeyPatch
):
    given = Settings(outputs=[{"topic": "out", "format": format}])
    (output,) = given.outputs
    assert isinstance(output, KafkaOutput)
    renderer = renderer_for(output, dim=384, model="m", fingerprint=OURS)
    cut = [Embedding(Document("k1", "", {}), vector(), 3, False, Chunk(n, 3, n, n + 1)) for n in range(3)]
    written = [message_as_record(renderer.render(source(1), each, each.vector), n) for n, each in enumerate(cut)]
    dated = [dataclasses.replace(record, timestamp_ms=1_800_000_000_000 + n) for n, record in enumerate(written)]
    place = TopicRecords(given, "out")
    place.log_append_time = True
    monkeypatch.setattr(TopicRecords, "records", lambda _: iter([dated]))
    found = held(given, place).documents()["k1"]
    assert (found.vectors, found.count, found.older, found.version.appended) == (3, 3, 0, True)


def test_files_say_the_same_of_documents_in_chunks(tmp_path: Path):
    """Of two, of three chunks each; the later version of one has two, so its third was deleted."""
    output = ParquetOutput(kind="parquet", uri=f"file://{tmp_path}")
    renderer = rows_for(output, dim=384, model="m", fingerprint=OURS, chunked=True)

    def rows(record: Record, count: int) -> list[Any]:
        name = (record.key or b"").decode()
        cut = [Embedding(Document(name, "", {}), vector(), 3, False, Chunk(n, count, n, n + 1)) for n in range(count)]
        return [renderer.row(record, each, each.vector, None) for each in cut]

    written = [
        *rows(source(1), 3),
        *rows(source(2), 3),
        *rows(source(3, b"k1"), 2),
        renderer.deletion(source(3, b"k1#2")),
    ]
    (tmp_path / "0.parquet").write_bytes(renderer.file([renderer.batch(written)], {}))
    found = held(Settings(), Files(str(tmp_path))).documents()
    assert {name: (one.vectors, one.count, one.version.offset) for name, one in found.items()} == {
        "k1": (2, 2, 3),
        "k2": (3, 3, 2),
    }
    assert found["k1"].version.timestamp_ms == 1_700_000_000_003


def test_what_does_not_go_together_is_said(tmp_path: Path, places):
    new, old = places([source(1)])
    with pytest.raises(SettingsError, match="name the old output"):
        run_cutover(new, old=None, old_topic=None, until=None, keys=False, as_json=False, out=io.StringIO())
    with pytest.raises(SettingsError, match="name no output"):
        run(Settings(), old)
    with pytest.raises(SettingsError, match="--until soon: write a timestamp"):
        run(new, old, until="soon")
    with pytest.raises(EnvironmentFault, match=r"--old .*nowhere: there is no such file or folder"):
        run(new, tmp_path / "nowhere")
    (old / "topic-docs/1.parquet").write_bytes(b"no file of ours")
    with pytest.raises(EnvironmentFault, match=r"topic-docs/1.parquet cannot be compared: it is no Parquet file"):
        run(new, old)
