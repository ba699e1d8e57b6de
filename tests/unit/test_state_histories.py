"""Histories that once left an output without what the source says: each of a few moments, on the model's broker."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.checkpoint_world import LAKE, OUT, PARTITIONS, STATE, document_of
from tests.fakes import TOPIC, record
from tests.unit.test_checkpoint_model import CheckpointMachine, StatefulMachine
from workers.errors import EnvironmentFault, StreamEmbedderError
from workers.placing import Placing
from workers.records import Position, TopicPartition
from workers.state import Digests, Entry, Known
from workers.state.entry import read_entry, state_key, write_entry

P0 = PARTITIONS[0]
KEY = state_key(TOPIC, b"k")


class History(StatefulMachine):
    """One partition, one key, one reader."""

    def __init__(self, *texts: str) -> None:
        super().__init__()
        self.begin(0, deletes=False)
        for partition in PARTITIONS:
            self.logs[partition].clear()
        self.append(*enumerate(texts))

    def append(self, *records: tuple[int, str]) -> None:
        for offset, text in records:
            held = record(offset, f"text:{text}".encode(), key=b"k")
            self.logs[P0].append(replace(held, timestamp_ms=offset))
            self.kinds[P0, offset] = "text"

    def reads(self, count: int = 9) -> None:
        """Read so many records, and commit them to the topics."""
        self.works(0, count, None)
        self.commits(0)

    def writes_all(self, count: int = 9) -> None:
        """The files too."""
        for _ in range(3):
            self.reads(count)
            self.puts(0, P0)
            self.commits(0)

    def skips(self, offset: int) -> None:
        """The source no longer has what comes next."""
        reader = self.readers[0]
        reader.intake.skipped(P0, offset)
        reader.next[P0] = offset

    def offsets(self, output: str) -> list[int]:
        return [offset for offset, _ in CheckpointMachine.seen(self, output)[P0]]

    def standing(self) -> bytes:
        reader = self.readers[0]
        assert reader.known is not None
        entry = reader.known.entry(P0, reader.intake.ledger.epochs[P0], KEY)
        assert entry is not None
        return entry.digest

    def digest(self, offset: int, digests: Digests | None = None) -> bytes:
        (one,) = [each for each in self.logs[P0] if each.origin.offset == offset]
        return (digests or Digests(["f"])).of(one, document_of("text", (one.value or b"").decode().split(":")[1]))


@pytest.fixture
def history(request: pytest.FixtureRequest) -> Iterator[History]:
    machine = History(*request.param)
    yield machine
    machine.patch.stop()


def of(*texts: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("history", [texts], indirect=True, ids=["".join(texts)])


@of("A", "B")
def test_the_source_loses_a_record_that_files_do_not_have_yet(history: History):
    history.reads(1)
    history.puts(0, P0)
    history.commits(0)
    history.reads(1)
    assert history.broker.positions[P0].offset == 1
    history.die(0)
    history.logs[P0].clear()  # compacted away, by what comes now
    history.append((2, "A"))
    history.writes_all()
    assert history.offsets(OUT) == [0, 1, 2], "the topic would keep B for good"


@of("A", "B")
def test_a_skip_inside_a_commit_takes_nothing_back(history: History):
    history.reads(1)
    history.works(0, 1, None)
    history.readers[0].at = {"arrived": lambda: history.skips(5)}
    history.readers[0].checkpoint.commit()
    assert history.standing() == history.digest(1), "the topics have B"


@of("A", "B")
def test_a_skip_after_a_commit_in_doubt_takes_nothing_back(history: History):
    history.writes_all(1)
    history.logs[P0].clear()
    history.append((3, "C"))
    history.works(0, 1, None)
    history.commits(0, "unheard")
    history.skips(5)
    history.commits(0)
    assert history.standing() == history.digest(3)
    history.puts(0, P0)
    assert history.offsets(LAKE)[-1] == 3, "its row is not lost"


@of("A", "B")
def test_a_skip_loses_no_rows_that_wait(history: History):
    history.writes_all(1)
    history.logs[P0].clear()
    history.append((3, "C"))
    history.reads(1)
    history.skips(5)
    history.append((5, "C"))
    history.writes_all()
    assert history.offsets(LAKE) == [0, 1, 3, 5]
    assert history.offsets(OUT) == [0, 1, 3, 5], "after a skip nothing older is believed"


@of("A", "B", "C")
def test_a_full_disk_ends_the_reader_and_not_its_rows(history: History):
    history.reads(1)
    history.works(0, 1, None)
    history.commits(0, "unheard")
    known = history.readers[0].known
    assert known is not None

    def full(*_: object) -> None:
        raise EnvironmentFault("no space left")

    known.released = full  # type: ignore[method-assign]
    with pytest.raises(StreamEmbedderError, match="no space left") as found:
        history.readers[0].checkpoint.recover()
    assert not isinstance(found.value, EnvironmentFault), "which would be tried again"
    history.die(0)
    history.writes_all()
    assert history.offsets(LAKE) == [0, 1, 2]


@of("A", "B")
def test_other_settings_while_files_lag_leave_no_record_that_only_seems_written(history: History):
    history.reads(1)
    history.puts(0, P0)
    history.commits(0)
    history.reads(1)
    history.die(0)
    other = Digests(["another model"])
    known = history.readers[0].known
    assert known is not None
    known._digests = other
    history.readers[0].intake.ledger._marks = (known.mark,)
    history.writes_all()
    history.append((2, "B"))
    history.writes_all()
    assert history.offsets(OUT) == [0, 1, 2], "what the topic has of B is of the model before"


@of("A", "B", "A")
def test_a_state_that_was_not_kept_for_a_while_is_not_believed(history: History):
    whole = list(history.logs[P0])
    history.logs[P0][:] = whole[:1]
    history.writes_all()
    history.stateful = False
    history.die(0)
    history.logs[P0][:] = whole[:2]
    history.writes_all()
    history.stateful = True
    history.die(0)
    history.logs[P0][:] = whole
    history.writes_all()
    assert history.offsets(OUT) == [0, 1, 2]
    told = [read_entry(m.value or b"") for m in history.broker.topics[STATE] if m.key == KEY]
    assert told[-1].digest == history.digest(2)


# ---- placing


def placed(placing: Placing, partition: TopicPartition, epoch: int, committed: Position) -> Position | None:
    """What comes of asking again and again, for a while."""
    end = time.monotonic() + 20
    while time.monotonic() < end:
        if (found := placing.place(partition, epoch, committed)) is not None:
            return found
        time.sleep(0.005)
    return None


class Chain:
    """An output of files whose chain ends at 100."""

    name = key = "lake"

    def find(self, partition: TopicPartition, hint: int | None) -> int:
        return 100


def test_partitions_without_a_state_partition_hold_up_no_others():
    def log(partition: TopicPartition) -> Iterator[list[tuple[bytes, bytes | None]]]:
        if partition.partition >= 4:
            raise EnvironmentFault("there is no such partition")
        yield from ()

    placing = Placing(["t"], [], Known("s", log, Digests([]), skip=True))
    try:
        for number in range(4, 14):
            assert placing.place(TopicPartition(TOPIC, number), number, Position(0)) is None
        assert placed(placing, P0, 99, Position(0)) is not None
    finally:
        placing.close()


def test_a_reading_ends_when_its_partition_goes():
    pieces, go = [0], threading.Event()

    def log(_: TopicPartition) -> Iterator[list[tuple[bytes, bytes | None]]]:
        for number in range(50):
            pieces[0] += 1
            go.wait(5)
            yield [(b"%020d" % number, write_entry(Entry(b"d" * 16, 1)))]

    known = Known("s", log, Digests([]), skip=True)
    placing = Placing(["t"], [], known)
    try:
        assert placing.place(P0, 1, Position(0)) is None
        answer = placing._asked[P0].answer
        assert answer is not None
        placing.revoke([P0])
        known.revoke([P0])
        go.set()
        assert answer.result(5) is None and pieces[0] < 3 and not known._loaded
    finally:
        placing.close()


def test_after_the_end_nothing_is_placed():
    known = Known("s", lambda _: iter(()), Digests([]), skip=True)
    placing = Placing(["t"], [], known)
    assert placing.place(P0, 1, Position(0)) is None
    answer = placing._asked[P0].answer
    assert answer is not None and answer.result(5) is not None
    placing.close()
    known.close()
    assert placing.place(P0, 1, Position(0)) is None
    known.assign(P0, 1, 0)


@pytest.mark.parametrize("stateful", [False, True])
def test_what_files_lack_is_read_however_far_the_group_was_put(stateful: bool):
    known = Known("s", lambda _: iter(()), Digests([]), skip=True) if stateful else None
    placing = Placing(["kafka:t"], [Chain()], known)  # type: ignore[list-item]
    try:
        found = placed(placing, P0, 1, Position(200))
        assert found is not None and found.offset == 100
        if known is not None:
            assert found.outputs[known.mark] == 200, "what files alone read says nothing of the topics"
    finally:
        placing.close()


def test_a_mark_stays_as_it_is():
    known = Known("s", lambda _: iter(()), Digests([]), skip=True)
    placing = Placing(["kafka:t"], [], known)
    try:
        found = placed(placing, P0, 1, Position(200, {"kafka:t": 200, known.mark: 7}))
        assert found == Position(200, {"kafka:t": 200, known.mark: 7})
    finally:
        placing.close()
