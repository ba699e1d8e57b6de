"""``stream-embedder batch`` as a shell sees it, with real Ray and a real model: every format, kills, signals, bad rows."""

from __future__ import annotations

import csv
import gzip
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from pipelines import cluster
from pipelines.batch import crew, queue
from pipelines.batch.command import line
from pipelines.batch.crew import Crew
from pipelines.batch.inputs import find
from pipelines.batch.outcome import Outcome, State
from pipelines.batch.outlets import batch_outlets
from pipelines.batch.pieces import plan
from pipelines.batch.there import There
from tests.batch_job import (
    FakeReplica,
    FaultyReplica,
    Job,
    LastReplica,
    LonelyReplica,
    MortalReplica,
    NoReplica,
    OtherReplica,
    TardyReplica,
    texts,
)
from tests.batch_kill import killed_and_run_again, require_each_once, write_rows
from tests.integration.pipeline import wait_until
from tests.tiny_model import make_tiny_bert
from workers.errors import EnvironmentFault
from workers.settings import Settings

pytestmark = pytest.mark.timeout(600)

ROOT = Path(__file__).parents[2]


def command(name: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "pipelines", name, *arguments]


def batch(file: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    words = command("batch", "-c", str(file), "--json", *arguments)
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)


def summary(result: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return found


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., Path]:
    """``config(**sections)`` → the file of a job with a tiny model, from the folder ``in`` to two outputs."""
    model = make_tiny_bert(tmp_path / "model")
    (tmp_path / "in").mkdir()

    def write(**sections: Any) -> Path:
        whole = {
            "model": {"name": str(model), "dtype": "float32"},
            "source": {"text": "{title|}{text}", "id": "id"},
            "batch": {"inputs": [str(tmp_path / "in")], "rows": 20},
            "outputs": [
                {"kind": "parquet", "uri": f"file://{tmp_path}/vectors", "include": ["title"]},
                {"kind": "parquet", "uri": f"file://{tmp_path}/bits", "dim": 8, "precision": "ubinary"},
            ],
            **sections,
        }
        file = tmp_path / "batch.yaml"
        file.write_text(yaml.safe_dump(whole))
        return file

    return write


def vectors(folder: Path) -> dict[str, dict[str, Any]]:
    """The rows below a folder by id, each of which is there once."""
    found = pl.read_parquet(folder / "**/*.parquet").to_dicts()
    by_id = {row["id"]: row for row in found}
    assert len(by_id) == len(found)
    return by_id


def test_every_format_gives_the_vectors_of_encode(tmp_path: Path, config: Callable[..., Path]):
    rows = [
        {"id": f"r{n}", "title": "ab"[n % 2] * (n % 3), "text": f"text number {n} " * (n % 40 + 1)} for n in range(120)
    ]
    pq.write_table(pa.Table.from_pylist(rows[:50]), tmp_path / "in/a.parquet", row_group_size=25)
    (tmp_path / "in/b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[50:80]))
    with gzip.open(tmp_path / "in/c.csv.gz", "wt", newline="") as file:
        csv.writer(file).writerows([["id", "title", "text"], *(list(row.values()) for row in rows[80:])])
    with (tmp_path / "in/b.jsonl").open("a") as file:
        file.write('{"id": "bad", "text": [5]}\n{broken\n')
    result = batch(config())
    assert result.returncode == 0, result.stderr
    said = summary(result)
    assert (said["complete"], said["rows"], said["dead_letters"], said["files"]) == (True, 120, 2, 3)
    assert said["reasons"] == {"text/wrong_type": 1, "decode/invalid_json": 1}
    assert said["truncated"] > 0 and said["rows_per_second"] > 0 and said["replicas"] == 1
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    encoded = subprocess.run(
        command("encode", "-c", str(tmp_path / "batch.yaml")), cwd=ROOT, input=lines, capture_output=True, check=True
    )
    expected = {row["id"]: row for row in map(json.loads, encoded.stdout.splitlines())}
    found, bits = vectors(tmp_path / "vectors"), vectors(tmp_path / "bits")
    assert set(found) == set(bits) == set(expected)
    for name, row in found.items():
        assert row["embedding"] == pytest.approx(expected[name]["embedding"], abs=5e-6), name
        assert (row["tokens"], row["truncated"]) == (expected[name]["tokens"], expected[name]["truncated"])
        assert row["fingerprint"] == expected[name]["fingerprint"]
        cut = np.array(row["embedding"][:8])
        assert np.abs(cut).min() < 1e-6 or bits[name]["embedding"] == np.packbits(cut > 0).tolist()


def test_a_job_that_is_killed_and_stopped_is_finished_by_the_next_run_without_work_twice(
    tmp_path: Path, config: Callable[..., Path]
):
    count = 6_000
    (tmp_path / "in").rmdir()
    write_rows(tmp_path / "in", count)
    settings = yaml.safe_load(config(source={"id": "id"}).read_text())
    said = killed_and_run_again(tmp_path, settings, at=10, terminate=True)
    assert (said["rows"], said["dead_letters"]) == (count, 0)
    for output in ("vectors", "bits"):
        require_each_once(tmp_path / output, count)
    again = batch(tmp_path / "batch.yaml")  # and now there is nothing to do, for which no Ray is started
    assert again.returncode == 0 and summary(again)["made"]["rows"] == 0 and summary(again)["rows"] == count


def test_a_mistake_is_a_sentence(tmp_path: Path, config: Callable[..., Path]):
    (tmp_path / "in/a.csv").write_text("id,body\n1,text\n")
    result = batch(config())
    assert (result.returncode, result.stdout) == (2, "")
    assert "stream-embedder: file://" in result.stderr and "has no column text" in result.stderr
    assert "Traceback" not in result.stderr
    result = batch(config(batch={"inputs": [str(tmp_path / "absent")]}))
    assert result.returncode == 1 and "there is no such folder" in result.stderr


# ------------------------------------------------------------------ the crew, on one Ray


@pytest.fixture(scope="module")
def ray() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
        with cluster.connected(Settings()):
            yield


class Watched:
    """A job run by a crew of stand-ins; what was shown on the way."""

    def __init__(self, tmp_path: Path, **sections: Any) -> None:
        pool = {"cpus_per_replica": 0.1, "gpus_per_replica": 0, **sections.pop("pool", {})}
        self.job = Job(tmp_path, pool=pool, **sections)
        self.shown: list[State] = []
        self.lines: list[str] = []

    def run(self, replica_class: type = FakeReplica, look: Callable[[], None] = lambda: None) -> Outcome:
        """``look`` is called each half second, and the crew does nothing meanwhile."""
        settings = self.job.settings
        files = find(settings.batch.inputs, "auto", [])
        there = There(batch_outlets(self.job.model), files, settings)
        there.look()
        made = Crew(settings, there.tasks(plan(files, settings).pieces), there, replica_class)

        self.progress = made.progress

        def show(state: State) -> None:
            self.shown.append(state)
            self.lines.append(line(state, made.progress))
            look()

        return made.run(threading.Event(), show)


@pytest.mark.usefixtures("ray")
def test_a_replica_that_dies_is_replaced_and_nothing_is_lost_or_twice(tmp_path: Path):
    watched = Watched(tmp_path)
    watched.job.texts("a.jsonl", [*texts(30), {"id": "die", "text": f"late!{tmp_path}/died"}, *texts(30, "m")])
    watched.job.texts("b.jsonl", texts(30, "o"))
    outcome = watched.run()
    assert (outcome.replaced, outcome.failed, outcome.tally.rows) == (1, [], 91)
    assert len({row["id"] for row in watched.job.rows()}) == len(watched.job.rows()) == 91
    assert watched.shown[-1].left == 0 and "100.0%" in watched.lines[-1]
    # The 28 rows before the one that it died at were found when their file was read again, and count as that alone.
    size = sum(file.stat().st_size for file in (tmp_path / "in").iterdir())
    assert watched.progress.total == pytest.approx(size) and 0 < watched.progress.done < 0.8 * size


@pytest.mark.usefixtures("ray")
def test_a_piece_that_kills_every_replica_is_left_out_and_named_and_the_others_are_done(tmp_path: Path):
    watched = Watched(tmp_path)
    watched.job.texts("a.jsonl", [*texts(10), {"id": "die", "text": "always!"}])
    for n in range(5):
        watched.job.texts(f"b{n}.jsonl", texts(20, f"b{n}-"))
    outcome = watched.run()
    (failed,) = outcome.failed
    assert failed == f"file://{tmp_path}/in/a.jsonl from byte 0: 3 replicas have died at it"
    assert len(watched.job.rows()) == outcome.tally.rows == 108  # with the parts before the one that kills


@pytest.mark.usefixtures("ray")
def test_a_file_that_cannot_be_read_is_left_out_and_what_cannot_start_ends_the_job(tmp_path: Path):
    watched = Watched(tmp_path, pool={"min": 2, "max": 2})
    # The largest come first, and there are more of them than may fail in a row before others are drawn.
    for n in range(9):
        watched.job.texts(f"bad{n}.jsonl", texts(10 + n, f"{n}-"))
    watched.job.texts("good.jsonl", texts(5, "m"))
    watched.job.texts("more.jsonl", texts(5, "o"))
    with pytest.raises(EnvironmentFault, match="the model has no weights"):
        watched.run(NoReplica)
    with pytest.raises(EnvironmentFault, match="a replica has another model than this machine"):
        watched.run(OtherReplica)
    outcome = watched.run(FaultyReplica)
    assert sorted(outcome.failed) == [
        f"file://{tmp_path}/in/bad{n}.jsonl from byte 0: its disk is broken" for n in range(9)
    ]
    assert outcome.given_up is None and watched.progress.share == 1.0, "what is left out needs no work"
    assert (outcome.tally.rows, len(watched.job.rows())) == (10, 10)
    assert max(state.members for state in watched.shown) == 2
    again = watched.run()
    assert (again.failed, again.tally.rows, len(watched.job.rows())) == ([], 126, 136)


@pytest.mark.usefixtures("ray")
def test_an_answer_that_comes_late_takes_nothing_back_of_what_is_done(tmp_path: Path):
    watched = Watched(tmp_path, pool={"min": 1, "max": 1})
    watched.job.texts("late.jsonl", texts(20))
    watched.job.texts("soon.jsonl", texts(10, "s"))
    outcome = watched.run(TardyReplica)
    assert (outcome.tally.rows, watched.progress.share, watched.shown[-1].left) == (30, 1.0, 0)


@pytest.mark.usefixtures("ray")
def test_what_a_replica_answered_before_it_died_is_answered(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    watched = Watched(tmp_path, pool={"min": 1, "max": 1, "in_flight": 3})
    watched.job.texts("bad.jsonl", texts(5))
    watched.job.texts("end.jsonl", texts(5, "e"))
    watched.job.texts("good.jsonl", [*texts(5, "g"), {"id": "refused", "text": 5}])

    def hear_nothing() -> None:
        if (tmp_path / "busy").exists() and not (tmp_path / "deaf").exists():
            (tmp_path / "deaf").touch()
            wait_until((tmp_path / "died").exists, 60, lambda: "the replica's end")
            time.sleep(2)  # until Ray knows

    with caplog.at_level(logging.WARNING):
        outcome = watched.run(LastReplica, hear_nothing)
    assert outcome.failed == [f"file://{tmp_path}/in/bad.jsonl from byte 0: its disk is broken"]
    assert (outcome.replaced, outcome.tally.rows, outcome.reasons) == (1, 10, {"text/wrong_type": 1})
    died = [record.getMessage() for record in caplog.records if "has died at it" in record.getMessage()]
    assert len(died) == 1 and "end.jsonl" in died[0]


@pytest.mark.usefixtures("ray")
def test_when_everything_fails_the_job_ends_and_names_what_it_has_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    watched = Watched(tmp_path)
    for n in range(10):
        watched.job.texts(f"a{n}.jsonl", texts(2, f"{n}-"))
    monkeypatch.setattr(queue, "MOST_FAILED", 2)
    outcome = watched.run(MortalReplica)
    assert outcome.given_up is not None and outcome.given_up.endswith("; 8 pieces were not tried")
    assert outcome.replaced == 1 and len(outcome.failed) == 2
    assert all(each.endswith(": a replica has died at it") for each in outcome.failed)


@pytest.mark.usefixtures("ray")
def test_a_store_that_takes_nothing_any_more_ends_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    watched = Watched(tmp_path)
    for n in range(20):
        watched.job.texts(f"bad{n:02}.jsonl", texts(2, f"{n}-"))
    (tmp_path / "vectors-dead-letters").write_text("a file in the place of a folder")
    outcome = watched.run(FaultyReplica)
    assert outcome.given_up is not None and f"file://{tmp_path}/vectors-dead-letters" in outcome.given_up
    assert 6 <= len(outcome.failed) <= 7
    looks = iter([None])

    def look(there: There, original: Any = There.look) -> None:
        if next(looks, "later") is not None:
            raise EnvironmentFault("the store does not answer")
        original(there)

    monkeypatch.setattr(There, "look", look)
    outcome = watched.run(FaultyReplica)
    assert outcome.given_up is not None and outcome.given_up.startswith("the store does not answer; ")
    assert 1 <= len(outcome.failed) <= 2


@pytest.mark.usefixtures("ray")
def test_replicas_that_do_not_live_end_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(crew, "MOST_LOST", 2)
    watched = Watched(tmp_path)
    watched.job.texts("end.jsonl", texts(20))
    watched.job.texts("good.jsonl", texts(2, "m"))
    outcome = watched.run(LonelyReplica)
    assert outcome.given_up is not None and outcome.given_up.startswith(
        "2 replicas in a row were lost before they had a"
    )
    assert "(the device is taken)" in outcome.given_up
    assert f"file://{tmp_path}/in/end.jsonl from byte 0: a replica has died at it" in outcome.failed


@pytest.mark.usefixtures("ray")
def test_a_machine_that_is_too_small_is_said(tmp_path: Path):
    watched = Watched(tmp_path, pool={"gpus_per_replica": 64, "max": 2})
    watched.job.texts("a.jsonl", texts(2))
    with pytest.raises(EnvironmentFault, match=r"too few for 1 replicas of .* pool\.gpus_per_replica 64"):
        watched.run()
    elsewhere = Watched(tmp_path, pool={"max": 1000, "cpus_per_replica": 1000}, ray={"address": "auto"})
    assert Crew(elsewhere.job.settings, [], There([], [], elsewhere.job.settings))._most == 1000
