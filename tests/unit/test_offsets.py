"""The ledger: what leaves is in order, whole, once, and never of a past assignment."""

from __future__ import annotations

import json
from collections import defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tests.fakes import record
from workers.offsets import OffsetLedger, Prefix, read_position, write_position
from workers.records import DeadLetter, Origin, Outcome, Position, Record, Tombstone, TopicPartition

REFUSED = DeadLetter("decode", "invalid", "no")
P0, P1, P2 = (TopicPartition("documents", n) for n in range(3))


def offsets(prefix: Prefix) -> list[int]:
    return [settled.record.origin.offset for settled in prefix.settled]


def ledger_with(*numbers: int, partition: TopicPartition = P0, epoch: int = 1, start: int = 0) -> OffsetLedger:
    ledger = OffsetLedger()
    ledger.assign(partition, epoch, Position(start))
    for number in numbers:
        assert ledger.add(record(number, partition=partition.partition, epoch=epoch))
    return ledger


def settle(ledger: OffsetLedger, *numbers: int, partition: int = 0, epoch: int = 1) -> None:
    for number in numbers:
        assert ledger.settle(Origin("documents", partition, number, epoch), Tombstone())


class LedgerMachine(RuleBasedStateMachine):
    """A ledger beside a plain model of it, and a broker that keeps what was committed."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = OffsetLedger()
        self.epoch = 0
        self.epochs: dict[TopicPartition, int] = {}
        self.flight: dict[TopicPartition, dict[int, tuple[Record, Outcome | None]]] = {}
        self.next: dict[TopicPartition, int] = {}
        self.committed: dict[TopicPartition, int] = defaultdict(int)
        self.written: dict[TopicPartition, list[int]] = defaultdict(list)
        self.added: dict[TopicPartition, set[int]] = defaultdict(set)
        self.old: list[Origin] = []
        self.drained: list[Prefix] = []

    partitions = st.sampled_from([P0, P1, P2])

    @rule(partition=partitions)
    def assign(self, partition: TopicPartition) -> None:
        self.forget(partition)
        self.epoch += 1
        self.ledger.assign(partition, self.epoch, Position(self.committed[partition]))
        self.epochs[partition] = self.epoch
        self.flight[partition] = {}
        self.next[partition] = self.committed[partition]

    def forget(self, partition: TopicPartition) -> int:
        gone = self.flight.pop(partition, {})
        self.old += [held.origin for held, _ in gone.values()]
        self.epochs.pop(partition, None)
        return len(gone)

    @rule(partitions=st.sets(partitions))
    def revoke(self, partitions: set[TopicPartition]) -> None:
        assert self.ledger.revoke(partitions) == sum(self.forget(partition) for partition in partitions)

    @rule(partition=partitions, gap=st.integers(0, 3), size=st.integers(0, 9))
    def add(self, partition: TopicPartition, gap: int, size: int) -> None:
        if partition not in self.epochs:
            assert not self.ledger.add(record(0, partition=partition.partition, epoch=1))
            return
        offset = self.next[partition] + gap
        new = record(offset, b"x" * size, partition=partition.partition, epoch=self.epochs[partition])
        assert self.ledger.add(new)
        assert not self.ledger.add(new), "the same offset twice"
        self.flight[partition][offset] = (new, None)
        self.next[partition] = offset + 1
        self.added[partition].add(offset)

    @rule(partition=partitions, pick=st.integers(0, 99), outcome=st.sampled_from([Tombstone(), REFUSED]))
    def settle(self, partition: TopicPartition, pick: int, outcome: Outcome) -> None:
        flight = self.flight.get(partition)
        if not flight:
            return
        offset = sorted(flight)[pick % len(flight)]
        held, known = flight[offset]
        assert self.ledger.settle(held.origin, outcome) == (known is None), "an outcome is given once"
        flight[offset] = (held, known or outcome)

    @rule(pick=st.integers(0, 99))
    def settle_what_is_past(self, pick: int) -> None:
        if self.old:
            assert not self.ledger.settle(self.old[pick % len(self.old)], REFUSED)

    @rule(partition=partitions)
    def add_what_is_past(self, partition: TopicPartition) -> None:
        epoch = self.epochs.get(partition, 2) - 1
        assert not self.ledger.add(record(1_000_000, partition=partition.partition, epoch=epoch))

    @rule(most=st.integers(1, 12))
    def drain(self, most: int) -> None:
        self.drained = self.ledger.drain(most)
        assert sum(len(prefix.settled) for prefix in self.drained) == self.ledger.ready(most) <= most
        assert len({prefix.topic_partition for prefix in self.drained}) == len(self.drained)
        for prefix in self.drained:
            flight = self.flight[prefix.topic_partition]
            expected = sorted(flight)[: len(prefix.settled)]
            assert offsets(prefix) == expected, "the front of what was added, with nothing left out"
            assert [settled.outcome for settled in prefix.settled] == [flight[offset][1] for offset in expected]
            assert prefix.next_offset == expected[-1] + 1
        assert self.ledger.owns({prefix.topic_partition: prefix.epoch for prefix in self.drained})

    @rule()
    def commit(self) -> None:
        """Of what was drained, only partitions that are still ours may be written."""
        for prefix in self.drained:
            ours = self.epochs.get(prefix.topic_partition) == prefix.epoch
            assert self.ledger.owns({prefix.topic_partition: prefix.epoch}) == ours
            if ours:
                self.write(prefix)
            self.ledger.release(prefix)
        self.drained = []

    @rule()
    def commit_in_doubt(self) -> None:
        """It happened, and the ledger learns of it from the group alone."""
        for prefix in self.drained:
            if self.epochs.get(prefix.topic_partition) != prefix.epoch:
                continue
            self.write(prefix)
            resolved = self.ledger.resolve(prefix.topic_partition, prefix.epoch, Position(prefix.next_offset))
            assert tuple(resolved) == prefix.settled
        self.drained = []

    @rule()
    def commit_that_failed(self) -> None:
        for prefix in self.drained:
            before = Position(self.committed[prefix.topic_partition])
            assert self.ledger.resolve(prefix.topic_partition, prefix.epoch, before) == []
        self.drained = []

    def write(self, prefix: Prefix) -> None:
        partition = prefix.topic_partition
        self.written[partition] += offsets(prefix)
        self.committed[partition] = prefix.next_offset
        for offset in offsets(prefix):
            self.old.append(self.flight[partition].pop(offset)[0].origin)

    @invariant()
    def counts(self) -> None:
        held = [entry for flight in self.flight.values() for entry, _ in flight.values()]
        assert self.ledger.records == len(held)
        assert self.ledger.bytes == sum(entry.size for entry in held)
        assert self.ledger.epochs == self.epochs

    def teardown(self) -> None:
        for partition, written in self.written.items():
            assert written == sorted(set(written)), "in order, each once"
            assert set(written) <= self.added[partition]
        self.ledger.revoke([P0, P1, P2])
        assert (self.ledger.records, self.ledger.bytes, self.ledger.epochs) == (0, 0, {})


LedgerMachine.TestCase.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
TestLedger = LedgerMachine.TestCase


def test_a_prefix_ends_before_the_first_record_without_an_outcome():
    ledger = ledger_with(0, 1, 2, 3)
    settle(ledger, 0, 1, 3)
    assert [offsets(prefix) for prefix in ledger.drain(10)] == [[0, 1]]
    settle(ledger, 2)
    assert [offsets(prefix) for prefix in ledger.drain(10)] == [[0, 1, 2, 3]]


def test_gaps_in_offsets_hold_nothing_up():
    ledger = ledger_with(5, 9, 40, start=3)
    settle(ledger, 5, 9, 40)
    (prefix,) = ledger.drain(10)
    assert prefix.next_offset == 41
    assert not ledger.add(record(40, epoch=1)), "offsets never go backwards"
    assert ledger.add(record(41, epoch=1))


def test_records_before_the_position_are_not_taken():
    ledger = OffsetLedger()
    ledger.assign(P0, 1, Position(10))
    assert not ledger.add(record(9))
    assert ledger.add(record(10))


def test_what_was_settled_after_a_drain_stays_when_the_drained_is_released():
    ledger = ledger_with(0, 1, 2)
    settle(ledger, 0)
    (first,) = ledger.drain(10)
    settle(ledger, 1)
    ledger.release(first)
    assert [offsets(prefix) for prefix in ledger.drain(10)] == [[1]]
    assert ledger.records == 2


def test_no_partition_starves_when_a_commit_holds_few():
    ledger = OffsetLedger()
    for partition in (P0, P1, P2):
        ledger.assign(partition, 1, Position(0))
        for number in range(50):
            assert ledger.add(record(number, partition=partition.partition))
            settle(ledger, number, partition=partition.partition)
    first = set()
    for _ in range(3):
        prefixes = ledger.drain(10)
        first.add(prefixes[0].topic_partition)
        for prefix in prefixes:
            ledger.release(prefix)
    assert first == {P0, P1, P2}


def test_resolving_beyond_a_record_without_an_outcome_says_that_somebody_else_commits():
    ledger = ledger_with(0, 1, 2)
    settle(ledger, 0)
    with pytest.raises(ValueError, match="documents/0 is committed up to 2, beyond a record"):
        ledger.resolve(P0, 1, Position(2))
    assert ledger.records == 3, "nothing is forgotten"


def test_a_commit_in_doubt_resolves_to_what_lies_below_the_offset():
    ledger = ledger_with(0, 1, 2, 3)
    settle(ledger, 0, 1, 2)
    assert [settled.record.origin.offset for settled in ledger.resolve(P0, 1, Position(2))] == [0, 1]
    assert ledger.resolve(P0, 1, Position(2)) == []
    assert ledger.resolve(P0, 7, Position(4)) == [], "another epoch"
    assert ledger.resolve(P1, 1, Position(4)) == [], "another partition"
    assert [offsets(prefix) for prefix in ledger.drain(10)] == [[2]]


# ---- positions of outputs


def test_what_an_output_already_has_travels_with_the_prefix_and_is_never_set_back():
    ledger = OffsetLedger(topics=("kafka:a", "kafka:b", "kafka:new"))
    ledger.assign(P0, 1, Position(10, {"kafka:a": 10, "kafka:b": 14}))
    for number in (10, 11):
        assert ledger.add(record(number))
        settle(ledger, number)
    (prefix,) = ledger.drain(10)
    assert prefix.already == {"kafka:a": 10, "kafka:b": 14}
    outputs = {"kafka:a": 12, "kafka:b": 14, "kafka:new": 12}
    assert ledger.positions([prefix]) == {P0: Position(12, outputs)}


# ---- outputs that are files


def with_files(position: Position) -> OffsetLedger:
    ledger = OffsetLedger(topics=("kafka:a",), files=("lake",))
    ledger.assign(P0, 1, position)
    return ledger


def test_the_committed_offset_is_the_one_of_the_output_that_is_furthest_behind():
    ledger = with_files(Position(0, {"kafka:a": 0, "lake": 0}))
    for number in range(4):
        assert ledger.add(record(number))
    settle(ledger, 0, 1)
    (prefix,) = ledger.drain(10)
    assert ledger.positions([prefix]) == {P0: Position(0, {"kafka:a": 2, "lake": 0})}
    ledger.release(prefix)
    ledger.advance(P0, 1, "lake", 1)
    assert ledger.positions([]) == {P0: Position(1, {"kafka:a": 2, "lake": 1})}
    assert ledger.records == 2, "what is committed to the topics is not held for the files"


def test_files_that_move_on_are_told_once():
    ledger = with_files(Position(0, {"kafka:a": 0, "lake": 0}))
    assert ledger.untold, "the chain may be further than the group's offset says"
    ledger.told(ledger.positions([]))
    assert not ledger.untold and ledger.positions([]) == {}
    ledger.advance(P0, 2, "lake", 5)
    assert not ledger.untold, "another epoch"
    ledger.advance(P0, 1, "lake", 5)
    assert ledger.untold
    ledger.advance(P0, 1, "lake", 3)
    assert ledger.positions([]) == {P0: Position(0, {"kafka:a": 0, "lake": 5})}, "never backwards"


def test_what_is_read_again_for_files_says_nothing_of_a_commit_in_doubt():
    ledger = with_files(Position(5, {"kafka:a": 8, "lake": 5}))
    for number in range(5, 10):
        assert ledger.add(record(number))
    settle(ledger, 5)
    assert ledger.resolve(P0, 1, Position(5, {"kafka:a": 8, "lake": 5})) == [], "8 is where the topic was before"
    settle(ledger, 6, 7, 8)
    (prefix,) = ledger.drain(10)
    assert ledger.positions([prefix]) == {P0: Position(5, {"kafka:a": 9, "lake": 5})}
    done = ledger.resolve(P0, 1, Position(5, {"kafka:a": 9, "lake": 5}))
    assert [settled.record.origin.offset for settled in done] == [5, 6, 7, 8]


def test_a_new_topic_beside_one_that_is_ahead_resolves_by_its_own_position():
    ledger = OffsetLedger(topics=("kafka:a", "kafka:new"), files=("lake",))
    ledger.assign(P0, 1, Position(5, {"kafka:a": 9, "kafka:new": 5, "lake": 5}))
    for number in range(5, 8):
        assert ledger.add(record(number))
        settle(ledger, number)
    (prefix,) = ledger.drain(10)
    (after,) = ledger.positions([prefix]).values()
    assert after.outputs == {"kafka:a": 9, "kafka:new": 8, "lake": 5}
    assert len(ledger.resolve(P0, 1, after)) == 3


def test_a_gap_in_the_source_leaves_chains_where_they_are():
    ledger = with_files(Position(3, {"kafka:a": 3, "lake": 3}))
    assert ledger.add(record(3))
    ledger.skip(P0, 100)
    assert ledger.chains(P0) == [3], "the next file reaches over the gap"
    assert ledger.records == 1, "what was read is there, and nowhere else any more"
    assert not ledger.add(record(50)) and ledger.add(record(100))
    for offset in (100, 3):
        assert ledger.settle(Origin("documents", 0, offset, 1), REFUSED)
    (prefix,) = ledger.drain(10)
    assert [settled.record.origin.offset for settled in prefix.settled] == [3, 100]
    assert ledger.positions([prefix]) == {P0: Position(3, {"kafka:a": 101, "lake": 3})}


def test_the_topic_of_a_position_stays_with_it_and_a_commit_of_another_topic_resolves_nothing():
    ledger = OffsetLedger(topics=("kafka:a",))
    ledger.assign(P0, 1, Position(0, {}, "new"))
    assert ledger.add(record(0))
    settle(ledger, 0)
    (prefix,) = ledger.drain(10)
    assert ledger.positions([prefix]) == {P0: Position(1, {"kafka:a": 1}, "new")}
    assert ledger.resolve(P0, 1, Position(9, {"kafka:a": 9}, "old")) == []
    assert len(ledger.resolve(P0, 1, Position(1, {"kafka:a": 1}, "new"))) == 1


@given(
    st.integers(0, 2**63 - 1),
    st.dictionaries(st.text(st.characters(codec="utf-8")), st.integers(0, 2**63 - 1)),
    st.sampled_from(["", "0f" * 16]),
)
def test_a_position_survives_the_round_trip(offset: int, outputs: dict[str, int], topic_id: str):
    position = Position(offset, outputs, topic_id)
    assert read_position(offset, write_position(position)) == position


@pytest.mark.parametrize(
    "metadata",
    [
        "",
        "batch-7",
        "null",
        "[]",
        '"outputs"',
        "{}",
        '{"outputs":null}',
        '{"outputs":[1]}',
        '{"outputs":{"a":null}}',
        '{"outputs":{"a":"x"}}',
        '{"outputs":{"a":1e999}}',
        '{"outputs":{"a":NaN}}',
        "[" * 4000,
        None,
    ],
)
def test_metadata_of_another_program_counts_as_none(metadata: str):
    assert read_position(7, metadata) == Position(7)


@given(
    st.text()
    | st.recursive(st.none() | st.floats() | st.text(), lambda v: st.lists(v) | st.dictionaries(st.text(), v)).map(
        lambda v: json.dumps({"outputs": v})
    )
)
def test_no_metadata_can_stop_a_partition_from_starting(metadata: str):
    assert read_position(7, metadata).offset == 7


def test_ten_outputs_with_the_longest_names_fit_kafkas_limit():
    """``offset.metadata.max.bytes`` is 4,096 by default. The dead-letter topic has a position too."""
    names = [f"kafka:{n}".ljust(6 + 249, "t") for n in range(10)] + ["kafka:".ljust(6 + 249, "d")]
    position = Position(2**63 - 1, dict.fromkeys(names, 2**63 - 1))
    assert len(write_position(position).encode()) <= 4096
