"""Commits as a model: two readers with real checkpoints, ledgers and file outputs, over a broker and a store in plain memory.

Partitions move, members are thrown out and hear of it later, processes die, commits fail in every place, and each of these
may happen inside a commit of the other. What a ``read_committed`` reader and a glob over the files see is compared with the
source after every step.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.fakes import TOPIC, FakeRenderer, record
from workers import checkpoint as checkpoint_room
from workers import metrics
from workers.checkpoint import Checkpoint
from workers.encoder.quantize import Projection
from workers.errors import CommitError, PoisonError, RetryableError, StreamEmbedderError
from workers.intake import Intake
from workers.object_store import Location
from workers.outlets import DeadLetterOutlet, FileOutlet, Outlet
from workers.records import (
    DeadLetter,
    Document,
    Embedding,
    Message,
    Origin,
    Outcome,
    Position,
    Record,
    Tombstone,
    TopicPartition,
)
from workers.settings import LimitSettings, Rotation
from workers.sinks.chain import Chain
from workers.sinks.files import FileOutput

PARTITIONS = [TopicPartition(TOPIC, n) for n in range(3)]
# What becomes of a record. ``large``: for one topic of two. ``rowless``: the files' format cannot write it.
KINDS = ("text", "text", "gone", "refused", "keyless", "large", "rowless")
OUT, WIDE, DEAD, LAKE = "vectors", "wide", "documents.dead", "lake"
TOPICS = (OUT, WIDE, DEAD)
WIDE_MOST, DEAD_MOST = 400, 100
UNIT = np.array([1.0, 0.0], np.float32)
# What happens to a transaction. ``late``: all of it is on its way when the client gives up, and arrives or not when the
# client goes; ``pending``: the offsets have arrived, and the client's successor decides.
FATES = ("ok", "ok", "ok", "ok", "ok", "refused", "unheard", "late", "lost", "pending", "aborted")

# Where something else may happen: in a commit, and in what comes after one that failed.
IN_COMMIT = ("write", "written", "membership", "commit", "arrived", "committed")
IN_RECOVERY = ("abandon", "opened", "asked", "answered")
HAPPENINGS = (
    *("works", "puts", "other works", "moves", "moves and comes back"),
    *("is kicked", "is kicked and hears", "dies"),
)
RECORDS = 16

type_seen = tuple[int, str]
type_happening = tuple[str, TopicPartition, list[int] | None]


def outcome_of(kind: str, origin: Origin) -> Outcome:
    match kind:
        case "gone":
            return Tombstone()
        case "refused" | "keyless":
            return DeadLetter("decode", "invalid", "no")
    name = f"{kind}-{origin.partition}-{origin.offset}".ljust(WIDE_MOST if kind == "large" else 1, "x")
    return Embedding(Document(name, "t"), UNIT, 1, False)


def expected(kind: str, output: str, *, deletes: bool) -> str | None:
    """What an output must hold of a record."""
    match kind:
        case "text":
            return None if output == DEAD else "vector"
        case "gone":
            return None if output == DEAD else "deletion"
    if output == DEAD:
        return "letter"
    return "deletion" if deletes and kind != "keyless" else None


class Dies(BaseException):
    """The process ends here."""


class Rows:
    """A format of files: rows are lists of offset and what it is."""

    class Batch(list[Any]):
        @property
        def num_rows(self) -> int:
            return len(self)

        nbytes = num_rows

    def row(self, held: Record, embedding: Embedding, _vector: object, _scale: object) -> type_seen:
        if embedding.document.id.startswith("rowless"):
            raise PoisonError("output", "unrenderable", "no")
        return held.origin.offset, "vector"

    def deletion(self, held: Record) -> type_seen:
        return held.origin.offset, "deletion"

    def batch(self, rows: Sequence[Any]) -> Batch:
        return self.Batch(rows)

    def after(self, batch: Batch, offset: int) -> Batch:
        return self.Batch(row for row in batch if row[0] >= offset)

    def file(self, batches: Sequence[Batch], notes: Mapping[str, str]) -> bytes:
        return json.dumps({"rows": [row for batch in batches for row in batch], "notes": notes}).encode()


class Store(dict[str, bytes]):
    """An object store."""

    def put_if_absent(self, path: str, content: bytes) -> bool:
        return self.setdefault(path, content) is content

    def names(self, folder: str, start: str) -> list[str]:
        found = sorted(path.removeprefix(f"{folder}/") for path in self if path.startswith(f"{folder}/"))
        return [name for name in found if name >= start]

    def tail(self, path: str, _most: int) -> bytes:
        return self[path]


class MemoryChain(Chain):
    """A real chain over it."""

    def __init__(self, store: Store) -> None:
        location = Location.parse("file:///nowhere")
        super().__init__(location, lambda b: json.loads(b)["notes"], lambda _: "id", group="g", fingerprint="f")
        self._store = store
        self._any = True

    def _ask(self, what: Callable[[Any], Any]) -> Any:
        return what(self._store)


class Broker:
    """Topics, and a group with one generation at a time. ``owner`` is who the group says reads a partition."""

    def __init__(self) -> None:
        self.generation = 0
        self.members: set[Reader] = set()
        self.owner: dict[TopicPartition, Reader] = {}
        self.positions: dict[TopicPartition, Position] = {}
        self.pending: dict[str, tuple[list[Message], Mapping[TopicPartition, Position], bool]] = {}
        self.topics: dict[str, list[Message]] = defaultdict(list)

    def rebalance(self) -> None:
        self.generation += 1
        for member in self.members:
            member.generation = self.generation

    def accept(self, reader: Reader, positions: Mapping[TopicPartition, Position], membership: object) -> None:
        """Take the offsets of a transaction; what is accepted may still come to nothing."""
        if membership != self.generation:
            raise CommitError("fenced: the group has gone on")
        for partition in positions:
            assert self.owner.get(partition) is reader, f"{partition} is somebody else's, and its commit is not fenced"

    def apply(self, messages: Iterable[Message], positions: Mapping[TopicPartition, Position]) -> None:
        """Messages and offsets become visible together."""
        for partition, position in positions.items():
            before = self.positions.get(partition, Position(0))
            assert position.offset >= before.offset, "the group goes back"
            assert all(position.outputs[name] >= at for name, at in before.outputs.items()), "an output goes back"
        self.positions |= positions
        for message in messages:
            self.topics[message.topic].append(message)

    def committed(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, Position]:
        """As a ``read_committed`` member sees it."""
        wanted = set(partitions)
        if any(wanted & set(positions) for _, positions, _ in self.pending.values()):
            raise RetryableError("a transaction is being decided")
        return {partition: self.positions[partition] for partition in wanted if partition in self.positions}


class Reader:
    """One process: the parts as a reader has them, but that the test is its threads. It is its own source and sink."""

    def __init__(self, slot: str, broker: Broker, store: Store, *, deletes: bool) -> None:
        self.slot, self.broker = slot, broker
        self.generation = 0
        self.steady = self.writes = self.opens = True
        self.fate = "ok"
        self.at: dict[str, Callable[[], None]] = {}
        self.failed = self.opened = False
        self.written: list[Message] = []
        self.late: tuple[list[Message], Mapping[TopicPartition, Position], object] | None = None
        self.narrow = False
        self.unplaced: dict[TopicPartition, int] = {}
        self.looked_up: dict[TopicPartition, Position] = {}
        self.next: dict[TopicPartition, int] = {}
        self.flight: list[Origin] = []
        self.epoch = 0
        meter = metrics.Metrics()
        rows, projection = Rows(), Projection(2)
        self.lake = FileOutput(LAKE, LAKE, MemoryChain(store), rows, Rotation(), most_bytes=1 << 30, meter=meter)
        self.intake = Intake([f"kafka:{name}" for name in TOPICS], [self.lake], LimitSettings(), meter)
        self.checkpoint = Checkpoint(
            self.intake.ledger,
            self.intake.lock,
            self,  # type: ignore[arg-type]
            self,  # type: ignore[arg-type]
            [Outlet(f"kafka:{name}", name, projection, FakeRenderer(name)) for name in (OUT, WIDE)],
            DeadLetterOutlet(DEAD, "f", deletes),
            meter,
            self.moment,
            [FileOutlet(projection, rows, self.lake)],
        )

    def moment(self, name: str) -> None:
        if (event := self.at.pop(name, None)) is not None:
            event()

    # ---- the sink

    def open(self) -> None:
        assert not self.opened and not self.failed, "opened over a producer that lives"
        if not self.opens:
            self.failed = True
            raise RetryableError("no producer now")
        if self.slot in self.broker.pending:
            messages, positions, comes = self.broker.pending.pop(self.slot)
            if comes:
                self.broker.apply(messages, positions)
        self.opened = True
        self.moment("opened")

    def refuses(self, message: Message) -> str | None:
        most = {WIDE: WIDE_MOST, DEAD: DEAD_MOST if self.narrow else 1 << 20}
        return "too_large" if message.size > most.get(message.topic, 1 << 20) else None

    def write(self, messages: Sequence[Message]) -> None:
        assert self.opened and not self.failed, "write after a failure"
        self.moment("write")
        if not self.writes:
            self.failed = True
            raise RetryableError("a record was not acknowledged")
        self.written = list(messages)

    def commit(self, positions: Mapping[TopicPartition, Position], membership: object) -> None:
        assert self.opened and not self.failed, "commit after a failure"
        self.moment("commit")
        messages, self.written = self.written, []
        self.failed = True
        match self.fate:
            case "ok" | "unheard":
                self.broker.accept(self, positions, membership)
                self.broker.apply(messages, positions)
            case "late":
                self.late = messages, positions, membership
            case "pending" | "aborted":
                self.broker.accept(self, positions, membership)
                self.broker.pending[self.slot] = messages, positions, self.fate == "pending"
        self.moment("arrived")
        if self.fate != "ok":
            raise CommitError(f"in doubt: {self.fate}")
        self.failed = False

    def abandon(self) -> None:
        self.moment("abandon")
        self.opened = self.failed = False
        self.written = []
        late, self.late = self.late, None
        if late is not None and late[2] == self.broker.generation:
            self.broker.accept(self, late[1], late[2])
            self.broker.apply(late[0], late[1])

    # ---- the source

    def membership(self, _timeout_s: float) -> object:
        if not self.steady:
            raise CommitError("no stable member at the moment")
        found = self.generation
        self.moment("membership")
        return found

    def committed(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, Position]:
        self.moment("asked")
        found = self.broker.committed(partitions)
        self.moment("answered")
        return found

    # ---- what the threads do

    def given(self, partition: TopicPartition) -> None:
        self.epoch += 1
        self.unplaced[partition] = self.epoch

    def gone(self, partitions: Sequence[TopicPartition], *, lost: bool) -> None:
        for partition in partitions:
            self.unplaced.pop(partition, None)
            self.looked_up.pop(partition, None)
        self.intake.revoked(partitions, lost=lost)

    def place(self, partition: TopicPartition, *, whole: bool) -> None:
        """Find out where to start, and start; or leave the second half for later."""
        if (epoch := self.unplaced.get(partition)) is None:
            return
        if partition not in self.looked_up:
            try:
                committed = self.broker.committed([partition]).get(partition, Position(0))
            except RetryableError:
                return
            self.looked_up[partition] = self.intake._placing._look_up(partition, epoch, committed)
        if whole:
            del self.unplaced[partition]
            position = self.looked_up.pop(partition)
            self.intake.assigned(partition, epoch, position)
            self.next[partition] = position.offset

    def read(self, log: Sequence[Record], partition: TopicPartition, count: int) -> None:
        epoch = self.intake.ledger.epochs.get(partition)
        if epoch is None:
            return
        found = [one for one in log if one.origin.offset >= self.next[partition]][:count]
        if found:
            self.next[partition] = found[-1].origin.offset + 1
            again = [replace(one, origin=replace(one.origin, epoch=epoch)) for one in found]
            self.intake.received(again)
            self.intake.inbox.clear()
            self.flight += [one.origin for one in again]

    def settle(self, picks: Iterable[int], kinds: Mapping[tuple[TopicPartition, int], str]) -> None:
        """Outcomes come in any order, and also those of assignments that have ended."""
        for pick in picks:
            if self.flight:
                origin = self.flight.pop(pick % len(self.flight))
                self.intake.ledger.settle(origin, outcome_of(kinds[origin.topic_partition, origin.offset], origin))

    def put(self, partition: TopicPartition, between: Callable[[], None] = lambda: None) -> None:
        """Put a partition's file; ``between`` that and the reader's hearing of it."""

        def progress(partition: TopicPartition, epoch: int, offset: int) -> None:
            between()
            self.intake.ledger.advance(partition, epoch, LAKE, offset)

        lane = self.lake._lanes.get(partition)
        if lane is not None and lane.waits:
            self.lake._put(lane, lane.position, lane.taken, list(lane.batches), progress)


class Machine(RuleBasedStateMachine):
    """Two readers, and everything that can happen to them."""

    whose = st.integers(0, 1)
    which = st.sampled_from(PARTITIONS)
    # Which of what is in flight is settled next; None: all, in order.
    picks = st.none() | st.lists(st.integers(0, 9), max_size=8)
    counts = st.integers(0, 5)

    def __init__(self) -> None:
        super().__init__()
        # Commits that hold less than there is.
        self.patch = mock.patch.object(checkpoint_room, "MOST_RECORDS", 6)
        self.patch.start()
        self.broker, self.store = Broker(), Store()
        self.logs: dict[TopicPartition, list[Record]] = {}
        self.kinds: dict[tuple[TopicPartition, int], str] = {}
        self.wholes: dict[tuple[str, TopicPartition], list[type_seen]] = {}
        self.readers: list[Reader] = []
        self.deletes = False

    @initialize(shift=st.integers(0, len(KINDS) - 1), deletes=st.booleans())
    def begin(self, shift: int, deletes: bool) -> None:
        self.deletes = deletes
        for partition in PARTITIONS:
            log = self.logs[partition] = []
            for n in range(RECORDS):
                kind, offset = KINDS[(n + shift * (1 + partition.partition)) % len(KINDS)], n + n // 4
                held = record(offset, partition=partition.partition, key=None if kind == "keyless" else b"k")
                log.append(replace(held, timestamp_ms=partition.partition * 1000 + offset))
                self.kinds[partition, offset] = kind
            for output in (*TOPICS, LAKE):
                wanted = [
                    (at, expected(self.kinds[on, at], output, deletes=deletes))
                    for on, at in self.kinds
                    if on == partition
                ]
                self.wholes[output, partition] = [(at, what) for at, what in wanted if what is not None]
        for slot in "ab":
            reader = Reader(slot, self.broker, self.store, deletes=deletes)
            reader.checkpoint.open()
            self.broker.members.add(reader)
            self.readers.append(reader)
        for partition in PARTITIONS:
            reader = self.broker.owner[partition] = self.readers[partition.partition % 2]
            reader.given(partition)
        self.broker.rebalance()

    # ---- the group

    def move(self, partition: TopicPartition, to: int) -> None:
        """The group gives a partition to somebody: who has it hears of that first."""
        owner, reader = self.broker.owner[partition], self.readers[to]
        if reader is not owner and reader in self.broker.members:
            owner.gone([partition], lost=False)
            self.broker.owner[partition] = reader
            reader.given(partition)
            self.broker.rebalance()

    def kick(self, who: int) -> None:
        """The group goes on without a member, which does not know it."""
        reader, other = self.readers[who], self.readers[1 - who]
        if len(self.broker.members) == 2:
            self.broker.members.discard(reader)
            for partition, owner in self.broker.owner.items():
                if owner is reader:
                    self.broker.owner[partition] = other
                    other.given(partition)
            self.broker.rebalance()

    def hear(self, who: int) -> None:
        """It hears of it, and joins anew."""
        reader = self.readers[who]
        if reader not in self.broker.members:
            reader.gone(PARTITIONS, lost=True)
            self.broker.members.add(reader)
            self.broker.rebalance()

    def die(self, who: int) -> None:
        """A process ends, and another takes its slot; what it had sent may arrive."""
        dead = self.readers[who]
        dead.at = {}
        dead.abandon()
        alive = self.readers[who] = Reader(dead.slot, self.broker, self.store, deletes=self.deletes)
        for partition, owner in self.broker.owner.items():
            if owner is dead:
                self.broker.owner[partition] = alive
                alive.given(partition)
        self.broker.members = (self.broker.members - {dead}) | {alive}
        self.broker.rebalance()
        alive.checkpoint.open()

    # ---- a reader

    def works(self, who: int, count: int, picks: list[int] | None, *, placed: bool = True) -> None:
        """It places what it was given, reads, and settles."""
        reader = self.readers[who]
        for partition in PARTITIONS:
            reader.place(partition, whole=placed)
            reader.read(self.logs[partition], partition, count)
        reader.settle([0] * len(reader.flight) if picks is None else picks, self.kinds)

    def puts(self, who: int, partition: TopicPartition, happening: type_happening | None = None) -> None:
        with self.dying(who):
            self.readers[who].put(partition, lambda: self.happen(who, happening))

    def commits(
        self, who: int, fate: str = "ok", fails: str = "", at: Mapping[str, type_happening] | None = None
    ) -> None:
        """A commit, or what comes after one that failed; both with things that happen at moments of it."""
        reader = self.readers[who]
        reader.fate, reader.narrow = fate, fails == "narrow"
        reader.opens, reader.writes, reader.steady = fails != "open", fails != "write", fails != "membership"
        reader.at = {moment: partial(self.happen, who, happening) for moment, happening in (at or {}).items()}
        with self.dying(who):
            try:
                if reader.failed or not reader.opened:
                    reader.checkpoint.recover()
                else:
                    reader.checkpoint.commit()
            except RetryableError:
                reader.failed = True
            except StreamEmbedderError:
                assert reader not in self.broker.members, "a member is told that somebody else commits"
                raise Dies from None
        reader.at = {}

    @contextlib.contextmanager
    def dying(self, who: int) -> Iterator[None]:
        try:
            yield
        except Dies:
            self.die(who)

    def turn(self, who: int) -> None:
        """All that a reader does when nothing is in its way."""
        self.commits(who)
        self.works(who, RECORDS, None)
        for _ in range(3):
            self.commits(who)
        for partition in PARTITIONS:
            self.puts(who, partition)

    def happen(self, who: int, happening: type_happening | None) -> None:
        """Something, in the middle of what reader ``who`` does."""
        if happening is None:
            return
        what, partition, picks = happening
        if self.broker.owner[partition] is not self.readers[who]:
            partition = next((one for one in PARTITIONS if self.broker.owner[one] is self.readers[who]), partition)
        match what:
            case "dies":
                raise Dies
            case "other works":
                self.turn(1 - who)
            case "moves":
                self.move(partition, 1 - who)
                self.turn(1 - who)
            case "moves and comes back":
                self.move(partition, 1 - who)
                self.turn(1 - who)
                self.move(partition, who)
                self.works(who, 3, picks)
            case "is kicked":
                self.kick(who)
                self.turn(1 - who)
            case "is kicked and hears":
                self.kick(who)
                self.turn(1 - who)
                self.hear(who)
            case "works":
                self.works(who, 3, picks)
            case "puts":
                self.puts(who, partition)

    happenings = st.tuples(st.sampled_from(HAPPENINGS), which, picks)

    @rule(who=whose, count=counts, picks=picks, placed=st.booleans())
    def work(self, who: int, count: int, picks: list[int] | None, placed: bool) -> None:
        self.works(who, count, picks, placed=placed)

    @rule(
        who=whose,
        count=counts,
        picks=picks,
        fate=st.sampled_from(FATES),
        fails=st.sampled_from(("", "", "", "", "", "write", "membership", "open", "narrow")),
        moment=st.sampled_from(IN_COMMIT),
        happening=happenings,
        later=st.sampled_from(IN_RECOVERY),
        then=st.none() | happenings,
    )
    def commit(
        self,
        who: int,
        count: int,
        picks: list[int] | None,
        fate: str,
        fails: str,
        moment: str,
        happening: type_happening,
        later: str,
        then: type_happening | None,
    ) -> None:
        self.works(who, count, picks)
        self.commits(who, fate, fails, {moment: happening})
        if self.readers[who].failed:
            self.commits(who, at={later: then} if then else {})

    @rule(who=whose, partition=which, happening=st.none() | happenings)
    def put(self, who: int, partition: TopicPartition, happening: type_happening | None) -> None:
        self.puts(who, partition, happening)

    @rule(who=whose, happening=happenings)
    def something_happens(self, who: int, happening: type_happening) -> None:
        with self.dying(who):
            self.happen(who, happening)

    @rule(who=whose)
    def hears(self, who: int) -> None:
        self.hear(who)

    # ---- what must hold

    def seen(self, output: str) -> dict[TopicPartition, list[type_seen]]:
        """Offsets and what they are, by source partition, as a reader of the output sees them."""
        found: dict[TopicPartition, list[type_seen]] = {partition: [] for partition in PARTITIONS}
        if output == LAKE:
            for path, content in sorted(self.store.items()):
                partition = TopicPartition(TOPIC, int(path.split("/")[2].removeprefix("partition-")))
                found[partition] += [(offset, what) for offset, what in json.loads(content)["rows"]]
            return found
        for message in self.broker.topics[output]:
            partition, offset = divmod(message.timestamp_ms, 1000)
            what = "letter" if output == DEAD else "deletion" if message.value is None else "vector"
            found[TopicPartition(TOPIC, partition)].append((offset, what))
        return found

    @invariant()
    def each_outcome_once_in_order_and_none_beyond_what_is_committed(self) -> None:
        for output in (*TOPICS, LAKE):
            for partition, seen in self.seen(output).items():
                whole = self.wholes[output, partition]
                assert seen == whole[: len(seen)], f"{output} of {partition}"
                position = self.broker.positions.get(partition, Position(0))
                due = position.outputs.get(LAKE if output == LAKE else f"kafka:{output}", 0)
                assert position.offset <= due or not position.outputs
                below = [one for one in whole if one[0] < due]
                if output == LAKE:
                    assert seen[: len(below)] == below, "the group is ahead of the files"
                else:
                    assert seen == below, f"{output} of {partition} is not where the group says"

    def teardown(self) -> None:
        """When the faults are over, everything arrives."""
        try:
            if self.readers:
                for who in range(2):
                    self.hear(who)
                for _ in range(8):
                    for who in range(2):
                        self.turn(who)
                self.each_outcome_once_in_order_and_none_beyond_what_is_committed()
                for output in (*TOPICS, LAKE):
                    for partition, seen in self.seen(output).items():
                        assert seen == self.wholes[output, partition], f"{output} of {partition}: something is lost"
                for partition, position in self.broker.positions.items():
                    assert position.offset > self.logs[partition][-1].origin.offset
        finally:
            self.patch.stop()


@pytest.mark.parametrize("moment", [*IN_COMMIT, *IN_RECOVERY])
def test_whatever_happens_at_a_moment_of_a_commit_each_outcome_is_there_once(moment: str):
    """All short histories: what happens × what becomes of the transaction, in the second commit of a reader."""
    for happening, fate, settled in itertools.product(HAPPENINGS, sorted(set(FATES)), (None, [0, 0, 1])):
        machine = Machine()
        try:
            machine.begin(1, deletes=True)
            machine.works(0, 2, None)
            machine.commits(0)
            machine.works(0, 3, settled)
            machine.commits(0, fate, at={moment: (happening, PARTITIONS[0], None)})
            machine.each_outcome_once_in_order_and_none_beyond_what_is_committed()
            if machine.readers[0].failed:
                machine.commits(0, at={moment: (happening, PARTITIONS[0], None)})
            machine.puts(0, PARTITIONS[0])
            machine.each_outcome_once_in_order_and_none_beyond_what_is_committed()
        except AssertionError as error:
            raise AssertionError(f"{happening} at {moment}, {fate}, {settled}") from error
        finally:
            machine.teardown()


def test_a_file_reaches_over_nothing_that_its_reader_has_not_written():
    """A member that was thrown out finds another's commit in place of its own, which held fewer records."""
    machine = Machine()
    try:
        machine.begin(0, deletes=False)
        reader, partition = machine.readers[0], PARTITIONS[0]
        reader.place(partition, whole=True)
        reader.read(machine.logs[partition], partition, 2)
        reader.settle([0], machine.kinds)

        def thrown_out(_who: int, _happening: object) -> None:
            reader.settle([0], machine.kinds)
            machine.kick(0)
            machine.works(1, RECORDS, None)
            for _ in range(9):
                machine.commits(1)

        machine.happen = thrown_out  # type: ignore[method-assign]
        machine.commits(0, at={"written": ("is kicked", partition, None)})
        assert reader.failed
        machine.commits(0)
        machine.puts(0, partition)
        machine.puts(1, partition)
    finally:
        machine.teardown()


Machine.TestCase.settings = settings(max_examples=100, stateful_step_count=25, deadline=None)
TestCheckpoint = Machine.TestCase
