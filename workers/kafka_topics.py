"""What is known of topics and groups: sizes, ids, offsets, lag; and making and deleting topics.

Comes in: an admin client, or the settings to get one. Goes out: facts. Never here: what is in a topic (``kafka_records``).
"""

from __future__ import annotations

import contextlib
import re
import threading
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from kafka import KafkaAdminClient
from kafka import TopicPartition as KafkaTopicPartition
from kafka import errors as kafka_errors
from kafka.admin import ConfigResource, ConfigResourceType, NewTopic, OffsetSpec

from workers.deadline import Deadline
from workers.errors import EnvironmentFault, RetryableError
from workers.kafka_client import admin, sentence
from workers.offsets import read_position
from workers.records import Message, Position, TopicPartition
from workers.settings import KafkaSettings, SourceSettings

# Kafka's default for max.message.bytes, used where we may not read a topic's configuration.
DEFAULT_MAX_MESSAGE_BYTES = 1_048_588
DEFAULT_TIMESTAMP_AFTER_MAX_MS = 3_600_000
DEFAULT_TIMESTAMP_BEFORE_MAX_MS = 2**63 - 1

TOPIC_ID_S = 5.0
BROKERS_CHOICE = -1
_REFUSED = (
    kafka_errors.InvalidReplicationFactorError,
    kafka_errors.InvalidPartitionsError,
    kafka_errors.InvalidTopicError,
    kafka_errors.InvalidConfigurationError,
    kafka_errors.PolicyViolationError,
)


def create_topics(kafka: KafkaSettings, topics: Mapping[str, int], **configs: str) -> None:
    """Create topics with so many partitions each, replicated as the broker's default says; those that exist stay."""
    with admin(kafka) as client:
        for name, partitions in topics.items():
            with contextlib.suppress(kafka_errors.TopicAlreadyExistsError):
                client.create_topics([NewTopic(name=name, num_partitions=partitions, topic_configs=dict(configs))])
        client.wait_for_topics(list(topics))


def create_topic(
    client: KafkaAdminClient,
    kafka: KafkaSettings,
    name: str,
    partitions: int,
    replication: int,
    configs: Mapping[str, str],
) -> None:
    """Create a topic; one that exists stays. ``partitions`` and ``replication`` may be :data:`BROKERS_CHOICE`.

    Raises:
        EnvironmentFault: we may not, or the broker refuses such a topic.
    """
    try:
        client.create_topics(
            {name: {"num_partitions": partitions, "replication_factor": replication, "configs": dict(configs)}}
        )
    except kafka_errors.TopicAlreadyExistsError:
        pass
    except kafka_errors.AuthorizationError as error:
        raise EnvironmentFault(
            f"{kafka.who} may not create topic {name}: grant Create on it (kafka-acls.sh --add --operation Create --topic "
            f"{name})"
        ) from error
    except _REFUSED as error:
        raise EnvironmentFault(f"the broker refuses to create topic {name}: {sentence(error)}") from error


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
    compression: str = "producer"

    def refuses(self, message: Message) -> str | None:
        """Why the topic would refuse a message: ``too_large`` or ``no_key``."""
        if message.size > self.max_message_bytes:
            return "too_large"
        if self.compacted and message.key is None:
            return "no_key"
        return None


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
            compression=configs.get("compression.type", "producer"),
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


def ends_of(client: KafkaAdminClient, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
    """The same of these partitions; those that are gone, or have no leader at the moment, are left out."""
    wanted = {KafkaTopicPartition(*partition): OffsetSpec.LATEST for partition in partitions}
    try:
        found = client.list_partition_offsets(wanted) if wanted else {}
    except kafka_errors.KafkaError:
        # The client asks whom it takes for the leader; a partition that has none fails for all.
        led = _led(client, {tp.topic for tp in wanted})
        if not (some := {tp: spec for tp, spec in wanted.items() if tp in led}) or some == wanted:
            raise
        found = client.list_partition_offsets(some)
    return {TopicPartition(*tp): answer.offset for tp, answer in found.items() if answer.offset >= 0}


def bounds_of(client: KafkaAdminClient, partition: TopicPartition) -> tuple[int, int]:
    """The first offset of one partition, and the one after its last; the others' leaders are not asked."""
    tp = KafkaTopicPartition(*partition)
    begin, end = (
        client.list_partition_offsets({tp: spec})[tp].offset for spec in (OffsetSpec.EARLIEST, OffsetSpec.LATEST)
    )
    return begin, end


def _led(client: KafkaAdminClient, topics: Iterable[str]) -> set[KafkaTopicPartition]:
    """The partitions of these topics that have a leader."""
    return {
        KafkaTopicPartition(topic["name"], partition["partition_index"])
        for topic in client.describe_topics(list(topics))
        for partition in topic["partitions"]
        if partition["leader_id"] >= 0
    }


def begin_offsets(client: KafkaAdminClient, topics: Mapping[str, Topic]) -> dict[TopicPartition, int]:
    """The offset of each partition's first record that is still there."""
    return _offsets(client, topics, OffsetSpec.EARLIEST)


def committed_ends(client: KafkaAdminClient, topics: Mapping[str, Topic]) -> dict[TopicPartition, int]:
    """Up to where a read_committed reader gets in each partition: before the first transaction that is open."""
    return _offsets(client, topics, OffsetSpec.LATEST, "read_committed")


def _offsets(
    client: KafkaAdminClient, topics: Mapping[str, Topic], spec: OffsetSpec, isolation: str = "read_uncommitted"
) -> dict[TopicPartition, int]:
    wanted = {KafkaTopicPartition(topic.name, n): spec for topic in topics.values() for n in range(topic.partitions)}
    if not wanted:
        return {}
    found = client.list_partition_offsets(wanted, isolation_level=isolation)
    return {TopicPartition(*tp): answer.offset for tp, answer in found.items()}


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

    Raises:
        EnvironmentFault: a topic that the source names is not there.
    """
    topics = describe_topics(client, source_topics(client, source))
    if missing := [name for name in source.topics if name not in topics]:
        raise EnvironmentFault(f"topic {', '.join(missing)} does not exist, or may not be seen; create it again")
    ends, begins = end_offsets(client, topics), begin_offsets(client, topics)
    committed = committed_offsets(client, source.group)
    return sum(max(0, end - max(committed.get(tp, 0), begins[tp])) for tp, end in ends.items())
