"""What is known of topics and groups: sizes, offsets, lag, the latest records; and making and deleting topics.

Comes in: an admin client, or the settings to get one. Goes out: facts. Never here: the consumer loop (``sources``) or
transactions (``sinks``).
"""

from __future__ import annotations

import contextlib
import re
import time
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
from workers.records import TopicPartition
from workers.settings import KafkaSettings, SourceSettings

# Kafka's default for max.message.bytes, used where we may not read a topic's configuration.
DEFAULT_MAX_MESSAGE_BYTES = 1_048_588
DEFAULT_TIMESTAMP_AFTER_MAX_MS = 3_600_000


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
    """What decides whether a topic takes a record. Sizes in bytes of a record batch, times in milliseconds."""

    name: str
    partitions: int
    max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES
    compacted: bool = False
    timestamp_after_max_ms: int = DEFAULT_TIMESTAMP_AFTER_MAX_MS
    operations: frozenset[str] = frozenset()


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
        )
    return found


def _topic_configs(client: KafkaAdminClient, name: str) -> dict[str, str]:
    try:
        resource = ConfigResource(ConfigResourceType.TOPIC, name)
        described = client.describe_configs([resource], config_filter="all")["topic"][name]
    except (kafka_errors.AuthorizationError, kafka_errors.UnsupportedVersionError):
        return {}
    return {key: entry["value"] for key, entry in described.items() if entry["value"] is not None}


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
    """What a group has committed, by partition; empty for a group that is not there.

    A fresh broker needs a moment to make its offsets topic: that is waited for, ``patience_s`` at most.
    """
    deadline = Deadline(patience_s)
    while True:
        try:
            found = client.list_group_offsets(group).get(group, {})
        except kafka_errors.GroupIdNotFoundError:
            return {}
        except (kafka_errors.CoordinatorNotAvailableError, kafka_errors.CoordinatorLoadInProgressError):
            if deadline.expired:
                raise
            time.sleep(0.2)
        else:
            return {TopicPartition(*tp): entry.offset for tp, entry in found.items() if entry.offset >= 0}


def probe_group(kafka: KafkaSettings, group: str) -> None:
    """See whether we may use a consumer group.

    Raises:
        EnvironmentFault: we may not.
        RetryableError: its coordinator does not answer.
    """
    with admin(kafka) as client:
        try:
            committed_offsets(client, group)
        except kafka_errors.AuthorizationError as error:
            raise EnvironmentFault(
                f"{kafka.sasl_username or 'this client'} may not read as group {group}: grant Read on it (kafka-acls.sh --add)"
            ) from error


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
