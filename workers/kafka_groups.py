"""A consumer group from outside: who is in it, and putting its offsets elsewhere.

Comes in: an admin client. Goes out: facts, or offsets of a group that nobody is in. Never here: a membership of our own
(``workers.sources.kafka``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kafka import KafkaAdminClient, OffsetAndMetadata
from kafka import TopicPartition as KafkaTopicPartition
from kafka import errors as kafka_errors

from workers.errors import EnvironmentFault, RetryableError
from workers.offsets import write_position
from workers.records import Position, TopicPartition


def members(client: KafkaAdminClient, group: str) -> int:
    """How many members a group has; 0 for one that is not there."""
    try:
        described = client.describe_groups([group])[group]
    except kafka_errors.GroupIdNotFoundError:
        return 0
    return len(described["members"])


def offsets_since(
    client: KafkaAdminClient, partitions: Sequence[TopicPartition], since_ms: int
) -> dict[TopicPartition, int]:
    """The offset of each partition's first record since a moment (Unix, ms); one that has none is left out."""
    asked = {KafkaTopicPartition(*tp): since_ms for tp in partitions}
    found = client.list_partition_offsets(asked) if asked else {}
    return {TopicPartition(*tp): answer.offset for tp, answer in found.items() if answer.offset >= 0}


def commit_for(client: KafkaAdminClient, group: str, offsets: Mapping[TopicPartition, int]) -> None:
    """Commit offsets for a group that has no members; outputs have no positions of their own after it.

    Raises:
        EnvironmentFault: the group has members.
        RetryableError: the broker refuses otherwise.
    """
    wanted = {
        KafkaTopicPartition(*tp): OffsetAndMetadata(offset, write_position(Position(offset)), -1)
        for tp, offset in offsets.items()
    }
    for tp, refused in client.alter_group_offsets(group, wanted).items():
        if refused is kafka_errors.UnknownMemberIdError:
            raise EnvironmentFault(f"group {group} has members: stop the pipeline first")
        if refused is not kafka_errors.NoError:
            raise RetryableError(f"the offset of {TopicPartition(*tp)} was not committed: {refused.__name__}")
