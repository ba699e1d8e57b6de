"""How a job keeps out of the way: rests of the right length, and threads that give way."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import threading
from pathlib import Path

import numpy as np
import pytest

from pipelines.batch import encoding, replica
from pipelines.batch.inputs import find
from pipelines.batch.outlets import batch_outlets
from pipelines.batch.pace import Pace, beside_an_encoder, give_way
from pipelines.batch.pieces import plan
from pipelines.batch.there import There
from pipelines.model import Model
from tests.batch_job import DIM, Job, pool_of, texts
from workers.errors import EnvironmentFault
from workers.pool import EncoderPool
from workers.records import Batch, type_vectors


class Clock:
    def __init__(self) -> None:
        self.now = 100.0
        self.rests: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.rests.append(seconds)
        self.now += seconds


def worked(pace: Pace, clock: Clock, seconds: float) -> None:
    with pace.working():
        clock.now += seconds


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 1.0])
def test_work_has_its_share_of_the_time(share: float):
    clock = Clock()
    pace = Pace(share, clock=clock, sleep=clock.sleep)
    for seconds in (0.1, 0.7, 0.2, 1.0):
        worked(pace, clock, seconds)
    worked(pace, clock, 0.0)  # the last rest too
    assert clock.now - 100 == pytest.approx(2.0 / share)
    assert not clock.rests or share < 1


def test_what_passes_between_two_works_is_rest_and_is_not_made_up_for():
    clock = Clock()
    pace = Pace(0.5, clock=clock, sleep=clock.sleep)
    worked(pace, clock, 1.0)
    clock.now += 0.4  # files were written
    worked(pace, clock, 1.0)
    assert clock.rests == [pytest.approx(0.6)]
    clock.now += 10
    worked(pace, clock, 1.0)
    worked(pace, clock, 1.0)
    assert clock.rests == [pytest.approx(0.6), pytest.approx(1.0)]


def test_work_that_fails_is_work():
    clock = Clock()
    pace = Pace(0.5, clock=clock, sleep=clock.sleep)
    with pytest.raises(ValueError, match="fails"), pace.working():
        clock.now += 2.0
        raise ValueError("it fails")
    worked(pace, clock, 1.0)
    assert clock.rests == [pytest.approx(2.0)]


@pytest.mark.skipif(not hasattr(os, "SCHED_IDLE"), reason="there is no such class on this system")
def test_a_thread_gives_way_with_those_that_it_starts_and_no_other():
    found: dict[str, int] = {}

    def look(name: str) -> None:
        found[name] = os.sched_getscheduler(0)

    def run() -> None:
        give_way()
        give_way()  # again is the same
        look("itself")
        started = threading.Thread(target=look, args=["started"])
        started.start()
        started.join()

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    look("other")
    assert (found["itself"], found["started"]) == (os.SCHED_IDLE, os.SCHED_IDLE)
    assert found["other"] != os.SCHED_IDLE


class Encoder:
    """In the place of the real one: what it was made with, and what it was given, by threads of which class."""

    def __init__(self, model: Model, dim: int, *, cuda: bool | None, threads: int | None, share: float) -> None:
        self.share = share
        self.calls: list[int] = []
        self.classes: set[int] = set()
        self.busy_s = 0.0

    def load(self) -> bool:
        self.classes.add(os.sched_getscheduler(0))
        return False

    def pool(self, canary: object, lost: object) -> EncoderPool:
        def call(batch: Batch) -> type_vectors:
            self.calls.append(batch.tokens)
            return np.full((len(batch.lengths), DIM), DIM**-0.5, np.float32)

        return pool_of(call)


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_a_replica_with_a_share_rests_after_each_pass_and_gives_way(
    share: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(replica, "LocalEncoder", Encoder)
    sections = {
        "batch": {"inputs": [str(tmp_path / "in")], "share": share},
        "pool": {"max_batch_tokens": 64},
        "model": {"max_tokens": 64},
    }
    job = Job(tmp_path, **sections)
    job.texts("a.jsonl", texts(100))
    files = find(job.settings.batch.inputs, "auto", [])
    there = There(batch_outlets(job.model), files, job.settings)
    there.look()
    (task,) = there.tasks(plan(files, job.settings).pieces)
    made = replica.Replica(job.settings, cuda=False)

    def run() -> None:
        made.load()
        made.work(task.piece, task.name, task.there)
        made._encoder.classes.add(os.sched_getscheduler(0))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    encoder = made._encoder
    assert isinstance(encoder, Encoder) and encoder.share == share
    assert len(job.rows()) == 100
    if share < 1:
        assert max(encoder.calls) <= 64 and encoder.classes == {os.SCHED_IDLE}
    else:
        assert 64 < max(encoder.calls) <= 256 and os.SCHED_IDLE not in encoder.classes


def test_what_a_replica_did_for_a_piece_that_failed_is_not_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(replica, "LocalEncoder", Encoder)
    job = Job(tmp_path, batch={"inputs": [str(tmp_path / "in")], "rows": 200}, model={"max_tokens": 64})
    (tmp_path / "in").mkdir()
    whole = gzip.compress("".join(json.dumps(row) + "\n" for row in texts(2_000)).encode())
    (tmp_path / "in/a.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    job.texts("b.jsonl", texts(10, "b"))
    files = find(job.settings.batch.inputs, "auto", [])
    there = There(batch_outlets(job.model), files, job.settings)
    there.look()
    broken, good = sorted(there.tasks(plan(files, job.settings).pieces), key=lambda task: task.piece.uri)
    made = replica.Replica(job.settings, cuda=False)
    made.load()
    answer = made.work(good.piece, good.name, good.there)
    assert (answer.own.worked, answer.own.skipped) == pytest.approx((good.piece.weight, 0))
    for _ in range(2):
        there.look()
        with pytest.raises(EnvironmentFault, match="not packed by gzip, or not whole"):
            made.work(broken.piece, broken.name, there.numbers(broken.name))
        counts = made.reading().counts
        assert (counts.worked, counts.skipped) == pytest.approx((good.piece.weight, 0))
    assert len(job.rows()) >= 210


def test_the_encoder_of_this_process_keeps_to_its_share(monkeypatch: pytest.MonkeyPatch):
    entered: list[float] = []

    class Recorder:
        def __init__(self, share: float) -> None:
            self._share = share

        def working(self) -> contextlib.AbstractContextManager[None]:
            entered.append(self._share)
            return contextlib.nullcontext()

    class Real:
        device, dtype, way = "cpu", "float32", "plain"

        def warm_up(self) -> None: ...

        self_test = warm_up

        def encode(self, batch: Batch, dim: int) -> type_vectors:
            return np.full((len(batch.lengths), dim), dim**-0.5, np.float32)

    class Opened:
        name = "a-model"

        def encoder(self, **_: object) -> Real:
            return Real()

    monkeypatch.setattr(encoding, "Pace", Recorder)
    made = encoding.LocalEncoder(Opened(), DIM, cuda=False, threads=1, share=0.25)  # type: ignore[arg-type]
    made.load()
    pool = made.pool(np.array([1, 2], np.int32), lambda _: None)
    for _ in range(3):
        pool.submit(Batch.of([np.array([1, 2, 3], np.int32)])).result()
    pool.close()
    assert entered == [0.25] * 3 and made.busy_s > 0


@pytest.mark.parametrize(("cpus", "threads"), [(0.5, "1"), (1, "1"), (8, "1"), (9, "2"), (64, "8")])
def test_beside_an_encoder_few_threads_tokenise(cpus: float, threads: str) -> None:
    assert beside_an_encoder(cpus, {}) == {"RAYON_NUM_THREADS": threads}


def test_what_the_environment_says_of_threads_holds() -> None:
    assert beside_an_encoder(1, {"RAYON_NUM_THREADS": "4"}) == {}
