"""What kafka-python gets wrong, and that we do not: one test for each guard, against a real broker.

A test named ``premise`` in its body shows the bare client's trap first, so that a guard nobody needs any more is noticed.
"""

from __future__ import annotations

import contextlib
import datetime
import gc
import itertools
import pickle
import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
from kafka import KafkaConsumer, KafkaProducer, OffsetAndMetadata, codec
from kafka import TopicPartition as KafkaTopicPartition
from kafka import errors as kafka_errors
from kafka.admin import ConfigResource, ConfigResourceType, MemberToRemove
from kafka.cluster import ClusterMetadata
from kafka.consumer.subscription_state import ConsumerRebalanceListener
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.future import Future
from kafka.record.default_records import DefaultRecordBatch

from pipelines.broker import Broker
from pipelines.loopback import free_port
from tests.conftest import RunningBroker
from tests.integration.pipeline import ends
from workers import kafka_client, kafka_headers, kafka_records, kafka_topics, metrics
from workers.codecs.dead_letter import render_dead_letter
from workers.codecs.tombstone import render_tombstone
from workers.errors import CommitError, EnvironmentFault, RetryableError
from workers.offsets import write_position
from workers.records import DeadLetter, Message, Position, Record, TopicPartition
from workers.settings import KafkaSettings, LimitSettings, SourceSettings
from workers.sinks import kafka as sink_room
from workers.sinks.kafka import TransactionalSink
from workers.sinks.kafka_append import failure
from workers.sources import kafka_handover as handover_room
from workers.sources import kafka_member as member_room
from workers.sources import kafka_silence as silence_room
from workers.sources.kafka import KafkaSource
from workers.sources.kafka_member import GroupMember

# kafka-python leaves the sockets of connections that failed to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")
WAIT_S = 30.0
type_make_topic = Callable[..., str]
type_name = Callable[[], str]


def wait_for(condition: Callable[[], object], what: str, seconds: float = WAIT_S) -> float:
    """Seconds until the condition held."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < seconds, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.02)
    return time.monotonic() - started


@pytest.fixture(autouse=True)
def no_sockets_left() -> Iterator[None]:
    """Collect them here, where nobody minds, and not in a later test."""
    yield
    gc.collect()


# ---- members


class Member:
    """A KafkaSource that polls in a thread of its own, and remembers what it was told."""

    def __init__(self, kafka: KafkaSettings, group: str, topics: Sequence[str], **more: Any) -> None:
        self.meter = metrics.Metrics()
        self.source = KafkaSource(
            SourceSettings(topics=tuple(topics), group=group, start=more.pop("start", "earliest")),
            kafka,
            LimitSettings(),
            client_id=f"{group}-member",
            group_instance_id=more.pop("instance", None),
            meter=self.meter,
        )
        self.look_ups, self.back = more.pop("look_ups", 0), more.pop("back", 0)
        assert not more
        self.owned: dict[TopicPartition, int] = {}
        self.placed: dict[TopicPartition, list[Position]] = defaultdict(list)
        self.records: list[Record] = []
        self.places: dict[TopicPartition, int] = {}
        self.skips: list[tuple[TopicPartition, int]] = []
        self.lost = 0
        self.hold = threading.Event()
        self.held = threading.Event()
        self.error: BaseException | None = None
        self.most = 1_000
        self.polls: list[int] = []
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.source.run(self)
        except BaseException as error:
            self.error = error

    def assigned(self, partition: TopicPartition, epoch: int, position: Position) -> None:
        self.owned[partition] = epoch
        self.placed[partition].append(position)

    def place(self, partition: TopicPartition, epoch: int, position: Position) -> Position | None:
        """``look_ups`` is how often it has to be asked; then it starts ``back`` offsets earlier."""
        self.look_ups -= 1
        return None if self.look_ups >= 0 else replace(position, offset=position.offset - self.back)

    def parting(self, partitions: Iterable[TopicPartition]) -> None:
        assert set(partitions) <= self.source._ours.owned

    def skipped(self, partition: TopicPartition, offset: int) -> None:
        self.skips.append((partition, offset))

    def revoked(self, partitions: Iterable[TopicPartition], *, lost: bool) -> None:
        for partition in partitions:
            self.owned.pop(partition, None)
        self.lost += lost

    def received(self, records: Sequence[Record]) -> None:
        assert all(self.owned.get(r.origin.topic_partition) == r.origin.epoch for r in records)
        self.records += records
        self.polls.append(len(records))

    def reached(self, partition: TopicPartition, epoch: int, offset: int) -> None:
        assert self.owned.get(partition) == epoch
        self.places[partition] = offset

    def room(self) -> int:
        """``hold`` stalls the poll thread, as nothing of ours ever may."""
        while self.hold.is_set():
            self.held.set()
            time.sleep(0.02)
        return self.most

    def offsets(self, partition: TopicPartition, epoch: int | None = None) -> list[int]:
        return [
            r.origin.offset
            for r in self.records
            if r.origin.topic_partition == partition and (epoch is None or r.origin.epoch == epoch)
        ]

    def stop(self) -> None:
        self.hold.clear()
        self.source.stop()
        self.thread.join(15)
        assert not self.thread.is_alive()
        if self.error is not None:
            raise self.error


@pytest.fixture
def join() -> Iterator[Callable[..., Member]]:
    members: list[Member] = []

    def join(*arguments: Any, **more: Any) -> Member:
        members.append(Member(*arguments, **more))
        return members[-1]

    yield join
    for member in members:
        member.stop()


type_join = Callable[..., Member]


def produce(kafka: KafkaSettings, topic: str, count: int, partitions: int = 1, start: int = 0, **more: Any) -> None:
    producer = kafka_client.connect(KafkaProducer, kafka)
    try:
        for n in range(start, start + count):
            for partition in range(partitions):
                producer.send(topic, b"v%d" % n, key=b"k%d" % n, partition=partition, **more)
        producer.flush(10)
    finally:
        producer.close(timeout=5)


def read(kafka: KafkaSettings, topic: str, **more: Any) -> list[Any]:
    """What is in partition 0 of a topic for a read_committed reader, up to its end now."""
    consumer = kafka_client.bare_consumer(kafka, auto_offset_reset="earliest", **more)
    try:
        tp = KafkaTopicPartition(topic, 0)
        consumer.assign([tp])
        end = ends(kafka, consumer, [tp], patience_s=2)[tp]  # some tests leave one open
        found: list[Any] = []
        deadline = time.monotonic() + WAIT_S
        while consumer.position(tp) < end and time.monotonic() < deadline:
            found += consumer.poll(200).get(tp, [])
        return found
    finally:
        consumer.close()


def committed(kafka: KafkaSettings, group: str) -> dict[TopicPartition, int]:
    with kafka_client.admin(kafka) as client:
        return kafka_topics.committed_offsets(client, group)


def group_members(kafka: KafkaSettings, group: str) -> list[Any]:
    with kafka_client.admin(kafka) as client:
        return list(client.describe_groups([group])[group]["members"])


def set_committed(kafka: KafkaSettings, group: str, offsets: dict[TopicPartition, int], metadata: str = "") -> None:
    with kafka_client.admin(kafka) as client:
        kafka_topics.committed_offsets(client, group)  # waits until a fresh broker has its offsets topic
        client.alter_group_offsets(
            group, {KafkaTopicPartition(*tp): OffsetAndMetadata(offset, metadata, -1) for tp, offset in offsets.items()}
        )


def test_marks_of_transactions_are_read_past_and_said(
    broker: RunningBroker, make_topic: type_make_topic, join: type_join, unique_name: type_name
) -> None:
    """Else a source that is written in transactions always seems to have something left."""
    topic = make_topic(1)
    producer = kafka_client.connect(KafkaProducer, broker.settings, transactional_id=unique_name())
    try:
        producer.init_transactions()
        for end in (producer.commit_transaction, producer.abort_transaction):
            producer.begin_transaction()
            producer.send(topic, b"v", partition=0)
            producer.flush(10)
            end()
    finally:
        producer.close(timeout=5)
    member = join(broker.settings, unique_name(), [topic])
    partition = TopicPartition(topic, 0)
    wait_for(lambda: member.places.get(partition) == 4, "past a record, what was aborted, and a mark behind either")
    assert member.offsets(partition) == [0]


# ---- sinks


@pytest.fixture
def open_sink(unique_name: type_name) -> Iterator[Callable[..., TransactionalSink]]:
    sinks: list[TransactionalSink] = []

    def open_sink(
        kafka: KafkaSettings, *topics: str, meter: metrics.Metrics | None = None, slot: str | None = None
    ) -> TransactionalSink:
        slot = slot or unique_name()
        sink = TransactionalSink(kafka, topics, meter or metrics.Metrics(), transactional_id=lambda: slot)
        sinks.append(sink)
        sink.open()
        return sink

    yield open_sink
    for sink in sinks:
        sink.abandon()


type_open_sink = Callable[..., TransactionalSink]


def message(topic: str, value: bytes | None = b"v", key: bytes | None = b"k", **more: Any) -> Message:
    return Message(topic, key, value, more.pop("headers", ()), more.pop("timestamp_ms", -1), **more)


def acknowledged(futures: list[Any]) -> Any:
    """The partition of a single batch, once it is acknowledged."""
    (future,) = futures
    assert future.wait(10)
    assert failure(future) is None
    return future.topic_partition


def kafka_threads() -> set[threading.Thread]:
    return {
        thread
        for thread in threading.enumerate()
        if "kafka" in f"{thread.name} {type(thread).__module__} {type(thread).__name__}".lower()
    }


# ---- the group (T4, T5, T7, T8, T9)


def test_three_members_settle_quickly_and_share_the_partitions(
    broker: RunningBroker, make_topic: type_make_topic, unique_name: type_name, join: type_join
):
    """T7: the client starts join after join when it is polled for less than 200 ms, or late."""
    topic, group = make_topic(6), unique_name()
    members = [join(broker.settings, group, [topic]) for _ in range(3)]
    seconds = wait_for(
        lambda: (
            sorted(len(m.owned) for m in members) == [2, 2, 2] and len(set().union(*(m.owned for m in members))) == 6
        ),
        "two partitions each",
        20,
    )
    assert seconds < 20
    epochs = [dict(member.owned) for member in members]
    time.sleep(2)
    assert [dict(member.owned) for member in members] == epochs, "settled means that nothing moves any more"
    for member in members:
        member.source.membership(1.0)
    for member in members:
        member.stop()
    # Dynamic members leave at once: nobody waits for a session to run out.
    assert group_members(broker.settings, group) == []


def assigned(consumer: KafkaConsumer) -> set[Any]:
    """Which partitions a bare member has after another poll."""
    kafka_client.finish_join(consumer)
    consumer.poll(250)
    return set(consumer.assignment())


def test_a_join_that_outlives_its_poll_is_finished(
    broker: RunningBroker, make_topic: type_make_topic, unique_name: type_name, join: type_join
):
    """The client forgets why it joins once it has handed out the partitions: a poll that ends just then ends the join."""
    topic = make_topic(1)

    def premise() -> set[Any]:
        consumer = KafkaConsumer(
            bootstrap_servers=broker.bootstrap_servers,
            group_id=unique_name(),
            partition_assignment_strategy=[CooperativeStickyAssignor],
            auto_offset_reset="earliest",
        )
        try:
            consumer.subscribe([topic])
            wait_for(lambda: assigned(consumer), "the first partition")
            expire_the_next_join(consumer)
            add_partitions(broker.settings, topic, consumer, 2)
            wait_for(lambda: consumer.poll(250) is not None and consumer._coordinator.rejoining, "the join")
            for _ in range(20):
                consumer.poll(250)
            assert consumer._coordinator.rejoining, "premise: five seconds later it is still joining"
            return set(consumer.assignment())
        finally:
            consumer.close()

    assert premise() == {KafkaTopicPartition(topic, 0)}
    member = join(broker.settings, unique_name(), [topic])
    wait_for(lambda: len(member.owned) == 2, "the first partitions")
    expired = expire_the_next_join(member.source._consumer)
    add_partitions(broker.settings, topic, member.source._consumer, 3)
    wait_for(lambda: len(member.owned) == 3, "the new partition")
    assert expired.is_set()


def expire_the_next_join(consumer: Any) -> threading.Event:
    """Have the poll that begins the next join run out of time when the join is done and not yet taken."""
    coordinator, expired = consumer._coordinator, threading.Event()
    manager, wait = coordinator._manager, coordinator._manager.wait_for

    async def wait_for_too_long(future: Any, timeout_ms: float) -> Any:
        if future is coordinator._join_task and not expired.is_set():
            expired.set()
            await future
            raise kafka_errors.KafkaTimeoutError
        return await wait(future, timeout_ms)

    manager.wait_for = wait_for_too_long
    return expired


def add_partitions(kafka: KafkaSettings, topic: str, consumer: Any, total: int) -> None:
    """Add partitions, and let the consumer hear of them."""
    with kafka_client.admin(kafka) as client:
        client.create_partitions({topic: total})
        wait_for(lambda: len(client.describe_topics([topic])[0]["partitions"]) == total, "the partitions")
    wait_for(
        lambda: (
            consumer._cluster.request_update() and len(consumer._cluster.partitions_for_topic(topic) or ()) == total
        ),
        "the metadata",
    )


def test_a_partition_that_comes_back_starts_at_what_is_committed(
    broker: RunningBroker, make_topic: type_make_topic, unique_name: type_name, join: type_join
):
    """T8, T9: the client keeps the position, or a cached offset, of an earlier assignment."""
    topic, group = make_topic(4), unique_name()
    produce(broker.settings, topic, 20, partitions=4)
    partitions = [TopicPartition(topic, n) for n in range(4)]
    stays = join(broker.settings, group, [topic])
    wait_for(lambda: len(stays.records) == 80, "all records, none committed")
    stays.source.commit({partition: Position(5) for partition in partitions})
    wait_for(lambda: committed(broker.settings, group) == dict.fromkeys(partitions, 5), "the commit")

    for turn, position in enumerate((8, 12)):
        comes = join(broker.settings, group, [topic])
        wait_for(lambda c=comes: len(c.owned) == 2 and len(stays.owned) == 2, "two each")
        away = sorted(comes.owned)
        start = 5 if turn == 0 else None
        for partition in away:
            if start is not None:
                assert comes.placed[partition][-1].offset == start, "what was in flight and not committed is read again"
            wait_for(
                lambda p=partition, c=comes: (found := c.offsets(p)) and found[-1] == 19, f"{partition} to its end"
            )
            first = comes.placed[partition][-1].offset
            assert comes.offsets(partition) == list(range(first, 20)), "none skipped"
        comes.source.commit({partition: Position(position) for partition in away})
        wait_for(lambda a=away, p=position: all(committed(broker.settings, group)[tp] == p for tp in a), "the commit")
        before = dict(stays.owned)
        comes.stop()
        wait_for(lambda: len(stays.owned) == 4, "back with the first")
        for partition in away:
            assert stays.placed[partition][-1].offset == position
            epoch = stays.owned[partition]
            wait_for(
                lambda p=partition, e=epoch, o=position: stays.offsets(p, e) == list(range(o, 20)),
                f"{partition} from {position} on, none skipped",
            )
        for partition, epoch in before.items():
            assert stays.owned[partition] == epoch, "cooperative: what need not move does not"


def test_an_offset_fetch_that_was_given_up_does_not_answer_later(
    broker: RunningBroker, make_topic: type_make_topic, unique_name: type_name, join: type_join
):
    """T8: the client keeps a fetch that it did not wait for, and answers with it what is asked after a commit."""
    topic, group = make_topic(1), unique_name()
    partition = TopicPartition(topic, 0)
    tp = KafkaTopicPartition(*partition)
    member = join(broker.settings, group, [topic])
    wait_for(lambda: member.owned, "the assignment")
    coordinator = member.source._consumer._coordinator

    def given_up() -> None:
        with contextlib.suppress(kafka_errors.KafkaTimeoutError):
            coordinator.fetch_committed_offsets([tp], timeout_ms=0)
        wait_for(lambda: all(fetch.is_done for fetch in coordinator._offset_fetch_futures.values()), "its answer")

    given_up()
    assert coordinator._offset_fetch_futures, "premise: the answer is kept"
    member.source.commit({partition: Position(7)})
    wait_for(lambda: committed(broker.settings, group) == {partition: 7}, "the commit")
    assert member.source.committed([partition]) == {partition: Position(7)}


def test_no_membership_is_given_before_the_group_has_one_or_after_it_is_gone(
    broker: RunningBroker, make_topic: type_make_topic, unique_name: type_name, join: type_join
):
    """T4: a member that was thrown out shows generation -1, and the broker lets that commit anything."""
    topic, group, instance = make_topic(), unique_name(), unique_name()
    unborn = KafkaSource(
        SourceSettings(topics=(topic,), group=group),
        broker.settings,
        LimitSettings(),
        client_id="x",
        group_instance_id=None,
        meter=metrics.Metrics(),
    )
    with pytest.raises(CommitError, match="not a stable member"):
        unborn.membership(0.1)

    member = join(broker.settings, group, [topic], instance=instance)
    wait_for(lambda: member.owned, "the assignment")
    found: Any = member.source.membership(5.0)
    assert found.generation_id >= 1
    assert found.member_id
    member.hold.set()
    assert member.held.wait(5)
    with kafka_client.admin(broker.settings) as client:
        client.remove_group_members(group, [MemberToRemove(group_instance_id=instance)])
    consumer = member.source._consumer
    wait_for(lambda: consumer.group_metadata().generation_id < 0, "premise: the client shows generation -1", 10)
    with pytest.raises(CommitError, match="not a stable member"):
        member.source.membership(0.3)
    member.hold.clear()
    wait_for(lambda: member.lost, "on_partitions_lost")
    again: Any = member.source.membership(10.0)
    assert again.member_id != found.member_id


def test_a_pending_commit_is_waited_for(
    broker: RunningBroker,
    make_topic: type_make_topic,
    unique_name: type_name,
    join: type_join,
    open_sink: type_open_sink,
):
    """T5: only a read_committed consumer waits for a predecessor's transaction; others start at the old offset."""
    topic, out, group = make_topic(), make_topic(), unique_name()
    partition = TopicPartition(topic, 0)
    member = join(broker.settings, group, [topic])
    wait_for(lambda: member.owned, "the assignment")
    sink = open_sink(broker.settings, out)
    sink.write([message(out)])
    manager = sink._producer._transaction_manager
    offsets = {KafkaTopicPartition(*partition): OffsetAndMetadata(7, "", -1)}
    sink._wait(manager.send_offsets_to_transaction(offsets, member.source.membership(5.0)), "the offsets")

    bare = kafka_client.connect(
        KafkaConsumer, broker.settings, group_id=group, isolation_level="read_uncommitted", enable_auto_commit=False
    )
    try:
        assert bare.committed(KafkaTopicPartition(*partition)) is None, "premise: it does not wait"
    finally:
        bare.close()
    with pytest.raises(RetryableError, match="coordinator does not say"):
        member.source.committed([partition])
    sink._wait(manager.begin_commit(), "the commit")
    assert member.source.committed([partition]) == {partition: Position(7)}


def test_a_static_member_is_removed_when_it_stops(
    broker: RunningBroker, make_topic: type_make_topic, unique_name: type_name, join: type_join
):
    topic, group, instance = make_topic(), unique_name(), unique_name()
    member = join(broker.settings, group, [topic], instance=instance)
    wait_for(lambda: member.owned, "the assignment")
    assert [found["group_instance_id"] for found in group_members(broker.settings, group)] == [instance]
    member.stop()
    assert group_members(broker.settings, group) == [], "else its partitions stay reserved until the session runs out"


def test_what_a_static_member_gave_up_as_it_died_gets_its_new_owner(
    broker: RunningBroker,
    make_topic: type_make_topic,
    unique_name: type_name,
    join: type_join,
    monkeypatch: pytest.MonkeyPatch,
):
    """Between the rounds of a cooperative rebalance: the broker gives its successor its place, and asks nobody to join anew."""
    monkeypatch.setattr(handover_room, "LOOK_S", 2.0)
    # Nobody joins anew before the premise is seen.
    seen, left = threading.Event(), handover_room.Handover._left
    monkeypatch.setattr(handover_room.Handover, "_left", lambda self: left(self) if seen.is_set() else None)
    topic, group, names = make_topic(4), unique_name(), (unique_name(), unique_name())
    every = {TopicPartition(topic, number) for number in range(4)}
    first = join(broker.settings, group, [topic], instance=names[0])
    wait_for(lambda: set(first.owned) == every, "the assignment")
    dying, buried = threading.Event(), threading.Event()

    def die(_: object) -> None:
        dying.set()
        buried.wait()

    first.parting = die  # type: ignore[method-assign]
    second = join(broker.settings, group, [topic], instance=names[1])
    try:
        assert dying.wait(WAIT_S)
        third = join(broker.settings, group, [topic], instance=names[0])
        wait_for(lambda: third.owned, "its predecessor's place")
        assert not second.owned, "premise: what was given up is nobody's"
        seen.set()
        wait_for(lambda: set(third.owned) | set(second.owned) == every, "an owner for all partitions")
        assert len(second.owned) == 2
    finally:
        buried.set()


def test_a_client_that_fails_to_leave_leaves_no_thread_behind(
    broker: RunningBroker, make_topic: type_make_topic, unique_name: type_name, join: type_join
):
    group = unique_name()
    member = join(broker.settings, group, [make_topic()])
    wait_for(lambda: member.owned, "the assignment")

    def fails(_: object) -> None:
        raise ZeroDivisionError

    member.parting = fails  # type: ignore[method-assign]
    assert [thread for thread in threading.enumerate() if group in thread.name], (
        "premise: the client's thread has its name"
    )
    member.stop()
    wait_for(lambda: not [thread for thread in threading.enumerate() if group in thread.name], "the client's end")


# ---- where reading starts


def test_a_partition_is_not_read_before_its_place_is_known(
    broker: RunningBroker, make_topic: type_make_topic, unique_name: type_name, join: type_join
):
    """Files know better than the group how far they are, and a store takes its time to say so."""
    topic, group = make_topic(1), unique_name()
    partition = TopicPartition(topic, 0)
    produce(broker.settings, topic, 10)
    first = join(broker.settings, group, [topic])
    wait_for(lambda: len(first.records) == 10, "the records")
    first.source.commit({partition: Position(8, {"kafka:out": 9})})
    first.stop()
    late = join(broker.settings, group, [topic], look_ups=5, back=3)
    wait_for(lambda: len(late.records) == 5, "the records from its place on")
    assert late.look_ups == -1, "asked until it was known"
    assert [position.offset for position in late.placed[partition]] == [5]
    assert late.placed[partition][0].outputs == {"kafka:out": 9}
    assert late.offsets(partition) == [5, 6, 7, 8, 9]


def test_latest_means_the_first_start_and_a_restart_loses_nothing(
    broker: RunningBroker,
    make_topic: type_make_topic,
    unique_name: type_name,
    join: type_join,
    monkeypatch: pytest.MonkeyPatch,
):
    topic, group = make_topic(2), unique_name()
    partitions = [TopicPartition(topic, n) for n in range(2)]
    produce(broker.settings, topic, 5, partitions=2)
    commit, failed = KafkaConsumer.commit, threading.Event()

    def fails_once(*arguments: Any, **more: Any) -> None:
        if not failed.is_set():
            failed.set()
            raise kafka_errors.RebalanceInProgressError
        commit(*arguments, **more)

    monkeypatch.setattr(KafkaConsumer, "commit", fails_once)
    first = join(broker.settings, group, [topic], start="latest")
    wait_for(lambda: len(first.owned) == 2, "the assignment")
    assert failed.is_set()
    assert committed(broker.settings, group) == dict.fromkeys(partitions, 5), "before the first record"
    first.stop()
    produce(broker.settings, topic, 3, partitions=2, start=5)
    second = join(broker.settings, group, [topic], start="latest")
    wait_for(lambda: len(second.records) == 6, "what came between")
    assert {r.origin.offset for r in second.records} == {5, 6, 7}
    assert first.records == []


def test_a_timestamp_starts_at_the_first_record_from_then_on(
    broker: RunningBroker, make_topic: type_make_topic, unique_name: type_name, join: type_join
):
    topic, group = make_topic(2, retention_ms=-1), unique_name()
    moment = datetime.datetime(2025, 5, 1, 12, 0, tzinfo=datetime.UTC)
    at = int(moment.timestamp() * 1000)
    for n in range(6):
        produce(broker.settings, topic, 1, start=n, timestamp_ms=at + (n - 3) * 60_000)
    member = join(broker.settings, group, [topic], start=moment.isoformat())
    wait_for(lambda: len(member.records) == 3, "the records from then on")
    assert [r.value for r in member.records] == [b"v3", b"v4", b"v5"]
    (place,) = member.placed[TopicPartition(topic, 1)]
    assert (place.offset, place.outputs) == (0, {}), "a partition with nothing later starts at its end"


@pytest.fixture
def leaderless(monkeypatch: pytest.MonkeyPatch) -> set[TopicPartition]:
    """Partitions that clients believe to have no leader, until they are taken out again."""
    without = set[TopicPartition]()
    leader = ClusterMetadata.leader_for_partition

    def led(cluster: Any, partition: Any) -> Any:
        return -1 if TopicPartition(*partition) in without else leader(cluster, partition)

    monkeypatch.setattr(ClusterMetadata, "leader_for_partition", led)
    return without


@pytest.mark.parametrize("start", ["earliest", "latest", "2025-05-01T12:00:00+00:00"])
def test_a_partition_without_a_leader_holds_up_no_other_and_starts_where_it_would_have(
    broker: RunningBroker,
    make_topic: type_make_topic,
    unique_name: type_name,
    join: type_join,
    leaderless: set[TopicPartition],
    start: str,
):
    topic, group = make_topic(2, retention_ms=-1), unique_name()  # its records are old
    here, away = TopicPartition(topic, 0), TopicPartition(topic, 1)
    at = int(datetime.datetime(2025, 5, 1, 12, 0, tzinfo=datetime.UTC).timestamp() * 1000)
    for n in range(4):
        produce(broker.settings, topic, 1, partitions=2, start=n, timestamp_ms=at + (n - 2) * 60_000)
    if start == "latest":  # partitions that are new to a group are read whole
        set_committed(broker.settings, group, {here: 4})
    leaderless.add(away)
    member = join(broker.settings, group, [topic], start=start)
    wait_for(lambda: here in member.owned, "the partition that has a leader")
    produce(broker.settings, topic, 2, start=4)
    first = {"earliest": 0, "latest": 4}.get(start, 2)
    wait_for(lambda: member.offsets(here) == list(range(first, 6)), "its records")
    assert away not in member.owned and committed(broker.settings, group).get(away) is None
    leaderless.clear()
    first = 0 if start == "latest" else first
    wait_for(lambda: member.offsets(away) == list(range(first, 4)), "the other's records")
    assert member.lost == 0


def test_latest_is_the_end_for_a_partition_that_had_no_leader_when_the_group_came(
    broker: RunningBroker,
    make_topic: type_make_topic,
    unique_name: type_name,
    join: type_join,
    leaderless: set[TopicPartition],
):
    topic, group = make_topic(1), unique_name()
    produce(broker.settings, topic, 3)
    leaderless.add(partition := TopicPartition(topic, 0))
    member = join(broker.settings, group, [topic], start="latest")
    wait_for(lambda: member.source._looked_for, "a look")
    time.sleep(1.5)
    leaderless.clear()
    wait_for(lambda: member.owned, "the place")
    assert [at.offset for at in member.placed[partition]] == [3]
    assert committed(broker.settings, group) == {partition: 3}


def test_a_member_whose_partitions_are_all_without_leaders_stays_in_its_group(
    broker: RunningBroker,
    make_topic: type_make_topic,
    unique_name: type_name,
    join: type_join,
    leaderless: set[TopicPartition],
):
    topic, group = make_topic(1), unique_name()
    produce(broker.settings, topic, 3)
    leaderless.add(partition := TopicPartition(topic, 0))
    member = join(broker.settings, group, [topic])
    poll, polls = member.source._turn, itertools.count()
    wait_for(lambda: member.source._ours.unplaced, "the assignment")
    member.source._turn = lambda: (next(polls), poll())[1]  # type: ignore[method-assign]
    wait_for(lambda: next(polls) > 20, "turn after turn")
    assert member.source._member.consumer._coordinator.stable() and partition not in member.owned
    leaderless.clear()
    wait_for(lambda: len(member.records) == 3, "the records")


def test_what_the_client_says_of_silence_without_a_leader_ends_nothing(
    broker: RunningBroker,
    make_topic: type_make_topic,
    unique_name: type_name,
    join: type_join,
    leaderless: set[TopicPartition],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(silence_room, "LISTEN_S", 0.3)
    topic = make_topic(2)
    member = join(broker.settings, unique_name(), [topic])
    wait_for(lambda: len(member.owned) == 2, "the assignment")
    leaderless.add(TopicPartition(topic, 1))
    asked = member.source._member._silence._look
    looks = itertools.count()
    monkeypatch.setattr(member.source._member._silence, "_look", lambda excused: (next(looks), asked(excused))[1])
    wait_for(lambda: next(looks) > 20, "looks")
    produce(broker.settings, topic, 3)
    wait_for(lambda: len(member.records) == 3, "the records of the other")
    assert member.error is None and member.meter.value(metrics.CLIENTS_REPLACED) == 0


def test_a_partition_is_placed_by_what_the_client_hears_of_its_topic_after_the_assignment(
    broker: RunningBroker, make_topic: type_make_topic, unique_name: type_name, join: type_join
):
    """A member that owned nothing of a topic may not know yet that it was made anew, and would write what it was before."""
    topic, group = make_topic(1), unique_name()
    produce(broker.settings, topic, 3)
    first = join(broker.settings, group, [topic])
    wait_for(lambda: len(first.owned) == 1, "the assignment")
    second = join(broker.settings, group, [topic])
    wait_for(lambda: len(group_members(broker.settings, group)) == 2 and len(first.owned) == 1, "the second member")
    wait_for(second.source._member.consumer._coordinator.stable, "its joining")
    cluster, answer = second.source._member.consumer._cluster, Future()
    update = cluster.request_update
    cluster.request_update = lambda: (update(), answer)[1]
    first.stop()
    wait_for(lambda: second.source._ours.unplaced, "the assignment")
    time.sleep(1.5)
    assert not second.placed
    answer.success(cluster)
    wait_for(lambda: len(second.records) == 3, "the records")


def test_what_retention_took_is_counted_and_reading_goes_on_behind_it(
    broker: RunningBroker, make_topic: type_make_topic, unique_name: type_name, join: type_join
):
    topic, group = make_topic(), unique_name()
    partition = TopicPartition(topic, 0)
    produce(broker.settings, topic, 10)
    set_committed(broker.settings, group, {partition: 2})
    with kafka_client.admin(broker.settings) as client:
        client.delete_records({KafkaTopicPartition(*partition): 6})
    member = join(broker.settings, group, [topic])
    wait_for(lambda: len(member.records) == 4, "the records that are left")
    assert member.offsets(partition) == [6, 7, 8, 9]
    assert member.skips == [(partition, 6)] and not member.lost
    assert member.meter.value(metrics.OFFSETS_SKIPPED) == 4
    member.stop()
    assert member.error is None


def test_a_rebalance_between_two_steps_of_a_turn_does_not_end_the_source(
    broker: RunningBroker,
    make_topic: type_make_topic,
    unique_name: type_name,
    join: type_join,
    monkeypatch: pytest.MonkeyPatch,
):
    """The client raises KeyError for a partition that went away before it could be paused."""
    member = join(broker.settings, unique_name(), [make_topic()])
    wait_for(lambda: member.owned, "the assignment")
    stranger = KafkaTopicPartition("not-ours", 0)
    with pytest.raises(KeyError):
        member.source._consumer.pause(stranger)
    assignment, raised = member.source._consumer.assignment, threading.Event()

    def stale() -> set[Any]:
        raised.set()
        return {*assignment(), stranger}

    with monkeypatch.context() as patch:
        patch.setattr(member.source._consumer, "assignment", stale)
        member.source.quiesce()
        assert raised.wait(5)
        time.sleep(0.5)
    assert member.thread.is_alive()


def test_latest_takes_the_end_once_and_partitions_that_are_added_are_read_whole(
    broker: RunningBroker, make_topic: type_make_topic, unique_name: type_name, join: type_join
):
    topic, group = make_topic(2), unique_name()
    produce(broker.settings, topic, 5, partitions=2)
    member = join(broker.settings, group, [topic], start="latest")
    wait_for(lambda: len(member.owned) == 2, "the assignment")
    assert {at.offset for places in member.placed.values() for at in places} == {5}
    with kafka_client.admin(broker.settings) as client:
        client.create_partitions({topic: 3})
        wait_for(lambda: len(client.describe_topics([topic])[0]["partitions"]) == 3, "the partition")
    producer = kafka_client.connect(KafkaProducer, broker.settings)
    try:
        wait_for(lambda: producer.partitions_for(topic) == {0, 1, 2}, "the producer to hear of it")
        for n in range(4):
            producer.send(topic, b"n%d" % n, partition=2)
        producer.flush(10)
    finally:
        producer.close(timeout=5)
    added = TopicPartition(topic, 2)
    assert added not in member.owned, "premise: records are there before the reader hears of the partition"
    member.source._consumer._cluster.request_update()
    wait_for(lambda: len(member.records) == 4, "all of the new partition")
    assert member.offsets(added) == [0, 1, 2, 3]
    assert committed(broker.settings, group)[added] == 0
    assert member_room.METADATA_MAX_AGE_MS <= 30_000
    assert member.source._consumer.config["metadata_max_age_ms"] == member_room.METADATA_MAX_AGE_MS


def test_latest_means_the_end_for_a_reader_that_is_late_to_the_first_start_too(
    broker: RunningBroker,
    make_topic: type_make_topic,
    unique_name: type_name,
    join: type_join,
    monkeypatch: pytest.MonkeyPatch,
):
    """Its siblings' commits must not make its partition look added: it would read the whole past."""
    topic, group = make_topic(2), unique_name()
    produce(broker.settings, topic, 5, partitions=2)
    place, may = KafkaSource._place, set[KafkaSource]()
    monkeypatch.setattr(KafkaSource, "_place", lambda source: place(source) if source in may else None)
    members = [join(broker.settings, group, [topic], start="latest") for _ in range(2)]
    wait_for(lambda: all(len(member.source._ours.owned) == 1 for member in members), "one partition each")
    may.add(members[0].source)
    wait_for(lambda: len(committed(broker.settings, group)) == 1, "the first one's commit")
    time.sleep(1)
    assert not members[0].owned, "it reads nothing before its sibling has its place"
    may.add(members[1].source)
    wait_for(lambda: all(member.owned for member in members), "both")
    assert committed(broker.settings, group) == {TopicPartition(topic, n): 5 for n in range(2)}
    assert [at.offset for member in members for places in member.placed.values() for at in places] == [5, 5]


@pytest.mark.parametrize("seen", [True, False], ids=["seen_gone", "never_seen_gone"])
@pytest.mark.parametrize("start", ["earliest", "latest"])
def test_a_topic_that_is_made_anew_is_read_whole(
    broker: RunningBroker, make_topic: type_make_topic, unique_name: type_name, join: type_join, start: str, seen: bool
):
    """The client goes on at the old topic's offset; the end would be no better."""
    topic, group = make_topic(), unique_name()
    partition = TopicPartition(topic, 0)
    member = join(broker.settings, group, [topic], start=start)
    wait_for(lambda: member.owned, "the assignment")
    produce(broker.settings, topic, 9)
    wait_for(lambda: len(member.records) == 9, "the old topic's records")
    member.source.commit({partition: Position(9)})
    wait_for(lambda: committed(broker.settings, group).get(partition) == 9, "the commit")
    if seen:
        kafka_topics.delete_topics(broker.settings, [topic])
        wait_for(lambda: not member.owned, "the reader to see it gone")
    member.hold.set()
    assert member.held.wait(5)
    if not seen:
        kafka_topics.delete_topics(broker.settings, [topic])
    kafka_topics.create_topics(broker.settings, {topic: 1})
    produce(broker.settings, topic, 4, start=100)
    member.hold.clear()
    member.source._consumer._cluster.request_update()
    wait_for(lambda: len(member.records) == 13, "all of the new topic's records")
    assert [(r.origin.offset, r.value) for r in member.records[9:]] == [(n, b"v%d" % (100 + n)) for n in range(4)]


@pytest.mark.parametrize("start", ["earliest", "latest"])
def test_a_commit_that_outlives_its_topic_says_nothing_of_the_new_one(
    broker: RunningBroker, make_topic: type_make_topic, unique_name: type_name, join: type_join, start: str
):
    """A transaction that ends after the deletion commits the old topic's offset, and the broker takes it."""
    topic, group = make_topic(), unique_name()
    partition = TopicPartition(topic, 0)
    produce(broker.settings, topic, 9)
    stale = write_position(Position(5, {"kafka:out": 5}, "0f" * 16))
    set_committed(broker.settings, group, {partition: 5}, stale)
    member = join(broker.settings, group, [topic], start=start)
    wait_for(lambda: len(member.records) == 9, "all of the new topic's records")
    (position,) = member.placed[partition]
    assert position.offset == 0 and not position.outputs
    again = write_position(replace(position, offset=9))
    member.stop()
    set_committed(broker.settings, group, {partition: 9}, again)
    produce(broker.settings, topic, 1, start=9)
    successor = join(broker.settings, group, [topic], start=start)
    wait_for(lambda: successor.offsets(partition) == [9], "what came after its own commit")


def test_a_log_that_ends_before_what_is_committed_is_read_from_its_end_on(
    broker: RunningBroker, make_topic: type_make_topic, unique_name: type_name, join: type_join
):
    """Positions of outputs go back with it: they would take nothing of what comes."""
    topic, group = make_topic(), unique_name()
    partition = TopicPartition(topic, 0)
    produce(broker.settings, topic, 5)
    set_committed(broker.settings, group, {partition: 900}, write_position(Position(900, {"a": 1000, "b": 3})))
    member = join(broker.settings, group, [topic])
    wait_for(lambda: len(member.placed[partition]) == 2, "the second place")
    assert [(at.offset, at.outputs) for at in member.placed[partition]] == [
        (900, {"a": 1000, "b": 3}),
        (5, {"a": 5, "b": 3}),
    ]
    assert committed(broker.settings, group) == {partition: 5}
    produce(broker.settings, topic, 2, start=5)
    wait_for(lambda: member.offsets(partition) == [5, 6], "what came then")
    assert member.meter.value(metrics.LOGS_CUT) == 1 and member.lost == 1


def test_a_log_that_was_truncated_is_read_again_from_where_it_differs(
    broker: RunningBroker,
    make_topic: type_make_topic,
    unique_name: type_name,
    join: type_join,
    monkeypatch: pytest.MonkeyPatch,
):
    """The client says so once, and goes on at its old place."""
    topic, group = make_topic(), unique_name()
    partition = TopicPartition(topic, 0)
    produce(broker.settings, topic, 5)
    member = join(broker.settings, group, [topic])
    wait_for(lambda: len(member.records) == 5, "the records")
    member.source.commit({partition: Position(5, {"a": 5})})
    wait_for(lambda: committed(broker.settings, group) == {partition: 5}, "the commit")
    poll, said = member.source._member.poll, threading.Event()

    def truncated(most: int) -> Any:
        if not said.is_set():
            said.set()
            raise kafka_errors.LogTruncationError({KafkaTopicPartition(*partition): OffsetAndMetadata(3, "", 0)})
        return poll(most)

    monkeypatch.setattr(member.source._member, "poll", truncated)
    wait_for(lambda: member.offsets(partition) == [0, 1, 2, 3, 4, 3, 4], "what differs")
    assert member.placed[partition][1].outputs == {"a": 3}
    assert committed(broker.settings, group) == {partition: 3}
    assert member.meter.value(metrics.LOGS_CUT) == 1 and member.lost == 1


# ---- batches that the client cannot read


@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
def test_every_codec_that_a_producer_may_use_is_read(
    broker: RunningBroker, make_topic: type_make_topic, unique_name: type_name, join: type_join, codec: str
):
    topic = make_topic()
    values = [b"%d " % n * 50_000 for n in range(12)]
    producer = kafka_client.connect(
        KafkaProducer,
        broker.settings,
        compression_type=codec,
        linger_ms=200,
        batch_size=1 << 20,
        max_request_size=8 << 20,
    )
    try:
        for value in values:
            producer.send(topic, value, headers=[("h", b"1")])
        producer.flush(10)
    finally:
        producer.close(timeout=5)
    member = join(broker.settings, unique_name(), [topic])
    wait_for(lambda: len(member.records) == len(values), "the records")
    assert [r.value for r in member.records] == values
    assert member.meter.value(metrics.BATCHES_UNREADABLE) == 0


def test_header_names_that_are_not_utf8_pass_through_byte_for_byte(
    broker: RunningBroker,
    make_topic: type_make_topic,
    unique_name: type_name,
    join: type_join,
    open_sink: type_open_sink,
    monkeypatch: pytest.MonkeyPatch,
):
    topic, out = make_topic(), make_topic()
    raw = b"caf\xe9 \xed\xa0\x80"
    produce(broker.settings, topic, 1, headers=[("name-ü", b"0")])
    produce(broker.settings, topic, 3, start=1, headers=[(Raw(raw), b"1"), ("name-ü", b"2")])
    with monkeypatch.context() as patch:
        patch.setattr(kafka_headers, "keep_all_names", lambda: None)
        patch.setattr(DefaultRecordBatch, "_read_msg", kafka_headers._strict)
        bare = kafka_client.bare_consumer(broker.settings, auto_offset_reset="earliest")
        try:
            bare.assign([KafkaTopicPartition(topic, 0)])
            with pytest.raises(kafka_errors.CorruptRecordError):  # premise: the client drops the batch
                wait_for(lambda: bare.poll(250) and False, "the error")
        finally:
            bare.close()

    member = join(broker.settings, unique_name(), [topic])
    wait_for(lambda: len(member.records) == 4, "the records")
    assert [[(n.encode(), v) for n, v in r.headers] for r in member.records] == [
        [("name-ü".encode(), b"0")],
        *[[(raw, b"1"), ("name-ü".encode(), b"2")]] * 3,
    ]
    record = pickle.loads(pickle.dumps(member.records[-1]))
    sink = open_sink(broker.settings, out)
    messages = [
        render_tombstone(record, out),
        render_dead_letter(record, DeadLetter("decode", "invalid_json", "it is not JSON"), out, "f"),
    ]
    assert all(sink.refuses(written) is None for written in messages)
    sink.write(messages)
    sink.commit({TopicPartition(topic, 0): Position(4)}, member.source.membership(5.0))
    for written in read(broker.settings, out):
        assert written.headers[0][0].encode() == raw
        assert written.headers[1][0] == "name-ü"


class Raw(str):
    """A header name that a producer of another language writes."""

    def __new__(cls, raw: bytes) -> Raw:
        name = super().__new__(cls, raw.decode("latin-1"))
        name.raw = raw
        return name

    raw: bytes

    def encode(self, encoding: str = "utf-8", errors: str = "strict") -> bytes:
        return self.raw


def test_a_batch_that_cannot_be_read_holds_back_its_partition_alone_and_loses_nothing(
    broker: RunningBroker,
    make_topic: type_make_topic,
    unique_name: type_name,
    join: type_join,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    """The client keeps a batch that it cannot parse, and each later poll spins on it for ever."""
    topic, group = make_topic(2), unique_name()
    produce(broker.settings, topic, 3, partitions=2)
    producer = kafka_client.connect(KafkaProducer, broker.settings, compression_type="gzip")
    try:
        producer.send(topic, b"long enough to be sent compressed" * 99, partition=0)
        producer.flush(10)
    finally:
        producer.close(timeout=5)
    produce(broker.settings, topic, 1, start=4)
    monkeypatch.setattr(codec, "has_gzip", lambda: False)
    caplog.set_level("ERROR", "stream_embedder")

    def premise() -> threading.Thread:
        bare = kafka_client.bare_consumer(broker.settings, auto_offset_reset="earliest", max_poll_records=2)
        bare.assign([KafkaTopicPartition(topic, 0)])
        with pytest.raises(kafka_errors.UnsupportedCodecError):
            wait_for(lambda: bare.poll(250) and False, "the error")

        def once_more() -> None:
            # Taking a batch away while it is being read is no way to stop a client; there is no other.
            with contextlib.suppress(kafka_errors.UnsupportedCodecError, TypeError):
                bare.poll(250)

        thread = threading.Thread(target=once_more, daemon=True)
        thread.start()
        thread.join(2)
        assert thread.is_alive(), "premise: the next poll never returns"
        bare._fetcher._next_partition_records.drain()  # lets it go
        thread.join(5)
        bare.close()
        return thread

    assert not premise().is_alive()
    member = join(broker.settings, group, [topic])
    wait_for(lambda: member.meter.value(metrics.BATCHES_UNREADABLE, topic=topic) >= 2, "a second attempt")
    bad, good = TopicPartition(topic, 0), TopicPartition(topic, 1)
    assert member.offsets(bad) == [0, 1, 2]
    produce(broker.settings, topic, 1, partitions=2, start=5)
    wait_for(lambda: member.offsets(good) == [0, 1, 2, 3], "the other partition")
    assert member.offsets(bad) == [0, 1, 2], "nothing is skipped"
    assert time.monotonic() - member.source.last_poll < 5
    assert member.source.membership(1.0)
    lines = [record.getMessage() for record in caplog.records if "cannot be read" in record.getMessage()]
    assert len(lines) == 1, "once in thirty seconds"
    assert f"partition={bad} offset=3 attempts=1" in lines[0]
    assert "UnsupportedCodecError" in lines[0]
    assert "gzip" in lines[0]
    monkeypatch.setattr(codec, "has_gzip", lambda: True)
    wait_for(lambda: member.offsets(bad) == [0, 1, 2, 3, 4, 5], "the partition goes on as soon as it can be read", 60)


def test_a_batch_whose_checksum_is_wrong_is_held_back_too(
    broker: RunningBroker,
    make_topic: type_make_topic,
    unique_name: type_name,
    join: type_join,
    monkeypatch: pytest.MonkeyPatch,
):
    topic = make_topic()
    for start, count in ((0, 2), (2, 1), (3, 2)):  # a batch each at least
        produce(broker.settings, topic, count, start=start)
    validate = DefaultRecordBatch.validate_crc
    monkeypatch.setattr(DefaultRecordBatch, "validate_crc", lambda batch: batch.base_offset != 2 and validate(batch))
    member = join(broker.settings, unique_name(), [topic])
    wait_for(lambda: member.meter.value(metrics.BATCHES_UNREADABLE) >= 2, "a second attempt")
    assert [r.origin.offset for r in member.records] == [0, 1]
    assert member.source.membership(1.0)
    monkeypatch.setattr(DefaultRecordBatch, "validate_crc", validate)
    wait_for(lambda: [r.origin.offset for r in member.records] == [0, 1, 2, 3, 4], "the rest")


# ---- a client that falls silent


class Indifferent(ConsumerRebalanceListener):  # type: ignore[misc]
    """Lets partitions come and go."""

    def on_partitions_assigned(self, assigned: Iterable[Any]) -> None:
        pass

    def on_partitions_revoked(self, revoked: Iterable[Any]) -> None:
        pass


def half_read(consumer: Any, poll: Callable[[int], dict[Any, list[Any]]], count: int) -> list[Any]:
    """Read one partition half, pause it, read the other to its end, resume the first: what the next polls bring of it."""
    half: dict[Any, list[Any]] = {}
    wait_for(lambda: half.update(poll(1)) or half, "the first record")
    (paused,) = half
    consumer.pause(paused)
    rest: list[Any] = []
    wait_for(lambda: rest.extend(r for found in poll(100).values() for r in found) or len(rest) == count, "the other")
    consumer.resume(paused)
    return [record.offset for _ in range(8) for record in poll(100).get(paused, [])]


def test_a_partition_that_was_paused_half_read_goes_on(
    broker: RunningBroker, make_topic: type_make_topic, unique_name: type_name
):
    """The client puts it back in line only where the line is empty, and a batch that is used up stays there."""
    topic, group = make_topic(2), unique_name()
    produce(broker.settings, topic, 10, partitions=2)

    def premise() -> list[Any]:
        bare = kafka_client.bare_consumer(broker.settings, auto_offset_reset="earliest")
        try:
            bare.assign([KafkaTopicPartition(topic, n) for n in range(2)])
            return half_read(bare, lambda most: bare.poll(250, max_records=most), 10)
        finally:
            bare.close()

    assert premise() == [], "premise: the bare client has forgotten it"
    set_committed(broker.settings, group, {TopicPartition(topic, n): 0 for n in range(2)})
    member = GroupMember(
        SourceSettings(topics=(topic,), group=group),
        broker.settings,
        LimitSettings(),
        client_id=group,
        group_instance_id=None,
        meter=metrics.Metrics(),
    )
    try:
        member.subscribe(Indifferent())
        assert half_read(member.consumer, member.poll, 10) == list(range(1, 10))
    finally:
        member.leave()


def test_a_client_that_delivers_nothing_is_replaced(
    broker: RunningBroker,
    make_topic: type_make_topic,
    unique_name: type_name,
    join: type_join,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    monkeypatch.setattr(silence_room, "LISTEN_S", 1.0)
    caplog.set_level("ERROR", "stream_embedder")
    topic, group = make_topic(2), unique_name()
    produce(broker.settings, topic, 3, partitions=2)
    member = join(broker.settings, group, [topic])
    wait_for(lambda: len(member.records) == 6, "the records")
    before = dict(member.owned)
    client = member.source._consumer
    client._fetcher._fetchable_partitions = list  # it has lost track of all
    wait_for(lambda: not client._fetcher.in_flight_fetches(), "the end of its last request")
    produce(broker.settings, topic, 1, partitions=1, start=3)
    wait_for(lambda: len(member.offsets(TopicPartition(topic, 0))) == 7, "all of it, and the new one, by a new client")
    wait_for(lambda: len(member.offsets(TopicPartition(topic, 1))) == 6, "the other, which was not committed either")
    assert member.source._consumer is not client
    assert member.lost == 1
    assert min(member.owned.values()) > max(before.values()), "what the old client read is given up"
    assert member.meter.value(metrics.CLIENTS_REPLACED) == 1
    (line,) = [record.getMessage() for record in caplog.records if "delivers nothing" in record.getMessage()]
    assert f"partition={topic}/0 position=3 fetchable=True" in line


def test_a_topic_with_nothing_to_read_is_no_reason_to_replace_the_client(
    broker: RunningBroker,
    make_topic: type_make_topic,
    unique_name: type_name,
    join: type_join,
    monkeypatch: pytest.MonkeyPatch,
):
    """Nor are markers and what was aborted, which nobody gets, nor a partition that is paused because of a limit."""
    monkeypatch.setattr(silence_room, "LISTEN_S", 0.3)
    topic = make_topic(2)
    produce(broker.settings, topic, 3)
    member = join(broker.settings, unique_name(), [topic])
    wait_for(lambda: len(member.records) == 3, "the records")
    aborted = kafka_client.bare_producer(broker.settings, transactional_id=unique_name())
    aborted.init_transactions()
    aborted.begin_transaction()
    aborted.send(topic, b"v", key=b"k", partition=0).get(10)
    aborted.abort_transaction()
    aborted.close(timeout=5)
    time.sleep(3)
    member.most = 0
    produce(broker.settings, topic, 1, start=3)
    time.sleep(3)
    assert len(member.records) == 3
    assert member.meter.value(metrics.CLIENTS_REPLACED) == 0
    member.most = 100
    wait_for(lambda: len(member.records) == 4, "the last record")
    assert member.meter.value(metrics.CLIENTS_REPLACED) == 0


# ---- the sink (T1, T3, T12, T13, T20)


def test_offsets_of_a_transaction_that_failed_do_not_leak_into_the_next(
    broker: RunningBroker,
    make_topic: type_make_topic,
    unique_name: type_name,
    join: type_join,
    open_sink: type_open_sink,
):
    """T3: the client keeps them, and commits them with the next transaction."""
    topic, out, group = make_topic(2), make_topic(), unique_name()
    zero, one = (TopicPartition(topic, n) for n in range(2))
    member = join(broker.settings, group, [topic])
    wait_for(lambda: len(member.owned) == 2, "the assignment")
    stable: Any = member.source.membership(5.0)
    stale = stable._replace(generation_id=stable.generation_id + 5)

    def offset(tp: TopicPartition, at: int) -> dict[Any, Any]:
        return {KafkaTopicPartition(*tp): OffsetAndMetadata(at, "", -1)}

    bare = kafka_client.bare_producer(broker.settings, transactional_id=unique_name())
    bare.init_transactions()
    bare.begin_transaction()
    with pytest.raises(kafka_errors.KafkaError):
        bare.send_offsets_to_transaction(offset(zero, 100), stale)
    bare.abort_transaction()
    bare.begin_transaction()
    bare.send_offsets_to_transaction(offset(one, 1), stable)
    bare.commit_transaction()
    bare.close(timeout=5)
    wait_for(
        lambda: committed(broker.settings, group).get(zero) == 100,
        "premise: the offset of the aborted transaction leaks",
    )

    set_committed_later = {zero: Position(200)}
    sink = open_sink(broker.settings, out)
    sink.write([message(out, b"lost")])
    with pytest.raises(CommitError):
        sink.commit(set_committed_later, stale)
    sink.abandon()
    sink.open()
    sink.write([message(out, b"kept")])
    sink.commit({one: Position(2)}, stable)
    assert [record.value for record in read(broker.settings, out)] == [b"kept"]
    wait_for(lambda: committed(broker.settings, group).get(one) == 2, "the commit")
    assert committed(broker.settings, group) == {zero: 100, one: 2}


def test_a_transaction_that_the_broker_gave_up_is_not_taken_for_committed(
    broker: RunningBroker,
    make_topic: type_make_topic,
    unique_name: type_name,
    open_sink: type_open_sink,
    monkeypatch: pytest.MonkeyPatch,
):
    """T1: the client begins anew under another epoch, and says that the commit has happened."""
    out, name = make_topic(), unique_name()
    monkeypatch.setattr(sink_room, "TRANSACTION_TIMEOUT_MS", 1_000)
    sink = open_sink(broker.settings, out)
    bare = kafka_client.bare_producer(broker.settings, transactional_id=name, transaction_timeout_ms=1_000)
    bare.init_transactions()
    bare.begin_transaction()
    sink._begin()
    bare.send(out, b"one").get(10)
    acknowledged(sink._send([message(out, b"one")]))
    with kafka_client.admin(broker.settings) as client:
        ids = [name, sink._transactional_id()]
        wait_for(
            lambda: all("CompleteAbort" in str(found) for found in client.describe_transactions(ids).values()),
            "the broker to give up both",
        )
    late = bare.send(out, b"two")
    bare.commit_transaction()
    assert late.exception is not None, "premise: the commit is called a success, and only the record knows better"
    bare.close(timeout=5)

    monkeypatch.setattr(sink, "_begin", lambda: None)
    with pytest.raises(RetryableError, match=r"InvalidProducerEpoch|somebody else writes"):
        sink.write([message(out, b"two")])
    sink.abandon()
    monkeypatch.undo()
    sink.open()
    sink.write([message(out, b"three")])
    sink._wait(sink._producer._transaction_manager.begin_commit(), "the commit")
    assert [record.value for record in read(broker.settings, out)] == [b"three"]


def test_a_commit_of_a_past_generation_is_refused(
    broker: RunningBroker,
    make_topic: type_make_topic,
    unique_name: type_name,
    join: type_join,
    open_sink: type_open_sink,
):
    topic, out, group = make_topic(2), make_topic(), unique_name()
    first = join(broker.settings, group, [topic])
    wait_for(lambda: len(first.owned) == 2, "the assignment")
    old = first.source.membership(5.0)
    second = join(broker.settings, group, [topic])
    wait_for(lambda: len(second.owned) == 1, "a new generation")
    sink = open_sink(broker.settings, out)
    sink.write([message(out)])
    with pytest.raises(CommitError):
        sink.commit({partition: Position(1) for partition in first.owned}, old)
    sink.abandon()
    assert read(broker.settings, out) == []
    assert committed(broker.settings, group) == {}


def test_what_the_broker_would_refuse_is_found_before_a_transaction_begins(
    broker: RunningBroker,
    make_topic: type_make_topic,
    unique_name: type_name,
    join: type_join,
    open_sink: type_open_sink,
):
    """T12: one refused record takes the whole transaction with it, again and again."""
    small, keyed = make_topic(max_message_bytes=2_000), make_topic(cleanup_policy="compact")
    source, group = make_topic(), unique_name()
    sink = open_sink(broker.settings, small, keyed)
    large, keyless = message(small, random.Random(1).randbytes(1_950)), message(keyed, key=None)
    for refused in (large, keyless):
        with pytest.raises(RetryableError, match=r"MessageSizeTooLargeError|InvalidRecordError"):
            sink.write([refused])  # premise
        sink.abandon()
        sink.open()
    assert sink.refuses(large) == "too_large"
    assert sink.refuses(keyless) == "no_key"

    # The largest that is not refused is one that the broker takes; so are many small ones, which the client batches.
    fits = message(small, b"x" * (2_000 - message(small, b"").size), headers=())
    assert fits.size == 2_000
    assert sink.refuses(fits) is None
    wide = message(small, b"", headers=tuple((f"h{n}", b"") for n in range(130)))
    assert wide.size <= 2_000
    assert sink.refuses(wide) is None
    member = join(broker.settings, group, [source])
    wait_for(lambda: member.owned, "the assignment")
    many = [message(small, b"y" * 90) for _ in range(200)]
    sink.write([fits, wide, *many, message(keyed)])
    sink.commit({TopicPartition(source, 0): Position(1)}, member.source.membership(5.0))
    assert len(read(broker.settings, small)) == 202


def test_a_topic_with_a_tiny_limit_gets_batches_that_fit(
    broker: RunningBroker, make_topic: type_make_topic, open_sink: type_open_sink
):
    """The broker measures batches, not records."""
    tiny = make_topic(max_message_bytes=600)
    sink = open_sink(broker.settings, tiny)
    sink.write([message(tiny, b"y" * 90) for _ in range(200)])


def test_a_timestamp_too_far_ahead_is_clamped_and_counted(
    broker: RunningBroker, make_topic: type_make_topic, open_sink: type_open_sink
):
    """T12: the broker refuses it, and the transaction with it."""
    out = make_topic(message_timestamp_after_max_ms=60_000)
    ahead = int(time.time() * 1000) + 3_600_000
    bare = kafka_client.bare_producer(broker.settings)
    try:
        with pytest.raises(kafka_errors.InvalidTimestampError):
            bare.send(out, b"v", timestamp_ms=ahead).get(10)  # premise
    finally:
        bare.close(timeout=5)
    meter = metrics.Metrics()
    sink = open_sink(broker.settings, out, meter=meter)
    sink.write([message(out, timestamp_ms=ahead), message(out, timestamp_ms=1_700_000_000_000), message(out)])
    sink._wait(sink._producer._transaction_manager.begin_commit(), "the commit")
    first, second, third = read(broker.settings, out)
    now = time.time() * 1000
    assert now < first.timestamp <= now + 60_000
    assert second.timestamp == 1_700_000_000_000
    assert abs(third.timestamp - now) < 60_000, "one that is unknown becomes now"
    assert meter.value(metrics.TIMESTAMPS_CLAMPED) == 1


def test_a_timestamp_too_far_back_is_clamped_and_counted(
    broker: RunningBroker, make_topic: type_make_topic, open_sink: type_open_sink
):
    out = make_topic(message_timestamp_before_max_ms=60_000)
    meter = metrics.Metrics()
    sink = open_sink(broker.settings, out, meter=meter)
    sink.write([message(out, timestamp_ms=1_700_000_000_000), message(out, timestamp_ms=int(time.time() * 1000))])
    sink._wait(sink._producer._transaction_manager.begin_commit(), "the commit")
    first, second = read(broker.settings, out)
    now = time.time() * 1000
    assert now - 70_000 < first.timestamp < now - 50_000
    assert abs(second.timestamp - now) < 30_000
    assert meter.value(metrics.TIMESTAMPS_CLAMPED) == 1


def test_who_is_fenced_says_by_whom_and_what_to_do(
    broker: RunningBroker, make_topic: type_make_topic, open_sink: type_open_sink, unique_name: type_name
):
    out, shared = make_topic(), unique_name()
    first = open_sink(broker.settings, out, slot=shared)
    open_sink(broker.settings, out, slot=shared)
    with pytest.raises(RetryableError, match=f"somebody else writes as {shared}: .* delivery.cluster of its own"):
        first.write([message(out)])
        first._wait(first._producer._transaction_manager.begin_commit(), "the commit")


def test_what_kafka_allows_and_the_client_does_not_is_produced_all_the_same(
    broker: RunningBroker, make_topic: type_make_topic, open_sink: type_open_sink
):
    """T20: null header values, and a null key with a null value."""
    out = make_topic()
    bare = kafka_client.connect(KafkaProducer, broker.settings)
    try:
        with pytest.raises(ValueError, match=r".*"):
            bare.send(out, key=None, value=None)  # premise
        with pytest.raises(TypeError):
            bare.send(out, b"v", headers=[("h", None)])  # premise
    finally:
        bare.close(timeout=5)
    sink = open_sink(broker.settings, out)
    headers = (("h", None), ("h", b"\xff"), ("ü", b""))
    sink.write([message(out, None, None), message(out, None, b"k"), message(out, b"", b"", headers=headers)])
    sink._wait(sink._producer._transaction_manager.begin_commit(), "the commit")
    assert [(r.key, r.value, list(r.headers)) for r in read(broker.settings, out)] == [
        (None, None, []),
        (b"k", None, []),
        (b"", b"", [("h", b""), ("h", b"\xff"), ("ü", b"")]),
    ]


def test_a_partition_number_is_kept_as_far_as_the_output_has_it(
    broker: RunningBroker, make_topic: type_make_topic, open_sink: type_open_sink
):
    out = make_topic(2)
    sink = open_sink(broker.settings, out)
    sink.write([message(out, b"five", None, partition=5), message(out, b"one", None, partition=1)])
    sink._wait(sink._producer._transaction_manager.begin_commit(), "the commit")
    with kafka_client.admin(broker.settings) as client:
        topics = kafka_topics.describe_topics(client, [out])
    last = next(kafka_records.latest_records(broker.settings, topics[out]))
    assert {tp.partition: [r.value for r in found] for tp, found in last.items()} == {0: [], 1: [b"five", b"one"]}


def test_a_limit_that_is_lowered_meanwhile_is_heard_of_at_once(
    broker: RunningBroker, make_topic: type_make_topic, open_sink: type_open_sink
):
    """The client would cut the batch in halves, and tell nobody what becomes of them."""
    out = make_topic()
    sink = open_sink(broker.settings, out)
    with kafka_client.admin(broker.settings) as client:
        client.alter_configs([ConfigResource(ConfigResourceType.TOPIC, out, {"max.message.bytes": "2000"})])
        wait_for(
            lambda: kafka_topics.describe_topics(client, [out])[out].max_message_bytes == 2000, "the broker's new limit"
        )
    messages = [message(out, b"%03d" % n * 100) for n in range(30)]
    started = time.monotonic()
    with pytest.raises(RetryableError, match="MessageSizeTooLarge"):
        sink.write(messages)
    assert time.monotonic() - started < 5
    sink.abandon()
    sink.open()
    sink.publish(messages)
    assert [record.value for record in read(broker.settings, out)] == [one.value for one in messages]


def test_keys_go_where_other_producers_put_them(
    broker: RunningBroker, make_topic: type_make_topic, open_sink: type_open_sink
):
    out = make_topic(7)
    keys = [b"", b"k", *(b"key-%d" % n * (1 + n % 3) for n in range(60)), "größer".encode()]
    bare = kafka_client.bare_producer(broker.settings)
    theirs = {key: bare.send(out, b"v", key=key).get(10).partition for key in keys}
    bare.close(timeout=5)
    sink = open_sink(broker.settings, out)
    sink._begin()
    ours = {key: acknowledged(sink._send([message(out, key=key)])).partition for key in keys}
    assert ours == theirs
    assert len(set(ours.values())) == 7


def test_a_topic_that_is_missing_is_named(broker: RunningBroker, unique_name: type_name, open_sink: type_open_sink):
    with pytest.raises(EnvironmentFault, match="topic nobody-made-this does not exist; create it"):
        open_sink(broker.settings, "nobody-made-this")


# ---- a broker that freezes and dies (T2, T6, T13)


def test_a_frozen_broker_commits_nothing_and_leaves_no_zombie(
    own_broker: Broker,
    unique_name: type_name,
    join: type_join,
    open_sink: type_open_sink,
    monkeypatch: pytest.MonkeyPatch,
):
    """T2: the client drops records past their delivery timeout, and commits the transaction without them.

    T13: a producer that could not be closed goes on sending in the background.
    """
    kafka = own_broker.settings
    kafka_topics.create_topics(kafka, {"in": 1, "out": 1})
    produce(kafka, "in", 2)
    group = unique_name()
    member = join(kafka, group, ["in"])
    wait_for(lambda: member.owned, "the assignment")
    before = kafka_threads()
    sink = open_sink(kafka, "out")
    sink.write([message("out", b"zero")])
    sink.commit({TopicPartition("in", 0): Position(1)}, member.source.membership(5.0))
    assert kafka_threads() - before, "premise: a producer has threads that this test can see"

    # The partition is in the transaction before the broker freezes: a first request to it would fail the transaction.
    sink._begin()
    acknowledged(sink._send([message("out", b"half")]))
    monkeypatch.setattr(sink, "_begin", lambda: None)
    own_broker.pause()
    try:
        started = time.monotonic()
        with pytest.raises(RetryableError):
            sink.write([message("out", b"one")])
            assert own_broker.frozen, "premise: it does not run"
        assert time.monotonic() - started < 13
        started = time.monotonic()
        sink.close()
        assert time.monotonic() - started < 6
    finally:
        own_broker.resume()
    monkeypatch.undo()
    wait_for(lambda: not kafka_threads() - before, f"no thread is left: {kafka_threads() - before}", 5)

    def commits() -> bool:
        """The broker may have let the member go while it was frozen: then the client hears of it, and joins anew."""
        sink.open()
        sink.write([message("out", b"one")])
        try:
            sink.commit({TopicPartition("in", 0): Position(2)}, member.source.membership(10.0))
        except CommitError:
            sink.abandon()
            return False
        return True

    wait_for(commits, "a commit by a member of the group")
    assert [record.value for record in read(kafka, "out")] == [b"zero", b"one"]
    wait_for(lambda: committed(kafka, group) == {TopicPartition("in", 0): 2}, "the commit")
    sink.abandon()
    wait_for(lambda: not kafka_threads() - before, f"no thread is left: {kafka_threads() - before}", 5)


def test_a_broker_killed_between_write_and_commit_is_not_waited_for_for_ever(
    own_broker: Broker, unique_name: type_name, join: type_join, open_sink: type_open_sink
):
    """T6: the client's own wait has no end, though the broker comes back."""
    kafka = own_broker.settings
    kafka_topics.create_topics(kafka, {"in": 1, "out": 1})
    group = unique_name()
    member = join(kafka, group, ["in"])
    wait_for(lambda: member.owned, "the assignment")
    sink = open_sink(kafka, "out")
    sink.write([message("out", b"one")])
    membership = member.source.membership(5.0)
    own_broker.kill()
    started = time.monotonic()
    with pytest.raises(CommitError):
        sink.commit({TopicPartition("in", 0): Position(1)}, membership)
    assert time.monotonic() - started < 12
    sink.abandon()
    started = time.monotonic()
    with pytest.raises((RetryableError, EnvironmentFault)):
        sink.open()
    assert time.monotonic() - started < 15
    with pytest.raises(RetryableError):
        member.source.committed([TopicPartition("in", 0)])
    own_broker.start()

    def opens() -> bool:
        with contextlib.suppress(RetryableError, EnvironmentFault):
            sink.abandon()
            sink.open()
            return True
        return False

    wait_for(opens, "a new producer")
    assert member.source.committed([TopicPartition("in", 0)]) == {}, "the first transaction came to nothing"
    sink.write([message("out", b"one")])
    sink.commit({TopicPartition("in", 0): Position(1)}, member.source.membership(20.0))
    assert [record.value for record in read(kafka, "out")] == [b"one"]
    assert member.thread.is_alive()


# ---- kafka_client


def test_a_port_where_nobody_listens_is_one_sentence_in_bounded_time():
    nobody = KafkaSettings(bootstrap_servers=f"127.0.0.1:{free_port()}")
    started = time.monotonic()
    with (
        pytest.raises(
            EnvironmentFault, match=r"no Kafka broker answers at 127\.0\.0\.1:\d+ \(.+\): is one running"
        ) as caught,
        kafka_client.admin(nobody),
    ):
        pass
    assert time.monotonic() - started < 13
    assert "\n" not in str(caught.value)


def topic_of(kafka: KafkaSettings, name: str) -> kafka_topics.Topic:
    with kafka_client.admin(kafka) as client:
        return kafka_topics.describe_topics(client, [name])[name]


def last_values(kafka: KafkaSettings, name: str) -> list[dict[int, list[bytes]]]:
    return [
        {tp.partition: [record.value for record in found] for tp, found in depth.items()}
        for depth in kafka_records.latest_records(kafka, topic_of(kafka, name), depths=(3, 100))
    ]


def test_the_latest_records_are_found_behind_transaction_markers(
    broker: RunningBroker, make_topic: type_make_topic, open_sink: type_open_sink
):
    topic = make_topic(2)
    sink = open_sink(broker.settings, topic)
    for value in (b"a", b"b"):
        sink.write([message(topic, value, partition=0)])
        sink._wait(sink._producer._transaction_manager.begin_commit(), "the commit")
    sink.write([message(topic, b"aborted", partition=0)])
    sink.abandon()
    sink.open()
    started = time.monotonic()
    # Offsets: a, marker, b, marker, aborted, its marker. The last three hold nothing that is committed.
    assert last_values(broker.settings, topic) == [{0: [], 1: []}, {0: [b"a", b"b"], 1: []}]
    assert time.monotonic() - started < 8, "a marker at the end is no reason to wait"


def test_the_latest_records_of_empty_and_of_compacted_topics(broker: RunningBroker, make_topic: type_make_topic):
    started = time.monotonic()
    assert last_values(broker.settings, make_topic(2)) == [{0: [], 1: []}] * 2
    emptied = make_topic()
    produce(broker.settings, emptied, 5)
    with kafka_client.admin(broker.settings) as client:
        client.delete_records({KafkaTopicPartition(emptied, 0): 5})
    assert last_values(broker.settings, emptied) == [{0: []}] * 2
    compacted = make_topic(cleanup_policy="compact")
    assert topic_of(broker.settings, compacted).compacted
    produce(broker.settings, compacted, 5)
    assert last_values(broker.settings, compacted) == [{0: [b"v2", b"v3", b"v4"]}, {0: [b"v%d" % n for n in range(5)]}]
    assert time.monotonic() - started < 15


def test_lag_is_what_is_left_from_the_commit_or_the_logs_beginning(
    broker: RunningBroker, make_topic: type_make_topic, unique_name: type_name
):
    topic, group = make_topic(2), unique_name()
    source = SourceSettings(topics=(topic,), group=group)

    def lag() -> int:
        with kafka_client.admin(broker.settings) as client:
            return kafka_topics.lag(client, source)

    assert lag() == 0
    produce(broker.settings, topic, 10, partitions=2)
    assert lag() == 20
    set_committed(broker.settings, group, {TopicPartition(topic, 0): 4})
    assert lag() == 16
    with kafka_client.admin(broker.settings) as client:
        client.delete_records({KafkaTopicPartition(topic, n): 6 for n in range(2)})
    assert lag() == 8
    set_committed(broker.settings, group, {TopicPartition(topic, n): 10 for n in range(2)})
    assert lag() == 0


def test_a_poll_brings_no_more_than_there_is_room_for(
    broker: RunningBroker, make_topic: type_make_topic, unique_name: type_name, join: type_join
):
    """A fetch has them all; what there is no room for stays with the client, and comes in the order of the log."""
    topic = make_topic()
    member = join(broker.settings, unique_name(), [topic])
    member.most = 7
    wait_for(lambda: member.owned, "the assignment")
    produce(broker.settings, topic, 100)
    wait_for(lambda: len(member.records) == 100, "all of them")
    assert max(member.polls) == 7
    assert member.offsets(TopicPartition(topic, 0)) == list(range(100))


def test_ends_are_those_of_partitions_that_have_leaders(
    broker: RunningBroker, make_topic: type_make_topic, monkeypatch: pytest.MonkeyPatch
):
    topic = make_topic(2)
    produce(broker.settings, topic, 3, partitions=2)
    here, away = TopicPartition(topic, 0), TopicPartition(topic, 1)
    with kafka_client.admin(broker.settings) as client:
        assert kafka_topics.ends_of(client, [here, away, TopicPartition(topic, 7)]) == {here: 3, away: 3}
        assert kafka_topics.bounds_of(client, away) == (0, 3)
        describe, ask = client.describe_topics, client.list_partition_offsets

        def described(names: list[str]) -> Any:
            found = describe(names)
            for partition in found[0]["partitions"]:
                partition["leader_id"] = [1, -1][partition["partition_index"]]
            return found

        def offsets(wanted: Any, **more: Any) -> Any:
            if KafkaTopicPartition(*away) in wanted:
                raise kafka_errors.UnknownBrokerIdError(-1)  # as it does
            return ask(wanted, **more)

        monkeypatch.setattr(client, "describe_topics", described)
        monkeypatch.setattr(client, "list_partition_offsets", offsets)
        assert kafka_topics.ends_of(client, [here, away]) == {here: 3}
        with pytest.raises(kafka_errors.KafkaError):
            kafka_topics.ends_of(client, [away])


def test_the_lag_of_a_topic_that_is_gone_is_not_zero(broker: RunningBroker, make_topic: type_make_topic):
    topic = make_topic()
    produce(broker.settings, topic, 10)
    kafka_topics.delete_topics(broker.settings, [topic])
    source = SourceSettings(topics=(topic, make_topic()))
    with kafka_client.admin(broker.settings) as client:
        wait_for(lambda: topic not in client.list_topics(), "the topic to be gone")
        with pytest.raises(EnvironmentFault, match=f"topic {topic} does not exist"):
            kafka_topics.lag(client, source)


def test_a_pattern_reads_the_topics_that_match_whole(broker: RunningBroker, make_topic: type_make_topic):
    topic = make_topic()
    with kafka_client.admin(broker.settings) as client:
        assert kafka_topics.source_topics(client, SourceSettings(pattern=topic[:-1] + ".")) == [topic]
        assert kafka_topics.source_topics(client, SourceSettings(pattern=topic[:-1])) == []


def test_the_poll_is_long_enough_for_the_client():
    """T7's measured floor."""
    assert member_room.POLL_MS >= 200
