"""What is known of topics and groups: sizes, offsets, lag, the latest records; and making and deleting topics.

Comes in: an admin client, or the settings to get one. Goes out: facts. Never here: the consumer loop (``sources``) or
transactions (``sinks``).
"""

from __future__ import annotations

import contextlib
import re
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kafka import KafkaAdminClient
from kafka import TopicPartition as KafkaTopicPartition
from kafka import errors as kafka_errors
from kafka.admin import ConfigResource, ConfigResourceType, NewTopic, OffsetSpec

from workers.deadline import Deadline
from workers.errors import EnvironmentFault, RetryableError
from workers.kafka_client import admin, bare_consumer, sentence
from workers.offsets import read_position
from workers.records import Origin, Position, Record, TopicPartition
from workers.settings import KafkaSettings, SourceSettings

# Kafka's default for max.message.bytes, used where we may not read a topic's configuration.
DEFAULT_MAX_MESSAGE_BYTES = 1_048_588
DEFAULT_TIMESTAMP_AFTER_MAX_MS = 3_600_000
DEFAULT_TIMESTAMP_BEFORE_MAX_MS = 2**63 - 1

# A transaction whose writer died is open until the broker times it out: 15 s for ours, looked at every 10 s; others' may
# take a minute.
OPEN_TRANSACTION_S = 75.0
TOPIC_ID_S = 5.0


def create_topics(kafka: KafkaSettings, topics: Mapping[str, int], **configs: str) -> None:
    """Create topics with so many partitions each, replicated as the broker's default says; those that exist stay."""
    with admin(kafka) as client:
        for name, partitions in topics.items():
            with contextlib.suppress(kafka_errors.TopicAlreadyExistsError):
                client.create_topics([NewTopic(name=name, num_partitions=partitions, topic_configs=dict(configs))])
        client.wait_for_topics(list(topics))


def delete_topics(kafka: KafkaSettings, topics: Sequence[str]) -> None:
    """Delete topics; those that do not exist are ignored."""
    with admin(kafka) as client:
        for name in topics:
            with contextlib.suppress(kafka_errors.UnknownTopicOrPartitionError):
                client.delete_topics([name])


@dataclass(frozen=True, slots=True)
class Topic:
    """What decides whether a topic takes a record, and for how long it keeps it.

    Sizes in bytes of a record batch, times in milliseconds; ``retention_ms`` is -1 where age deletes nothing, or where we
    may not know. With ``log_append_time`` the broker dates the records.
    """

    name: str
    partitions: int
    max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES
    compacted: bool = False
    timestamp_after_max_ms: int = DEFAULT_TIMESTAMP_AFTER_MAX_MS
    operations: frozenset[str] = frozenset()
    timestamp_before_max_ms: int = DEFAULT_TIMESTAMP_BEFORE_MAX_MS
    log_append_time: bool = False
    retention_ms: int = -1
    configs_known: bool = True


def describe_topics(client: KafkaAdminClient, names: Iterable[str]) -> dict[str, Topic]:
    """The facts of those topics that exist; configuration that we may not read is taken as Kafka's default."""
    wanted = list(names)
    found: dict[str, Topic] = {}
    for described in client.describe_topics(wanted) if wanted else []:
        if described["error_code"] != 0:
            continue
        name = described["name"]
        configs = _topic_configs(client, name)
        found[name] = Topic(
            name=name,
            partitions=len(described["partitions"]),
            max_message_bytes=int(configs.get("max.message.bytes", DEFAULT_MAX_MESSAGE_BYTES)),
            compacted="compact" in configs.get("cleanup.policy", ""),
            timestamp_after_max_ms=int(configs.get("message.timestamp.after.max.ms", DEFAULT_TIMESTAMP_AFTER_MAX_MS)),
            operations=frozenset(described.get("authorized_operations") or ()),
            timestamp_before_max_ms=int(
                configs.get("message.timestamp.before.max.ms", DEFAULT_TIMESTAMP_BEFORE_MAX_MS)
            ),
            log_append_time=configs.get("message.timestamp.type") == "LogAppendTime",
            retention_ms=int(configs.get("retention.ms", -1)) if "delete" in configs.get("cleanup.policy", "") else -1,
            configs_known=bool(configs),
        )
    return found


def hidden_topics(client: KafkaAdminClient, names: Iterable[str]) -> set[str]:
    """Those topics of which the broker does not tell us whether they exist, because we may not see them."""
    wanted, code = list(names), kafka_errors.TopicAuthorizationFailedError.errno
    described = client.describe_topics(wanted) if wanted else []
    return {topic["name"] for topic in described if topic["error_code"] == code}


def _topic_configs(client: KafkaAdminClient, name: str) -> dict[str, str]:
    try:
        resource = ConfigResource(ConfigResourceType.TOPIC, name)
        described = client.describe_configs([resource], config_filter="all")["topic"][name]
    except (kafka_errors.AuthorizationError, kafka_errors.UnsupportedVersionError):
        return {}
    return {key: entry["value"] for key, entry in described.items() if entry["value"] is not None}


class TopicIds:
    """Kafka's own ids of topics, which one that is made anew under an old name does not share. For any number of threads."""

    def __init__(self, kafka: KafkaSettings) -> None:
        self._kafka = kafka
        self._lock = threading.Lock()
        self._known: dict[str, tuple[float, str]] = {}

    def __call__(self, topic: str) -> str:
        """The id, in hex; an answer is good for some seconds, in which many partitions may want it.

        Raises:
            RetryableError: the brokers do not know the topic now.
            EnvironmentFault: no broker answers.
        """
        with self._lock:
            at, known = self._known.get(topic, (-TOPIC_ID_S, ""))
            if time.monotonic() - at < TOPIC_ID_S:
                return known
            with admin(self._kafka) as client:
                described = next(iter(client.describe_topics([topic])), None)
            if described is None or described["error_code"] != 0:
                raise RetryableError(f"the brokers do not know topic {topic} at the moment")
            known = uuid.UUID(str(described["topic_id"])).hex
            self._known[topic] = time.monotonic(), known
            return known


def end_offsets(client: KafkaAdminClient, topics: Mapping[str, Topic]) -> dict[TopicPartition, int]:
    """The offset after each partition's last record, uncommitted ones included."""
    return _offsets(client, topics, OffsetSpec.LATEST)


def begin_offsets(client: KafkaAdminClient, topics: Mapping[str, Topic]) -> dict[TopicPartition, int]:
    """The offset of each partition's first record that is still there."""
    return _offsets(client, topics, OffsetSpec.EARLIEST)


def _offsets(client: KafkaAdminClient, topics: Mapping[str, Topic], spec: OffsetSpec) -> dict[TopicPartition, int]:
    wanted = {KafkaTopicPartition(topic.name, n): spec for topic in topics.values() for n in range(topic.partitions)}
    if not wanted:
        return {}
    return {TopicPartition(*tp): found.offset for tp, found in client.list_partition_offsets(wanted).items()}


def committed_offsets(client: KafkaAdminClient, group: str, patience_s: float = 10.0) -> dict[TopicPartition, int]:
    """What a group has committed, by partition; see :func:`committed_positions`."""
    return {tp: position.offset for tp, position in committed_positions(client, group, patience_s).items()}


def committed_positions(
    client: KafkaAdminClient, group: str, patience_s: float = 10.0
) -> dict[TopicPartition, Position]:
    """What a group has committed, with each output's own position; empty for a group that is not there.

    A fresh broker needs a moment to make its offsets topic: that is waited for, ``patience_s`` at most.
    """
    deadline = Deadline(patience_s)
    while True:
        try:
            found = client.list_group_offsets(group).get(group, {})
        except kafka_errors.GroupIdNotFoundError:
            return {}
        except (
            kafka_errors.CoordinatorNotAvailableError,
            kafka_errors.CoordinatorLoadInProgressError,
            kafka_errors.NotCoordinatorError,
        ):
            if deadline.expired:
                raise
            time.sleep(0.2)
        else:
            return {
                TopicPartition(*tp): read_position(entry.offset, entry.metadata)
                for tp, entry in found.items()
                if entry.offset >= 0
            }


def source_topics(client: KafkaAdminClient, source: SourceSettings) -> list[str]:
    """The topics that the source reads: those it names, or those that exist and match its pattern."""
    if source.pattern is None:
        return list(source.topics)
    pattern = re.compile(source.pattern)
    return sorted(name for name in client.list_topics() if pattern.fullmatch(name) and not name.startswith("__"))


def lag(client: KafkaAdminClient, source: SourceSettings) -> int:
    """Offsets between what the group has committed, or the log's beginning, and the log's end, over all partitions.

    Offsets, not records: transaction markers and compacted records count.
    """
    topics = describe_topics(client, source_topics(client, source))
    ends, begins = end_offsets(client, topics), begin_offsets(client, topics)
    committed = committed_offsets(client, source.group)
    return sum(max(0, end - max(committed.get(tp, 0), begins[tp])) for tp, end in ends.items())


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
        begins, ends = consumer.beginning_offsets(partitions), consumer.end_offsets(partitions)
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
            {tp: ends[TopicPartition(*tp)] for tp in partitions} if ends else consumer.end_offsets(partitions, 30_000)
        )
        first = consumer.beginning_offsets(partitions, 30_000)
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
                found = [_record(raw) for raw in raws if raw.offset < last[tp]]
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


def _record(raw: Any) -> Record:
    timestamp = raw.timestamp if raw.timestamp is not None else -1
    origin = Origin(raw.topic, raw.partition, raw.offset, 0)
    return Record(origin, raw.key, raw.value, timestamp, tuple(raw.headers or ()))
