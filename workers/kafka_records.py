"""What is in a topic, read from its place and by no group.

Comes in: the settings, and a topic's facts. Goes out: its records, as a read_committed reader sees them. Never here: the
consumer loop (``sources``), or an offset that is committed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kafka import TopicPartition as KafkaTopicPartition
from kafka import errors as kafka_errors

from workers import kafka_ends
from workers.deadline import Deadline
from workers.errors import EnvironmentFault, RetryableError
from workers.kafka_client import bare_consumer, sentence
from workers.kafka_topics import Topic
from workers.records import Origin, Record, TopicPartition
from workers.settings import KafkaSettings

# A transaction whose writer died is open until the broker times it out: 15 s for ours, looked at every 10 s; others' may
# take a minute.
OPEN_TRANSACTION_S = 75.0


def latest_records(
    kafka: KafkaSettings, topic: Topic, depths: Sequence[int] = (20, 1_000)
) -> Iterator[dict[TopicPartition, list[Any]]]:
    """The last committed records of each partition, read ever deeper: first 20 offsets, then 1,000.

    Yields lists of kafka-python's ConsumerRecord, oldest first. The caller stops when it has seen enough. Offsets may hold
    no record (transaction markers, compaction), so a partition may yield fewer.
    """
    consumer = bare_consumer(kafka, auto_offset_reset="earliest")
    try:
        partitions = [KafkaTopicPartition(topic.name, n) for n in range(topic.partitions)]
        consumer.assign(partitions)
        begins, ends = kafka_ends.begins(consumer, partitions), kafka_ends.ends(consumer, partitions)
        for depth in depths:
            found: dict[TopicPartition, list[Any]] = {TopicPartition(*tp): [] for tp in partitions}
            for tp in partitions:
                consumer.seek(tp, max(begins[tp], ends[tp] - depth))
            deadline = Deadline(10.0)
            while not deadline.expired and any(consumer.position(tp) < ends[tp] for tp in partitions):
                for tp, records in consumer.poll(200).items():
                    found[TopicPartition(*tp)] += [record for record in records if record.offset < ends[tp]]
            yield found
    except kafka_errors.KafkaError as error:
        raise RetryableError(f"the latest records of topic {topic.name} cannot be read: {sentence(error)}") from error
    finally:
        consumer.close()


def next_records(
    kafka: KafkaSettings, starts: Mapping[TopicPartition, int], patience_s: float = 10.0
) -> dict[TopicPartition, int | None]:
    """When the next record of each partition is dated, from an offset on: Unix time in milliseconds, -1 where it has no date.

    None: there is none that a read_committed reader would get, only marks of transactions, or what is not decided yet. A
    partition that did not answer in ``patience_s`` is left out.

    Raises:
        EnvironmentFault: we may not read a topic.
        RetryableError: the broker does not answer.
    """
    # One record of each will do: small fetches, and a partition that has answered is paused, so the others get their turn.
    consumer = bare_consumer(
        kafka, auto_offset_reset="earliest", max_partition_fetch_bytes=64 << 10, fetch_max_bytes=4 << 20
    )
    found: dict[TopicPartition, int | None] = {}
    try:
        deadline = Deadline(patience_s)
        waiting = {KafkaTopicPartition(*tp): offset for tp, offset in starts.items()}
        consumer.assign(list(waiting))
        for tp, offset in waiting.items():
            consumer.seek(tp, offset)
        for topic in {tp.topic for tp in waiting}:
            consumer.partitions_for_topic(topic)  # asks for its leaders, the first time
        ends = kafka_ends.ends(consumer, kafka_ends.led(consumer, waiting), 10_000)  # of what is committed
        waiting = {tp: offset for tp, offset in waiting.items() if tp in ends}
        while waiting and not deadline.expired:
            for tp, records in consumer.poll(200).items():
                if records and tp in waiting:
                    stamp = records[0].timestamp
                    found[TopicPartition(*tp)] = -1 if stamp is None else stamp
            for tp in [tp for tp in waiting if TopicPartition(*tp) in found or consumer.position(tp) >= ends[tp]]:
                found.setdefault(TopicPartition(*tp), None)
                del waiting[tp]
                consumer.pause(tp)
    except kafka_errors.AuthorizationError as error:
        raise EnvironmentFault(f"{kafka.who} may not read the source's topics: grant Read on them") from error
    except kafka_errors.KafkaError as error:
        raise RetryableError(f"the source's next records cannot be read: {sentence(error)}") from error
    finally:
        consumer.close()
    return found


def committed_records(
    kafka: KafkaSettings,
    topic: Topic,
    *,
    starts: Mapping[TopicPartition, int] | None = None,
    ends: Mapping[TopicPartition, int] | None = None,
    patience_s: float = OPEN_TRANSACTION_S,
) -> Iterator[list[Record]]:
    """A topic's committed records from its beginning to its end, a partition's share at a time and in its order.

    ``starts``: read these partitions only, from these offsets on. ``ends``: read up to these, which waits for transactions
    that are not decided; None: up to what is committed now.

    Raises:
        EnvironmentFault: we may not read the topic.
        RetryableError: nothing more came for ``patience_s``, though there is more.
    """
    consumer = bare_consumer(kafka, auto_offset_reset="earliest", max_poll_records=1_000, fetch_max_bytes=16 << 20)
    try:
        partitions = [KafkaTopicPartition(*tp) for tp in starts or _partitions(topic)]
        consumer.assign(partitions)
        # This consumer is read_committed: its end of a partition lies before the first transaction that is open.
        last = (
            {tp: ends[TopicPartition(*tp)] for tp in partitions}
            if ends
            else kafka_ends.ends(consumer, partitions, 30_000)
        )
        first = kafka_ends.begins(consumer, partitions, 30_000)
        begins = starts or {TopicPartition(*tp): offset for tp, offset in first.items()}
        at = {tp: begins[TopicPartition(*tp)] for tp in partitions}
        for tp in partitions:
            consumer.seek(tp, at[tp])
        deadline = Deadline(patience_s)
        while True:
            for tp in [tp for tp in at if at[tp] >= last[tp]]:
                consumer.pause(tp)
                del at[tp]
            if not at:
                return
            for tp, raws in consumer.poll(250).items():
                found = [record_of(raw) for raw in raws if raw.offset < last[tp]]
                if found:
                    yield found
            # A position also moves past what holds no record: transaction markers, and what was aborted or compacted.
            reached = {tp: consumer.position(tp, 30_000) for tp in at}
            if reached != at:
                at, deadline = reached, Deadline(patience_s)
            elif deadline.expired:
                tp, offset = next(iter(at.items()))
                raise RetryableError(
                    f"{TopicPartition(*tp)} gave nothing from offset {offset} on for {patience_s:.0f} s, and it reaches to "
                    f"{last[tp]}: its broker does not answer, or somebody's transaction is still open"
                )
    except kafka_errors.AuthorizationError as error:
        raise EnvironmentFault(
            f"{kafka.who} may not read topic {topic.name}: grant Read on it (kafka-acls.sh --add)"
        ) from error
    except kafka_errors.KafkaError as error:
        raise RetryableError(f"topic {topic.name} cannot be read: {sentence(error)}") from error
    finally:
        consumer.close()


def _partitions(topic: Topic) -> list[TopicPartition]:
    return [TopicPartition(topic.name, number) for number in range(topic.partitions)]


def record_of(raw: Any) -> Record:
    """A record of kafka-python's as one of ours."""
    timestamp = raw.timestamp if raw.timestamp is not None else -1
    origin = Origin(raw.topic, raw.partition, raw.offset, 0)
    return Record(origin, raw.key, raw.value, timestamp, tuple(raw.headers or ()))
