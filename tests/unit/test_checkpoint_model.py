"""Commits as a model: two readers with real checkpoints, ledgers and file outputs, over a broker and a store in plain memory.

Partitions move, members are thrown out and hear of it later, processes die, commits fail in every place, and each of these
may happen inside a commit of the other. What a ``read_committed`` reader and a glob over the files see is compared with the
source after every step.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from unittest import mock

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.checkpoint_world import (
    DEAD,
    FATES,
    HAPPENINGS,
    IN_COMMIT,
    IN_RECOVERY,
    KINDS,
    LAKE,
    PARTITIONS,
    RECORDS,
    STATE,
    TOPICS,
    Broker,
    Dies,
    Reader,
    Store,
    document_of,
    expected,
    type_happening,
    type_seen,
)
from tests.fakes import TOPIC, record
from workers import checkpoint as checkpoint_room
from workers.errors import RetryableError
from workers.records import (
    Position,
    Record,
    TopicPartition,
)
from workers.state.entry import NOTHING, Digests, read_entry, state_key


class CheckpointMachine(RuleBasedStateMachine):
    """Two readers, and everything that can happen to them."""

    stateful = False
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
                held = record(offset, self.value(kind, n), partition=partition.partition, key=self.key(kind, n))
                log.append(replace(held, timestamp_ms=partition.partition * 1000 + offset))
                self.kinds[partition, offset] = kind
            changing = self.changing(partition)
            for output in (*TOPICS, LAKE):
                wanted = [(at, expected(self.kinds[partition, at], output, deletes=deletes)) for at in changing]
                self.wholes[output, partition] = [(at, what) for at, what in wanted if what is not None]
        for slot in "ab":
            reader = self.reader(slot)
            reader.checkpoint.open()
            self.broker.members.add(reader)
            self.readers.append(reader)
        for partition in PARTITIONS:
            reader = self.broker.owner[partition] = self.readers[partition.partition % 2]
            reader.given(partition)
        self.broker.rebalance()

    def reader(self, slot: str) -> Reader:
        return Reader(slot, self.broker, self.store, deletes=self.deletes, stateful=self.stateful)

    def value(self, kind: str, n: int) -> bytes:
        """Texts come again and again."""
        return f"{kind}:{n % 3 // 2}".encode()

    def key(self, kind: str, n: int) -> bytes | None:
        return None if kind == "keyless" else b"k%d" % (n % 2)

    def changing(self, partition: TopicPartition) -> list[int]:
        """Offsets of the records that leave anything in any output."""
        return [one.origin.offset for one in self.logs[partition]]

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
        alive = self.readers[who] = self.reader(dead.slot)
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
        machine = CheckpointMachine()
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
    machine = CheckpointMachine()
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


class StatefulMachine(CheckpointMachine):
    """The same with a state: what changes nothing leaves nothing, whoever sees it, and however often."""

    stateful = True

    def changing(self, partition: TopicPartition) -> list[int]:
        return self.folded(partition, RECORDS * 2)[0]

    def folded(self, partition: TopicPartition, end: int) -> tuple[list[int], dict[bytes, bytes], dict[bytes, int]]:
        """Of a partition's records below ``end``: the offsets of those that change something, and the digests that they leave.

        And the last offset at which each key has changed.
        """
        found, state, last = [], dict[bytes, bytes](), dict[bytes, int]()
        digests = Digests(["f"])
        for one in self.logs[partition]:
            if one.origin.offset >= end:
                break
            kind, text = (one.value or b"").decode().split(":")
            digest = digests.of(one, document_of(kind, text))
            if kind == "text" and one.key is not None:
                if state.get(one.key) == digest:
                    continue
                state[one.key] = digest
                last[one.key] = one.origin.offset
            elif one.key is not None and (kind == "gone" or self.deletes) and state.pop(one.key, None) is not None:
                last[one.key] = one.origin.offset
            found.append(one.origin.offset)
        return found, state, last

    @invariant()
    def the_state_topic_says_what_the_records_below_the_committed_offset_leave(self) -> None:
        for partition in self.logs:
            position = self.broker.positions.get(partition, Position(0))
            _, state, _ = self.folded(partition, position.offset)
            ahead = max(position.outputs.get(f"kafka:{name}", 0) for name in TOPICS)
            _, _, last = self.folded(partition, ahead)
            told = {key: value for piece in self.broker.state_of(partition) for key, value in piece}
            for key in (b"k0", b"k1"):
                value = told.get(state_key(partition.topic, key))
                found = None if value is None else read_entry(value).digest
                # Where the topics are ahead, what they may hold by then is in doubt.
                assert found == (NOTHING if last.get(key, -1) >= position.offset else state.get(key))

    def seen(self, output: str) -> dict[TopicPartition, list[type_seen]]:
        """Files may have a row of a record that changed nothing: it was read again when its key was in doubt."""
        found = super().seen(output)
        if output != LAKE:
            return found
        changing = {partition: set(self.changing(partition)) for partition in found}
        return {partition: [one for one in seen if one[0] in changing[partition]] for partition, seen in found.items()}

    def teardown(self) -> None:
        super().teardown()
        assert not self.readers or self.broker.topics[STATE]


CheckpointMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=25, deadline=None)
TestCheckpoint = CheckpointMachine.TestCase
StatefulMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=25, deadline=None)
TestCheckpointWithState = StatefulMachine.TestCase
