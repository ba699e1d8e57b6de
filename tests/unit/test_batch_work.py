"""What a batch job makes of its rows: each once, in files or among the dead letters, however often it dies on its way."""

from __future__ import annotations

import io
import json
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.batch import command, finished, place
from pipelines.batch.finished import Tally
from pipelines.batch.inputs import find
from pipelines.batch.outcome import Outcome
from pipelines.batch.outlets import batch_outlets
from pipelines.batch.pieces import plan
from pipelines.batch.progress import Progress
from pipelines.batch.there import There
from pipelines.batch.work import Worker
from tests.batch_job import DIM, Job, pool_of, texts, vector_of, write_groups
from workers.errors import EnvironmentFault, SettingsError
from workers.object_store import Location, ObjectStore
from workers.settings import Settings


def test_rows_have_the_columns_of_run_and_say_where_they_come_from(tmp_path: Path):
    job = Job(tmp_path)
    job.texts("a.jsonl", texts(10))
    found, made, reasons = job.run()
    assert (found, reasons) == (Tally(), {})
    assert made == Tally(rows=10, tokens=sum(len(f"n text {n}") for n in range(10)), truncated=0, refused=0, parts=3)
    rows = sorted(job.rows(), key=lambda row: row["offset"])
    assert list(rows[0]) == [
        *("id", "embedding", "tokens", "truncated", "deleted", "fingerprint"),
        *("topic", "partition", "offset", "timestamp", "key", "title"),
    ]
    content = (tmp_path / "in/a.jsonl").read_bytes()
    for n, row in enumerate(rows):
        assert (row["id"], row["title"], row["topic"]) == (f"n{n}", f"t{n}", f"file://{tmp_path}/in/a.jsonl")
        assert content[row["offset"] :].startswith(b'{"id": "n%d"' % n)
        assert row["embedding"] == pytest.approx(vector_of(f"n text {n}"), abs=1e-6)
    assert {row["fingerprint"] for row in rows} == {job.model.fingerprint(DIM, "float32")}


def test_several_outputs_are_made_of_one_pass(tmp_path: Path):
    outputs = [
        {"kind": "parquet", "uri": f"file://{tmp_path}/whole"},
        {"kind": "parquet", "uri": f"file://{tmp_path}/bits", "dim": 64, "precision": "ubinary"},
        {"kind": "parquet", "uri": f"file://{tmp_path}/small", "dim": 128, "precision": "int8"},
    ]
    job = Job(tmp_path, outputs=outputs)
    job.texts("a.jsonl", texts(9))
    job.run()
    assert set(job.embedded.values()) == {1}
    whole, bits, small = ({row["id"]: row for row in job.rows(output)} for output in range(3))
    assert list(whole) == list(bits) == list(small)
    for name, row in whole.items():
        vector = np.array(row["embedding"])
        assert bits[name]["embedding"] == np.packbits(vector[:64] > 0).tolist()
        cut = vector[:128] / np.linalg.norm(vector[:128])
        assert np.array(small[name]["embedding"]) * small[name]["scale"] == pytest.approx(cut, abs=2e-3)


def test_bad_rows_are_dead_letters_with_their_line_and_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("workers.pool.BACKOFF_S", (0.001, 0.002))
    job = Job(tmp_path, model={"overflow": "reject"})
    bad = [
        {"id": "1", "text": ""},
        {"id": "2"},
        [],
        {"id": "4", "text": 5},
        {"id": "5", "text": "nan! x"},
        {"id": "6", "text": "raise! x"},
        {"id": "7", "text": "x" * 100},
        {"text": "no id"},
    ]
    job.texts("a.jsonl", [*texts(3), *bad])
    with (tmp_path / "in/a.jsonl").open("ab") as file:
        file.write(b'{"id": "b", "text": "\xff"}\n{half\n{"id": "s", "text": "t", "title": "\\ud800"}\n')
    _, made, reasons = job.run()
    assert reasons == {
        "text/empty": 1,
        "text/missing_field": 1,
        "decode/not_an_object": 1,
        "text/wrong_type": 1,
        "encode/not_finite": 1,
        "encode/encoder_raised": 1,
        "tokenize/too_long": 1,
        "text/missing_id": 1,
        "decode/invalid_utf8": 1,
        "decode/invalid_json": 1,
        "output/lone_surrogate": 1,
    }
    assert (made.rows, made.refused) == (3, 11)
    assert sorted(row["id"] for row in job.rows()) == ["n0", "n1", "n2"]
    dead = sorted(job.dead(), key=lambda row: row["offset"])
    content = (tmp_path / "in/a.jsonl").read_bytes()
    assert [row["value"] for row in dead] == content.splitlines()[3:]
    for row in dead:
        assert row["file"] == f"file://{tmp_path}/in/a.jsonl"
        assert content[row["offset"] :].startswith(row["value"])
        assert "x" * 100 not in row["message"] and row["message"]
    assert Counter(f"{row['stage']}/{row['class']}" for row in dead) == reasons


def test_what_one_output_cannot_take_is_refused_by_all(tmp_path: Path):
    outputs = [
        {"kind": "parquet", "uri": f"file://{tmp_path}/whole"},
        {"kind": "parquet", "uri": f"file://{tmp_path}/front", "dim": 8},
    ]
    job = Job(tmp_path, outputs=outputs)
    job.texts("a.jsonl", [*texts(2), {"id": "f", "text": "flat! x"}])
    _, made, reasons = job.run()
    assert (made.rows, reasons) == (2, {"output/no_direction": 1})
    assert {row["id"] for row in job.rows(0)} == {row["id"] for row in job.rows(1)} == {"n0", "n1"}


@pytest.mark.parametrize("lives", [[1], [2, 3], [1, 1, 1, 1, 1, 1, 1]])
def test_a_job_that_is_run_again_does_what_is_missing_and_nothing_twice(tmp_path: Path, lives: list[int]):
    job = Job(tmp_path)
    job.texts("a.jsonl", [*texts(21), {"id": "bad", "text": ""}])
    job.texts("b.jsonl", texts(17, "m"))
    before = Tally()
    for parts in lives:
        found, made, _ = job.run(parts)
        assert found == before
        before = found + made
    found, made, _ = job.run()
    assert found == before and found.parts == sum(lives)
    assert (found + made).rows == 38 and (found + made).refused == 1 and (found + made).parts == 6 + 5
    assert sorted(row["id"] for row in job.rows()) == sorted(
        [f"n{n}" for n in range(21)] + [f"m{n}" for n in range(17)]
    )
    assert len(job.dead()) == 1
    assert set(job.embedded.values()) == {1}
    again, made, _ = job.run()
    assert (again.rows, made) == (38, Tally())
    assert set(job.embedded.values()) == {1}


def test_a_group_without_rows_hides_none_of_those_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # The smallest is done first, as when a crash finds the largest under way.
    monkeypatch.setattr(There, "tasks", lambda self, pieces, of=There.tasks: of(self, pieces)[::-1])
    job = Job(tmp_path, batch={"inputs": [str(tmp_path / "in")], "rows": 10})
    write_groups(tmp_path / "in/a.parquet", [0, 30, 0, 30])
    count = 0
    while job.run(parts=1)[1].parts:
        count += 1
        assert count <= 6
    assert sorted(row["offset"] for row in job.rows()) == list(range(60))
    assert set(job.embedded.values()) == {1}


def test_a_part_that_died_between_its_outputs_is_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    outputs = [{"kind": "parquet", "uri": f"file://{tmp_path}/{name}"} for name in ("one", "two")]
    job = Job(tmp_path, outputs=outputs)
    job.texts("a.jsonl", [*texts(3), {"id": "bad", "text": ""}])
    put, puts = place.Place.put, []

    def dying(self: place.Place, path: str, content: bytes) -> None:
        if len(puts) == 2:  # the dead letters and the first output
            raise EnvironmentFault("killed")
        puts.append(path)
        put(self, path, content)

    monkeypatch.setattr(place.Place, "put", dying)
    with pytest.raises(EnvironmentFault, match="killed"):
        job.run()
    monkeypatch.setattr(place.Place, "put", lambda self, path, content: (puts.append(path), put(self, path, content)))
    assert len(job.rows(0)) == 3 and len(job.dead()) == 1 and not list((tmp_path / "two").rglob("*.parquet"))
    before = next((tmp_path / "one").rglob("*.parquet")).stat()
    found, made, _ = job.run()
    assert (found.rows, made.rows) == (0, 3)
    assert len(job.rows(0)) == len(job.rows(1)) == 3 and len(job.dead()) == 1
    assert len(puts) == 2 + 2  # the dead letters, which are there, and the second output
    assert next((tmp_path / "one").rglob("*.parquet")).stat().st_mtime_ns == before.st_mtime_ns


def test_an_output_that_is_added_later_gets_all_and_the_first_nothing_twice(tmp_path: Path):
    job = Job(tmp_path)
    job.texts("a.jsonl", texts(10))
    job.run()
    more = Job(
        tmp_path, outputs=[*job.sections["outputs"], {"kind": "parquet", "uri": f"file://{tmp_path}/more", "dim": 8}]
    )
    _, made, _ = more.run()
    assert made.rows == 10 == len(more.rows(0)) == len(more.rows(1))


def test_what_only_a_later_output_refuses_is_a_dead_letter_too(tmp_path: Path):
    job = Job(tmp_path)
    job.texts("a.jsonl", [{"id": "bad", "text": ""}, {"id": "f", "text": "flat! x"}])
    job.run()
    assert [row["class"] for row in job.dead()] == ["empty"]
    more = {"kind": "parquet", "uri": f"file://{tmp_path}/more", "dim": 8}
    Job(tmp_path, outputs=[*job.sections["outputs"], more]).run()
    assert {row["class"] for row in job.dead()} == {"empty", "no_direction"}


def test_a_part_that_was_taken_away_is_made_again(tmp_path: Path):
    job = Job(tmp_path)
    job.texts("a.jsonl", texts(12))
    job.run()
    next((tmp_path / "vectors").rglob("*-000001.parquet")).unlink()
    found, made, _ = job.run()
    assert (found.rows, made.rows, len(job.rows())) == (8, 4, 12)


def test_two_jobs_at_a_time_put_each_part_once(tmp_path: Path):
    job, other = Job(tmp_path), Job(tmp_path)
    job.texts("a.jsonl", [*texts(9), {"id": "bad", "text": ""}])
    files = find(job.settings.batch.inputs, "auto", [])
    there = [There(batch_outlets(each.model), files, each.settings) for each in (job, other)]
    for each in there:
        each.look()
    pieces = plan(files, job.settings).pieces
    for each, looked in zip((job, other), there, strict=True):
        pool = pool_of()
        assert sum(done.tally.rows for done in each.do(looked, pieces, Worker(each.model, pool, 4096))) == 9
        pool.close()
    assert len(job.rows()) == 9 and len(job.dead()) == 1


def test_other_files_and_more_files_join_those_that_are_there(tmp_path: Path):
    job = Job(tmp_path)
    job.texts("a.jsonl", texts(5))
    job.run()
    job.texts("b.jsonl", texts(5, "m"))
    found, made, _ = job.run()
    assert (found.rows, made.rows, len(job.rows())) == (5, 5, 10)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda job: job.texts("a.jsonl", texts(6)), "was made of another version of file://.*/in/a.jsonl"),
        (
            lambda job: job.sections.update(batch={**job.sections["batch"], "rows": 3}),
            "or with other batch.rows or batch.bytes",
        ),
        (lambda job: job.sections.update(model={"prompt_text": "a prompt: "}), "was made with other settings"),
        (lambda job: job.sections.update(source={"text": "text"}), "was made with other settings"),
        (lambda job: (job.folder / "vectors/x.parquet").write_bytes(b"x"), "was not written by batch"),
    ],
)
def test_what_does_not_go_together_is_refused(tmp_path: Path, change: Callable[[Job], None], says: str):
    job = Job(tmp_path)
    job.texts("a.jsonl", texts(5))
    job.run()
    before = len(job.rows())
    change(job)
    with pytest.raises(EnvironmentFault, match=says):
        Job(tmp_path, **job.sections).run()
    if not (tmp_path / "vectors/x.parquet").exists():
        assert len(job.rows()) == before


def test_other_vectors_may_lie_beside_ours_when_that_is_wanted(tmp_path: Path):
    job = Job(tmp_path)
    job.texts("a.jsonl", texts(5))
    job.run()
    other = Job(tmp_path, model={"prompt_text": "a prompt: "}, delivery={"allow_fingerprint_change": True})
    _, made, _ = other.run()
    assert (made.rows, len(job.rows())) == (5, 10)


def test_a_foreign_file_under_our_name_is_said(tmp_path: Path):
    job = Job(tmp_path)
    job.texts("a.jsonl", texts(5))
    job.run()
    path = sorted((tmp_path / "vectors").rglob("*.parquet"))[0]
    path.write_bytes(b"not Parquet")
    with pytest.raises(EnvironmentFault, match=f"{path.name} is no file that batch has written: move it away"):
        job.run()


def test_counts_are_read_from_long_footers_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(finished, "_TAIL_BYTES", 16)
    job = Job(tmp_path)
    job.texts("a.jsonl", texts(5))
    job.run()
    assert job.run()[0].rows == 5


@pytest.mark.parametrize("dead", ["vectors", "vectors/dead", "vectors/.."])
def test_dead_letters_never_lie_among_vectors(tmp_path: Path, dead: str):
    job = Job(tmp_path, dead_letter={"uri": f"file://{(tmp_path / dead).resolve()}"})
    job.texts("a.jsonl", texts(3))
    with pytest.raises(SettingsError, match="whose readers would get both"):
        run_batch(job)


def test_outputs_never_lie_in_each_other(tmp_path: Path):
    outputs = [{"kind": "parquet", "uri": f"file://{tmp_path}/{name}"} for name in ("a/b", "a")]
    with pytest.raises(SettingsError, match=f"{tmp_path}/a/b lies in file://{tmp_path}/a,"):
        run_batch(Job(tmp_path, outputs=outputs))


def run_batch(job: Job, **options: Any) -> tuple[int, dict[str, Any]]:
    """The command, where there is nothing to do that would take Ray."""
    out = io.StringIO()
    code = command.run_batch(job.settings, options.pop("stop", threading.Event()), out, as_json=True, **options)
    return code, json.loads(out.getvalue())


def test_a_job_that_is_done_says_so_without_ray(tmp_path: Path):
    job = Job(tmp_path)
    job.texts("a.jsonl", [*texts(9), {"id": "bad", "text": ""}])
    job.run()
    code, said = run_batch(job)
    assert (code, said["complete"], said["rows"], said["dead_letters"]) == (0, True, 9, 1)
    assert (said["made"]["rows"], said["found"]["rows"], said["replicas"]) == (0, 9, 0)
    assert said["dead_letters_uri"] == f"file://{tmp_path}/vectors-dead-letters"
    assert said["outputs"] == [f"file://{tmp_path}/vectors"]


def test_a_job_that_is_stopped_before_it_starts_is_not_done(tmp_path: Path):
    job = Job(tmp_path)
    job.texts("a.jsonl", texts(9))
    stop = threading.Event()
    stop.set()
    code, said = run_batch(job, stop=stop)
    assert (code, said["complete"], said["rows"]) == (130, False, 0)


def test_files_that_are_broken_are_named_when_the_rest_is_done(tmp_path: Path):
    job = Job(tmp_path)
    job.texts("a.jsonl", texts(3))
    job.run()
    for n in range(12):
        (tmp_path / f"in/broken{n:02}.parquet").write_bytes(b"no")
    out = io.StringIO()
    with pytest.raises(EnvironmentFault) as caught:
        command.run_batch(job.settings, threading.Event(), out)
    lines = str(caught.value).splitlines()
    assert lines[0] == f"file://{tmp_path}/in/broken00.parquet: it is no Parquet file, or a broken one"
    assert lines[10:] == ["and 2 more", "the rest is done; run the same command again when this is mended"]
    assert "not complete" in out.getvalue() and "3 embedded" in out.getvalue()


@pytest.mark.parametrize(
    ("given_up", "stopped", "says"),
    [
        (None, False, "the rest is done; run the same command again when this is mended"),
        (None, True, "what was under way is not done; run the same command again when this is mended"),
        ("no room", False, "no room: run the same command again when that is mended, and it goes on"),
    ],
)
def test_a_job_with_failures_ends_with_its_summary_and_names_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given_up: str | None, stopped: bool, says: str
):
    job = Job(tmp_path)
    job.texts("a.jsonl", texts(3))
    failed = [f"piece {n}: its disk is broken" for n in range(12)]
    outcome = Outcome(Tally(rows=2, parts=1), failed=failed, given_up=given_up, stopped=stopped)
    monkeypatch.setattr(command, "_work", lambda *_: (outcome, Progress(0.0)))
    out = io.StringIO()
    with pytest.raises(EnvironmentFault) as caught:
        command.run_batch(job.settings, threading.Event(), out, as_json=True)
    assert str(caught.value).splitlines() == [*failed[:10], "and 2 more", says]
    said = json.loads(out.getvalue())
    assert (said["complete"], said["rows"], said["failed"]) == (False, 2, failed)


@pytest.mark.parametrize(
    ("sections", "says"),
    [
        ({"batch": {}}, "batch.inputs is empty"),
        ({"outputs": []}, "outputs is empty"),
        ({"outputs": [{"topic": "vectors"}]}, "outputs.0 is a topic, and batch writes files alone"),
        ({"source": {"envelope": "debezium"}}, "leave them out, batch.format says"),
        (
            {"source": {"mappings": [{"topics": ["a"], "text": "b"}], "topics": ["a"]}},
            "leave them out, batch.format says",
        ),
        ({"source": {"format": "avro", "schema_file": "a.avsc"}}, "leave them out, batch.format says"),
    ],
)
def test_settings_that_are_no_job_are_said(sections: dict[str, Any], says: str):
    whole = {"batch": {"inputs": "in"}, "outputs": [{"kind": "parquet", "uri": "file:///out"}]}
    Settings(**whole).require_batch()
    with pytest.raises(SettingsError, match=says):
        Settings(**{**whole, **sections}).require_batch()


def test_a_store_says_what_lies_at_a_path(tmp_path: Path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/file").write_bytes(b"1234")
    store = ObjectStore(Location("file", "", str(tmp_path)))
    found = store.stat("folder/file")
    assert found is not None and (found.path, found.size) == ("folder/file", 4)
    assert found == store.listing(10)[0]
    assert store.stat("folder") is None and store.stat("absent") is None
