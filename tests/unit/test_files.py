"""Chains of files over a real folder: each offset once, whoever writes, whatever fails."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from workers import metrics
from workers.codecs.parquet import ParquetRenderer, read_notes
from workers.errors import EnvironmentFault
from workers.object_store import Location, ObjectStore
from workers.records import Origin, Record, TopicPartition
from workers.settings import Rotation
from workers.sinks.chain import Chain, OtherChain
from workers.sinks.files import FileOutput

P0, P1 = TopicPartition("docs", 0), TopicPartition("docs", 1)
RENDERER = ParquetRenderer(8, "float32", "m", "f" * 16)
WAIT_S = 15.0


def rows(*offsets: int, partition: int = 0) -> list[Any]:
    return [RENDERER.deletion(Record(Origin("docs", partition, n, 1), str(n).encode(), None, -1)) for n in offsets]


def chain(folder: Path, **changes: Any) -> Chain:
    options: dict[str, Any] = {"group": "g", "fingerprint": "f" * 16, **changes}
    return Chain(Location.parse(folder.as_uri()), read_notes, lambda topic: "a1", **options)


def in_files(folder: Path) -> list[tuple[int, int]]:
    """Partition and offset of every row that a glob sees, in the order of the files' names."""
    files = sorted(folder.rglob("*.parquet"))
    tables = [pq.read_table(file, partitioning=None) for file in files]
    return [(row["partition"], row["offset"]) for table in tables for row in table.to_pylist()]


class Running:
    """An output whose thread runs, and what it has reported."""

    def __init__(self, folder: Path, most_bytes: int = 1 << 30, using: Chain | None = None, **rotation: Any) -> None:
        self.meter = metrics.Metrics()
        limits = Rotation(**{"rows": 1 << 30, "seconds": 3600.0, **rotation})
        self.output = FileOutput(
            "lake", "lake#f", using or chain(folder), RENDERER, limits, most_bytes=most_bytes, meter=self.meter
        )
        self.reached: list[tuple[TopicPartition, int, int]] = []
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.output.run(lambda *progress: self.reached.append(progress))
        except BaseException as error:
            self.error = error

    def assign(self, partition: TopicPartition = P0, epoch: int = 1, hint: int | None = None) -> int:
        end = self.output.find(partition, hint) or 0
        self.output.assign(partition, epoch, end)
        return end

    def wait(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + WAIT_S
        while not condition():
            assert time.monotonic() < deadline and self.error is None, self.error
            time.sleep(0.005)

    def stop(self) -> None:
        self.output.stop()
        self.thread.join(WAIT_S)
        assert not self.thread.is_alive()


@pytest.fixture
def running() -> Iterator[Callable[..., Running]]:
    made: list[Running] = []

    def start(*arguments: Any, **options: Any) -> Running:
        made.append(Running(*arguments, **options))
        return made[-1]

    yield start
    for each in made:
        each.stop()


# ---- whose vectors a chain holds


def test_the_last_file_of_a_chain_says_whose_vectors_it_holds_and_looking_makes_nothing(tmp_path: Path, running):
    looking = chain(tmp_path / "lake", fingerprint="", writing=False)
    with pytest.raises(EnvironmentFault, match="there is no such folder"):
        looking.latest_fingerprint(P0)
    assert not (tmp_path / "lake").exists()
    lake = running(tmp_path / "lake", rows=3)
    lake.assign()
    lake.output.append(P0, 1, rows(0, 1, 2), 3)
    lake.wait(lambda: lake.reached == [(P0, 1, 3)])
    assert looking.latest_fingerprint(P0) == "f" * 16
    assert (looking.latest_fingerprint(P0, 1), looking.latest_fingerprint(P1)) == (None, None)


# ---- one output


@pytest.mark.parametrize("rotation", [{"rows": 3}, {"bytes": 1}, {"seconds": 0.05}])
def test_a_file_is_put_when_it_is_full(tmp_path: Path, running, rotation: dict[str, Any]):
    lake = running(tmp_path, **rotation)
    assert lake.assign() == 0
    lake.output.append(P0, 1, rows(0, 1, 2), 3)
    lake.wait(lambda: lake.reached == [(P0, 1, 3)])
    assert in_files(tmp_path) == [(0, 0), (0, 1), (0, 2)]
    assert lake.output.bytes == 0
    assert lake.meter.value(metrics.FILES_PUT, output="lake") == 1


def test_rows_wait_until_then_and_a_flush_puts_them(tmp_path: Path, running):
    lake = running(tmp_path)
    lake.assign()
    lake.output.append(P0, 1, rows(0, 2), 5)
    time.sleep(0.3)
    assert in_files(tmp_path) == [] and lake.output.bytes > 0
    assert lake.output.flush(WAIT_S)
    assert in_files(tmp_path) == [(0, 0), (0, 2)] and lake.reached == [(P0, 1, 5)]


def test_more_bytes_than_may_wait_are_put_the_largest_first(tmp_path: Path, running):
    few, many = rows(0, partition=1), rows(*range(100))
    lake = running(tmp_path, most_bytes=RENDERER.batch(many).nbytes)
    lake.assign(P0)
    lake.assign(P1)
    lake.output.append(P1, 1, few, 1)
    lake.output.append(P0, 1, many, 100)
    lake.wait(lambda: bool(lake.reached))
    assert lake.reached == [(P0, 1, 100)]
    assert {partition for partition, _ in in_files(tmp_path)} == {0}


def test_records_that_give_no_row_move_the_chain_on_all_the_same(tmp_path: Path, running):
    lake = running(tmp_path, seconds=0.05)
    lake.assign()
    lake.output.append(P0, 1, [], 40)
    lake.wait(lambda: lake.reached == [(P0, 1, 40)])
    assert in_files(tmp_path) == []
    again = running(tmp_path)
    assert again.assign() == 40


def test_a_successor_goes_on_where_the_chain_ends_without_a_hint_and_with_an_old_one(tmp_path: Path, running):
    lake = running(tmp_path, rows=1)
    lake.assign()
    for n in range(3):
        lake.output.append(P0, 1, rows(2 * n), 2 * n + 2)
        lake.wait(lambda n=n: lake.reached[-1:] == [(P0, 1, 2 * n + 2)])
    assert [running(tmp_path).assign(hint=hint) for hint in (None, 0, 2, 4, 6)] == [6] * 5
    for file in tmp_path.rglob("*.parquet"):
        file.unlink()
    assert running(tmp_path).assign(hint=6) == 6, "files that were moved elsewhere are not written again"


def test_rows_that_are_read_again_for_another_output_are_not_put_again(tmp_path: Path, running):
    lake = running(tmp_path)
    lake.assign()
    lake.output.append(P0, 1, rows(0, 1, 2), 3)
    assert lake.output.flush(WAIT_S)
    again = running(tmp_path)
    assert again.assign() == 3
    again.output.append(P0, 1, rows(0, 1), 2)
    again.output.append(P0, 1, rows(2, 3, 4), 5)
    assert again.output.flush(WAIT_S)
    assert in_files(tmp_path) == [(0, n) for n in range(5)]


def test_who_comes_second_drops_its_rows_and_follows(tmp_path: Path, running):
    zombie, owner = running(tmp_path), running(tmp_path)
    zombie.assign()
    owner.assign()
    zombie.output.append(P0, 1, rows(0, 1), 2)
    owner.output.append(P0, 1, rows(0, 1, 2), 3)
    assert owner.output.flush(WAIT_S)
    zombie.output.append(P0, 1, rows(2, 3), 4)
    assert zombie.output.flush(WAIT_S)
    assert in_files(tmp_path) == [(0, 0), (0, 1), (0, 2), (0, 3)]
    assert zombie.reached == [(P0, 1, 3), (P0, 1, 4)]
    assert zombie.meter.value(metrics.FILES_LOST, output="lake") == 1
    assert owner.output.find(P0, None) == 4


def test_a_partition_that_is_given_up_takes_its_rows_along(tmp_path: Path, running):
    lake = running(tmp_path)
    lake.assign()
    lake.output.append(P0, 1, rows(0), 1)
    lake.output.revoke([P0])
    assert lake.output.bytes == 0
    lake.assign(epoch=2)
    lake.output.append(P0, 1, rows(0), 1)
    assert lake.output.flush(WAIT_S) and in_files(tmp_path) == []
    lake.output.append(P0, 2, rows(0), 1)
    assert lake.output.flush(WAIT_S) and in_files(tmp_path) == [(0, 0)]


# ---- a store that fails


class Failing(Chain):
    """Answers as scripted: ``down`` fails before, ``unheard`` after the store has done what it was asked."""

    script: list[str]

    def _ask(self, what: Callable[[ObjectStore], Any]) -> Any:
        word = self.script.pop(0) if self.script else "ok"
        if word == "down":
            raise EnvironmentFault("the store is out of reach")
        answer = super()._ask(what)
        if word == "unheard":
            raise EnvironmentFault("the answer was lost")
        return answer


def failing(folder: Path, *script: str) -> Failing:
    made = Failing(Location.parse(folder.as_uri()), read_notes, lambda _: "a1", group="g", fingerprint="f" * 16)
    made.script = list(script)
    return made


@pytest.mark.parametrize("script", [("down", "down"), ("unheard",), ("unheard", "down", "unheard", "down")])
def test_a_put_is_tried_until_its_outcome_is_known(tmp_path: Path, running, script: tuple[str, ...]):
    unsteady = failing(tmp_path)
    lake = running(tmp_path, using=unsteady)
    lake.assign()
    unsteady.script = list(script)
    lake.output.append(P0, 1, rows(0, 1), 2)
    assert lake.output.flush(WAIT_S)
    assert in_files(tmp_path) == [(0, 0), (0, 1)]
    assert lake.meter.value(metrics.FILES_LOST, output="lake") == 0, "its own file is recognised"
    assert lake.meter.value(metrics.FILE_PUTS_FAILED, output="lake") > 0


def test_a_store_that_stays_away_is_given_up_with_the_partition_only(tmp_path: Path, running):
    unsteady = failing(tmp_path)
    lake = running(tmp_path, using=unsteady)
    lake.assign()
    unsteady.script = ["down"] * 1000
    lake.output.append(P0, 1, rows(0), 1)
    assert not lake.output.flush(0.5)
    assert lake.output.bytes > 0 and lake.error is None
    lake.output.revoke([P0])
    unsteady.script = []
    lake.assign(P1)
    lake.output.append(P1, 1, rows(0, partition=1), 1)
    assert lake.output.flush(WAIT_S)
    assert in_files(tmp_path) == [(1, 0)]


# ---- whose chain it is


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"group": "other"}, "was written by group g, and ours is other"),
        ({"fingerprint": "0" * 16}, f"holds vectors with fingerprint {'f' * 16}, ours is {'0' * 16}"),
    ],
)
def test_a_chain_of_another_pipeline_is_refused(tmp_path: Path, running, changes: dict[str, str], says: str):
    lake = running(tmp_path)
    lake.assign()
    lake.output.append(P0, 1, rows(0), 1)
    assert lake.output.flush(WAIT_S)
    with pytest.raises(OtherChain, match=says):
        chain(tmp_path, **changes).find(P0, None)
    late = running(tmp_path, using=chain(tmp_path, **changes))
    late.output._folders[P0] = "topic-docs/id-a1/partition-0"
    late.output.assign(P0, 1, 0)
    late.output.append(P0, 1, rows(0), 1)
    late.output.flush(0.2)
    late.thread.join(WAIT_S)
    assert isinstance(late.error, OtherChain)


def test_a_chain_of_other_vectors_goes_on_where_the_settings_allow_it(tmp_path: Path, running):
    lake = running(tmp_path)
    lake.assign()
    lake.output.append(P0, 1, rows(0), 1)
    assert lake.output.flush(WAIT_S)
    assert chain(tmp_path, fingerprint="0" * 16, any_fingerprint=True).find(P0, None).end == 1


def test_a_file_that_is_none_of_ours_is_named(tmp_path: Path):
    folder = tmp_path / "topic-docs/id-a1/partition-0"
    folder.mkdir(parents=True)
    (folder / f"{7:020d}.parquet").write_bytes(b"something else")
    with pytest.raises(
        OtherChain, match=r"partition-0/0{19}7\.parquet is no Parquet file of a stream-embedder: move it"
    ):
        chain(tmp_path).find(P0, None)
    (folder / f"{7:020d}.parquet").unlink()
    (folder / "readme.parquet").write_bytes(b"something else")
    assert chain(tmp_path).find(P0, None).end is None


def test_a_probe_leaves_nothing_behind(tmp_path: Path):
    chain(tmp_path / "new").probe()
    assert list((tmp_path / "new").iterdir()) == []


class Overwriting(Chain):
    """A store without conditional writes."""

    def _ask(self, what: Callable[[ObjectStore], Any]) -> Any:
        answer = super()._ask(what)
        return True if answer is False else answer


def test_a_store_without_conditional_writes_is_refused(tmp_path: Path):
    made = Overwriting(Location.parse(tmp_path.as_uri()), read_notes, lambda _: "a1", group="g", fingerprint="f")
    with pytest.raises(EnvironmentFault, match="choose a store that has conditional writes"):
        made.probe()


# ---- all of it, as a model


class Owners(RuleBasedStateMachine):
    """Readers that own one partition in turn, and do not always know that they no longer do.

    The log has the offsets 0, 1, 2, …, every third without a row. Each reader reads on from where it believes the chain to
    end, and puts files whenever it likes, by way of a store that may lose answers.
    """

    LAST = 60

    @initialize()
    def start(self) -> None:
        import tempfile

        self.folder = Path(tempfile.mkdtemp(prefix="chain-"))
        self.readers: list[FileOutput] = []
        self.chains: list[Failing] = []
        self.read: list[int] = []
        self.reached = 0

    @rule(hinted=st.booleans())
    def take_over(self, hinted: bool) -> None:
        if len(self.readers) == 4:
            return
        using = failing(self.folder)
        output = FileOutput("lake", "k", using, RENDERER, Rotation(), most_bytes=1 << 30, meter=metrics.Metrics())
        end = output.find(P0, self.reached if hinted else None) or 0
        output.assign(P0, 1, end)
        self.readers.append(output)
        self.chains.append(using)
        self.read.append(end)

    @rule(who=st.integers(0, 3), count=st.integers(1, 7))
    def read_on(self, who: int, count: int) -> None:
        if who < len(self.readers):
            start, end = self.read[who], min(self.LAST, self.read[who] + count)
            if start < end:
                self.readers[who].append(P0, 1, rows(*(n for n in range(start, end) if n % 3)), end)
                self.read[who] = end

    @rule(who=st.integers(0, 3), script=st.lists(st.sampled_from(["ok", "unheard", "down"]), max_size=4))
    def put(self, who: int, script: list[str]) -> None:
        if who >= len(self.readers):
            return
        output, self.chains[who].script = self.readers[who], script
        lane = output._lanes[P0]
        if lane.taken > lane.position:
            before, reached = lane.position, []
            output._stop = False
            output._put(lane, lane.position, lane.taken, list(lane.batches), lambda *at: reached.append(at[2]))
            assert reached and reached[0] > before
            self.reached = max(self.reached, reached[0])
            # What another has put beyond what was read is skipped when it is read.
            self.read[who] = max(self.read[who], lane.position)

    @invariant()
    def each_row_once_and_none_missing(self) -> None:
        if hasattr(self, "folder"):
            assert [offset for _, offset in in_files(self.folder)] == [n for n in range(self.reached) if n % 3]

    def teardown(self) -> None:
        import shutil

        if hasattr(self, "folder"):
            shutil.rmtree(self.folder)


Owners.TestCase.settings = settings(
    max_examples=25, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
TestOwners = Owners.TestCase
