"""One commit: the order of its steps, what becomes a dead letter on the way, and what a failure leaves behind."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from tests.fakes import DIM, TOPIC, FakeRenderer, FakeSink, FakeSource, Group, fake_vector, record
from workers import metrics
from workers.checkpoint import Checkpoint
from workers.encoder.quantize import Projection, quantize
from workers.errors import CommitError, RetryableError
from workers.offsets import OffsetLedger
from workers.outlets import DeadLetterOutlet, Outlet
from workers.records import (
    DeadLetter,
    Document,
    Embedding,
    Message,
    Outcome,
    Position,
    Record,
    Tombstone,
    TopicPartition,
)

P0, P1 = TopicPartition(TOPIC, 0), TopicPartition(TOPIC, 1)
OUT, WIDE, DEAD = "vectors", "wide", "documents.dead"
NAMES = [f"kafka:{OUT}", f"kafka:{DEAD}"]
REFUSED = DeadLetter("decode", "invalid", "the value is not what it should be")


def embedding(text: str, vector: np.ndarray | None = None) -> Embedding:
    return Embedding(Document(text, text), fake_vector(text) if vector is None else vector, len(text), False)


class Bench:
    """A checkpoint over fakes, and its ledger."""

    def __init__(
        self,
        sink: Callable[[Group], FakeSink] = FakeSink,
        outputs: tuple[str, ...] = (OUT,),
        dims: tuple[int, ...] = (DIM, DIM),
        precision: str = "float32",
        tombstone: bool = False,
        positions: dict[str, int] | None = None,
    ) -> None:
        self.group = Group()
        self.source = FakeSource(self.group)
        self.sink = sink(self.group)
        self.ledger = OffsetLedger([*(f"kafka:{topic}" for topic in outputs), f"kafka:{DEAD}"])
        self.lock = threading.Condition()
        self.meter = metrics.Metrics()
        self.steps: list[str] = []
        self.outlets = outlets = [
            Outlet(f"kafka:{topic}", topic, Projection(dim, precision), FakeRenderer(topic))
            for topic, dim in zip(outputs, dims, strict=False)
        ]
        dead = DeadLetterOutlet(DEAD, "f1ngerpr1nt", tombstone)
        self.checkpoint = Checkpoint(
            self.ledger, self.lock, self.source, self.sink, outlets, dead, self.meter, self.failpoint
        )
        for partition in (P0, P1):
            self.ledger.assign(partition, 1, Position(0, positions or {}))
        self.crash_at = ""
        self.at: Callable[[str], None] = lambda _: None

    def failpoint(self, name: str) -> None:
        self.steps.append(name)
        self.at(name)
        if name == self.crash_at:
            raise SystemExit(name)

    def settle(self, offset: int, outcome: Outcome, partition: int = 0, **more: object) -> Record:
        held = record(offset, partition=partition, **more)  # type: ignore[arg-type]
        assert self.ledger.add(held)
        assert self.ledger.settle(held.origin, outcome)
        return held

    def values(self, topic: str = OUT) -> list[bytes | None]:
        return [message.value for message in self.sink.committed if message.topic == topic]


@pytest.fixture
def bench() -> Bench:
    opened = Bench()
    opened.checkpoint.open()
    return opened


def opened(**options: object) -> Bench:
    made = Bench(**options)  # type: ignore[arg-type]
    made.checkpoint.open()
    return made


def header(message: Message, name: str) -> bytes | None:
    return dict(message.headers).get(f"embedding-error-{name}")


def test_outcomes_leave_in_order_with_their_offsets_in_one_transaction(bench: Bench):
    bench.settle(0, embedding("a"))
    bench.settle(1, REFUSED)
    bench.settle(2, Tombstone(), key=b"gone")
    bench.settle(5, embedding("b"), partition=1)
    assert bench.checkpoint.commit() == 4

    ((messages, positions),) = bench.sink.transactions
    by_partition = [[m for m in messages if m.timestamp_ms % 10 < 5], [m for m in messages if m.timestamp_ms % 10 == 5]]
    assert [[(m.topic, m.key, m.value) for m in group] for group in by_partition] == [
        [(OUT, b"key", b"a"), (DEAD, b"key", b"text"), (OUT, b"gone", None)],
        [(OUT, b"key", b"b")],
    ]
    assert positions == {P0: Position(3, dict.fromkeys(NAMES, 3)), P1: Position(6, dict.fromkeys(NAMES, 6))}
    assert bench.sink.memberships == ["generation"]
    assert (bench.ledger.records, bench.ledger.bytes) == (0, 0)
    assert bench.checkpoint.commit() == 0, "nothing leaves twice"
    assert len(bench.sink.transactions) == 1


def test_the_order_of_a_partition_is_kept(bench: Bench):
    for offset in range(20):
        bench.settle(offset, embedding(f"{offset:02}"))
    bench.checkpoint.commit()
    assert bench.values() == [f"{offset:02}".encode() for offset in range(20)]


def test_the_steps_come_in_their_order(bench: Bench):
    """Membership after the write, ownership after the membership: else a successor's records could be overwritten."""
    order: list[str] = []
    write, membership, owns, commit = (
        bench.sink.write,
        bench.source.membership,
        bench.ledger.owns,
        bench.sink.commit,
    )
    bench.sink.write = lambda messages: order.append("write") or write(messages)  # type: ignore[method-assign,func-returns-value]
    bench.source.membership = lambda timeout_s: order.append("membership") or membership(timeout_s)  # type: ignore[method-assign,func-returns-value]
    bench.ledger.owns = lambda assignments: order.append("owns") or owns(assignments)  # type: ignore[method-assign,func-returns-value]
    bench.sink.commit = lambda positions, member: order.append("commit") or commit(positions, member)  # type: ignore[method-assign,func-returns-value]
    bench.settle(0, embedding("a"))
    bench.checkpoint.commit()
    assert order == ["write", "membership", "owns", "commit"]
    assert bench.steps == ["written", "committed"]


@pytest.mark.parametrize("back", [False, True], ids=["revoked", "revoked and regained"])
def test_a_partition_that_went_away_while_it_was_written_takes_the_commit_with_it(bench: Bench, back: bool):
    bench.settle(0, embedding("a"))
    bench.settle(0, embedding("b"), partition=1)

    def revoke(step: str) -> None:
        if step == "written":
            bench.ledger.revoke([P1])
            if back:
                bench.ledger.assign(P1, 2, Position(0))

    bench.at = revoke
    with pytest.raises(CommitError, match="revoked"):
        bench.checkpoint.commit()
    assert bench.sink.transactions == []
    bench.at = lambda _: None
    bench.checkpoint.recover()
    assert bench.checkpoint.commit() == 1
    assert bench.values() == [b"a"], "the rest is committed, and the revoked one is not"


def test_without_a_stable_membership_nothing_is_committed(bench: Bench):
    bench.settle(0, embedding("a"))
    bench.source.stable = False
    with pytest.raises(CommitError):
        bench.checkpoint.commit()
    assert "commit" not in bench.sink.calls
    bench.source.stable = True
    bench.checkpoint.recover()
    assert bench.checkpoint.commit() == 1


def test_a_failed_write_leaves_all_in_the_ledger(bench: Bench):
    bench.sink.script("write", "fail", "ok")
    bench.settle(0, embedding("a"))
    with pytest.raises(RetryableError):
        bench.checkpoint.commit()
    assert bench.ledger.records == 1
    bench.checkpoint.recover()
    assert bench.checkpoint.commit() == 1
    assert bench.values() == [b"a"]


@pytest.mark.parametrize("word", ["fail", "happened"])
def test_a_commit_in_doubt_is_settled_by_what_the_group_says(bench: Bench, word: str):
    bench.sink.script("commit", word, "ok")
    bench.settle(0, embedding("a"))
    bench.settle(1, REFUSED)
    with pytest.raises(CommitError):
        bench.checkpoint.commit()
    # More is settled meanwhile; it was in no transaction.
    bench.settle(2, embedding("c"))
    bench.checkpoint.recover()
    assert bench.ledger.records == (1 if word == "happened" else 3)
    assert bench.checkpoint.commit() == (1 if word == "happened" else 3)
    assert bench.values() == [b"a", b"c"]
    assert bench.values(DEAD) == [b"text"]
    assert bench.meter.value(metrics.RECORDS_COMMITTED, outcome="embedding") == 2
    assert bench.meter.value(metrics.RECORDS_COMMITTED, outcome="dead_letter") == 1


def test_recovery_may_fail_on_the_way_and_be_repeated(bench: Bench):
    bench.sink.script("commit", "happened", "ok")
    bench.settle(0, embedding("a"))
    with pytest.raises(CommitError):
        bench.checkpoint.commit()
    bench.sink.script("open", "fail", "ok")
    with pytest.raises(RetryableError):
        bench.checkpoint.recover()
    bench.source.silent_coordinator = 1
    with pytest.raises(RetryableError):
        bench.checkpoint.recover()
    assert bench.ledger.records == 1
    bench.checkpoint.recover()
    assert bench.ledger.records == 0
    assert bench.checkpoint.commit() == 0
    assert bench.values() == [b"a"]


def test_the_old_producer_is_gone_before_the_group_is_asked(bench: Bench):
    """Only then is the transaction decided: asked before, the group could say no, and the commit happen after all."""
    bench.sink.script("commit", "fail", "ok")
    bench.settle(0, embedding("a"))
    with pytest.raises(CommitError):
        bench.checkpoint.commit()
    seen: list[list[str]] = []
    committed = bench.source.committed
    bench.source.committed = lambda partitions: seen.append(list(bench.sink.calls)) or committed(partitions)  # type: ignore[method-assign,func-returns-value]
    bench.checkpoint.recover()
    assert seen[0][-2:] == ["abandon", "open"]


def test_a_partition_for_which_somebody_else_commits_begins_anew_and_the_others_go_on(bench: Bench):
    assert bench.ledger.add(record(0))
    bench.settle(5, embedding("b"), partition=1)
    bench.group.positions[P0] = Position(1)
    bench.checkpoint.recover()
    assert bench.source.begun_anew == [P0]
    assert bench.checkpoint.commit() == 1
    assert bench.values() == [b"b"]


def test_what_somebody_else_committed_of_what_was_not_tried_is_not_ours(bench: Bench):
    """Its outcome is known here, and was never written by us."""
    bench.settle(0, embedding("a"))
    bench.group.positions[P0] = Position(1)
    bench.checkpoint.recover()
    assert bench.source.begun_anew == [P0] and not bench.sink.committed
    assert bench.meter.value(metrics.RECORDS_COMMITTED, outcome="embedding") == 0


def test_opening_again_after_a_failure_leaves_no_first_producer_behind():
    """Its sender would fence its successor, under the same transactional id. FakeSink checks the protocol."""
    bench = Bench(lambda group: FakeSink(group, opens=("fail", "ok")))
    with pytest.raises(RetryableError):
        bench.checkpoint.open()
    bench.checkpoint.open()
    assert bench.sink.calls.index("abandon") < len(bench.sink.calls) - 1


# ---- what cannot be written


def test_what_cannot_be_rendered_is_a_dead_letter_and_its_neighbours_are_not(bench: Bench):
    bench.settle(0, embedding("a"))
    bench.settle(1, embedding("render!"))
    bench.settle(2, embedding("c"))
    assert bench.checkpoint.commit() == 3
    assert bench.values() == [b"a", b"c"]
    (dead,) = [message for message in bench.sink.committed if message.topic == DEAD]
    assert dead.value == b"text"
    assert (header(dead, "stage"), header(dead, "class")) == (b"output", b"unrenderable")
    assert (header(dead, "topic"), header(dead, "partition"), header(dead, "offset")) == (b"documents", b"0", b"1")
    assert header(dead, "fingerprint") == b"f1ngerpr1nt"
    assert bench.meter.value(metrics.DEAD_LETTERS, stage="output", reason="unrenderable") == 1
    assert bench.meter.value(metrics.RECORDS_COMMITTED, outcome="dead_letter") == 1


def test_what_is_too_large_for_an_output_is_a_dead_letter_and_in_no_output():
    bench = opened(sink=lambda group: FakeSink(group, max_bytes={WIDE: 200}), outputs=(OUT, WIDE), dims=(DIM, DIM))
    bench.settle(0, embedding("x" * 300))
    bench.settle(1, embedding("b"))
    assert bench.checkpoint.commit() == 2
    assert bench.values(OUT) == [b"b"]
    assert bench.values(WIDE) == [b"b"]
    (dead,) = [message for message in bench.sink.committed if message.topic == DEAD]
    assert header(dead, "class") == b"too_large"


def test_a_compacted_output_takes_no_record_without_a_key():
    bench = opened(sink=lambda group: FakeSink(group, keyed=[OUT]))
    bench.settle(0, embedding("a"), key=None)
    assert bench.checkpoint.commit() == 1
    assert bench.values() == []
    (dead,) = bench.sink.committed
    assert (dead.topic, header(dead, "class")) == (DEAD, b"no_key")


def test_a_vector_with_nothing_in_its_first_dimensions_is_a_dead_letter_of_its_own():
    bench = opened(outputs=(OUT, WIDE), dims=(2, DIM))
    flat = np.zeros(DIM, np.float32)
    flat[5] = 1
    bench.settle(0, embedding("a"))
    bench.settle(1, embedding("flat", flat))
    bench.settle(2, embedding("c"))
    assert bench.checkpoint.commit() == 3
    assert bench.values(OUT) == bench.values(WIDE) == [b"a", b"c"]
    assert bench.values(DEAD) == [b"text"]


def test_each_vector_is_rendered_as_its_output_wants_it_with_its_own_scale():
    bench = opened(outputs=(OUT, WIDE), dims=(4, DIM), precision="int8")
    texts = ("a", "b", "c")
    for offset, text in enumerate(texts):
        bench.settle(offset, embedding(text))
    bench.settle(3, REFUSED)
    assert bench.checkpoint.commit() == 4
    for outlet, dim in zip(bench.outlets, (4, DIM), strict=True):
        for text, (vector, scale) in zip(texts, outlet.renderer.rendered, strict=True):
            expected = quantize(fake_vector(text)[None, :dim], "int8").values[0]
            assert vector.tolist() == expected.tolist()
            cut = fake_vector(text)[:dim].astype(np.float64)
            assert scale == pytest.approx(np.abs(cut).max() / np.linalg.norm(cut) / 127, rel=1e-6)


def test_a_dead_letter_that_fits_nowhere_holds_the_partition_and_loses_nothing():
    bench = opened(sink=lambda group: FakeSink(group, max_bytes={DEAD: 1_000}))
    bench.settle(0, embedding("a"))
    bench.settle(1, REFUSED, value=b"v" * 2_000)
    for _ in range(2):
        with pytest.raises(RetryableError, match=r"documents/0/1 does not fit into topic documents\.dead") as caught:
            bench.checkpoint.commit()
        assert "vvvv" not in str(caught.value)
        bench.checkpoint.recover()
    assert bench.sink.transactions == []
    assert bench.ledger.records == 2
    bench.sink._max_bytes.clear()  # somebody raised the topic's limit
    assert bench.checkpoint.commit() == 2
    assert bench.values() == [b"a"]
    assert bench.values(DEAD) == [b"v" * 2_000]


# ---- tombstones for refused updates


def test_a_refused_update_deletes_the_older_vector_from_every_output_when_told_to():
    bench = opened(outputs=(OUT, WIDE), tombstone=True)
    bench.settle(0, REFUSED, key=b"k")
    bench.settle(1, REFUSED, key=None)
    bench.settle(2, embedding("render!"), key=b"r")
    assert bench.checkpoint.commit() == 3
    for topic in (OUT, WIDE):
        assert [(m.key, m.value) for m in bench.sink.committed if m.topic == topic] == [(b"k", None), (b"r", None)]
    assert len(bench.values(DEAD)) == 3


def test_an_update_whose_text_did_not_travel_deletes_nothing():
    """It did not change, so the older vector lacks at most what other fields of the text have become."""
    bench = opened(tombstone=True)
    bench.settle(0, DeadLetter("decode", "unavailable_value", "it did not travel"), key=b"k")
    bench.settle(1, REFUSED, key=b"r")
    bench.checkpoint.commit()
    assert [m.key for m in bench.sink.committed if m.topic == OUT] == [b"r"]
    assert len(bench.values(DEAD)) == 2


def test_a_refused_update_keeps_the_older_vector_otherwise(bench: Bench):
    bench.settle(0, REFUSED, key=b"k")
    bench.checkpoint.commit()
    assert bench.values(OUT) == []


def test_a_tombstone_that_no_output_takes_cannot_block_the_partition():
    """A key that an output is too small for never had a vector there."""
    bench = opened(sink=lambda group: FakeSink(group, max_bytes={OUT: 500}), tombstone=True)
    bench.settle(0, REFUSED, key=b"k" * 1_000)
    assert bench.checkpoint.commit() == 1
    assert all(bench.sink.refuses(message) is None for message in bench.sink.committed)
    assert len(bench.values(DEAD)) == 1


def test_a_tombstone_that_only_its_headers_make_too_large_goes_without_them():
    bench = opened(sink=lambda group: FakeSink(group, max_bytes={OUT: 500}), tombstone=True)
    held = replace(record(0, key=b"k"), headers=(("trace", b"t" * 1_000),))
    assert bench.ledger.add(held)
    assert bench.ledger.settle(held.origin, REFUSED)
    assert bench.checkpoint.commit() == 1
    assert [(m.key, m.value, m.headers) for m in bench.sink.committed if m.topic == OUT] == [(b"k", None, ())]


def test_a_dead_letter_topic_that_is_compacted_is_named_as_what_is_wrong():
    bench = opened(sink=lambda group: FakeSink(group, keyed=[DEAD]))
    bench.settle(0, REFUSED, key=None)
    with pytest.raises(RetryableError, match=r"cleanup\.policy"):
        bench.checkpoint.commit()


# ---- outputs with positions of their own


def test_an_output_that_has_a_record_already_does_not_get_it_again():
    bench = opened(
        outputs=(OUT, WIDE), positions={f"kafka:{OUT}": 2, f"kafka:{WIDE}": 0, f"kafka:{DEAD}": 2}, tombstone=True
    )
    bench.settle(0, embedding("a"))
    bench.settle(1, REFUSED)
    bench.settle(2, embedding("c"))
    assert bench.checkpoint.commit() == 3
    assert bench.values(OUT) == [b"c"]
    assert bench.values(WIDE) == [b"a", None, b"c"]
    assert bench.values(DEAD) == []


def test_what_an_output_refused_the_first_time_is_refused_again_though_it_is_ahead_now():
    """Else what is read again for another output would be a dead letter and a vector."""
    bench = opened(
        sink=lambda group: FakeSink(group, max_bytes={WIDE: 200}),
        outputs=(OUT, WIDE),
        positions={f"kafka:{OUT}": 0, f"kafka:{WIDE}": 1, f"kafka:{DEAD}": 1},
    )
    bench.settle(0, embedding("x" * 300))
    assert bench.checkpoint.commit() == 1
    assert bench.values(OUT) == bench.values(WIDE) == bench.values(DEAD) == []


@pytest.mark.parametrize(("reason", "again"), [("encoder_died", True), ("invalid", False)])
def test_a_record_that_is_read_again_for_files_and_ends_otherwise_is_a_dead_letter(reason: str, again: bool):
    """Its row would be missing without a word."""
    bench = opened(positions={f"kafka:{OUT}": 1, f"kafka:{DEAD}": 1})
    bench.settle(0, DeadLetter("encode", reason, "the encoder failed on this text", 3))
    bench.checkpoint.commit()
    assert len(bench.values(DEAD)) == again
    assert bench.meter.value(metrics.DEAD_LETTERS, stage="encode", reason=reason) == again


def test_what_was_read_before_the_log_lost_it_is_written(bench: Bench):
    for offset in range(3):
        bench.settle(offset, embedding(str(offset)))
    bench.ledger.skip(P0, 100)
    bench.settle(100, embedding("100"))
    assert bench.checkpoint.commit() == 4
    assert bench.values(OUT) == [b"0", b"1", b"2", b"100"]


def test_a_delete_goes_through_without_headers_that_do_not_fit():
    bench = opened(sink=lambda group: FakeSink(group, max_bytes={OUT: 200}))
    held = replace(record(0, None, key=b"gone"), headers=(("h", b"x" * 300),))
    assert bench.ledger.add(held) and bench.ledger.settle(held.origin, Tombstone())
    assert bench.checkpoint.commit() == 1
    (((message,), _),) = bench.sink.transactions
    assert (message.topic, message.key, message.value, message.headers) == (OUT, b"gone", None, ())


def test_positions_are_never_set_back():
    bench = opened(positions={f"kafka:{OUT}": 9})
    bench.settle(0, embedding("a"))
    bench.checkpoint.commit()
    assert bench.values(OUT) == []
    ((_, positions),) = bench.sink.transactions
    assert positions == {P0: Position(1, {f"kafka:{OUT}": 9, f"kafka:{DEAD}": 1})}


# ---- placement and counting


def test_a_record_without_a_key_stays_with_its_partitions_number(bench: Bench):
    bench.settle(0, embedding("a"), partition=1, key=None)
    bench.settle(1, REFUSED, partition=1, key=None)
    bench.settle(2, embedding("c"), partition=1, key=b"k")
    bench.checkpoint.commit()
    assert [message.partition for message in bench.sink.committed] == [1, 1, None]


def test_what_is_committed_is_counted_once_and_after_the_commit(bench: Bench):
    bench.sink.script("commit", "fail", "ok")
    bench.settle(0, Embedding(Document("a", "a"), fake_vector("a"), tokens=7, truncated=True))
    bench.settle(1, Tombstone())
    with pytest.raises(CommitError):
        bench.checkpoint.commit()
    assert bench.meter.value(metrics.RECORDS_COMMITTED) == 0
    bench.checkpoint.recover()
    bench.checkpoint.commit()
    assert bench.meter.value(metrics.RECORDS_COMMITTED, outcome="embedding") == 1
    assert bench.meter.value(metrics.RECORDS_COMMITTED, outcome="tombstone") == 1
    assert bench.meter.value(metrics.TOKENS_COMMITTED) == 7
    assert bench.meter.value(metrics.TEXTS_TRUNCATED) == 1
    assert bench.meter.value(metrics.COMMITS) == 1
    assert bench.meter.value(metrics.LAST_COMMIT) > 1.7e9


@pytest.mark.parametrize("step", ["written", "committed"])
def test_a_crash_between_two_steps_leaves_all_or_nothing(bench: Bench, step: str):
    bench.settle(0, embedding("a"))
    bench.crash_at = step
    with pytest.raises(SystemExit):
        bench.checkpoint.commit()
    assert bench.values() == ([b"a"] if step == "committed" else [])
    assert bool(bench.group.positions) == (step == "committed")
