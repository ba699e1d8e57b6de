"""A consumer group from outside: who is in it, and putting its offsets elsewhere.

Comes in: an admin client. Goes out: facts, or offsets of a group that nobody is in. Never here: a membership of our own
(``workers.sources.kafka``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kafka import KafkaAdminClient, OffsetAndMetadata
from kafka import TopicPartition as KafkaTopicPartition
from kafka import errors as kafka_errors

from workers.errors import EnvironmentFault, RetryableError
from workers.offsets import write_position
from workers.records import Position, TopicPartition


@dataclass(frozen=True, slots=True)
class Member:
    """Who is in a group: what it calls itself, its host as the broker sees it, and the partitions that are its own."""

    client: str
    host: str
    partitions: tuple[TopicPartition, ...] = ()


@dataclass(frozen=True, slots=True)
class Group:
    """A group; ``state`` in Kafka's words: Stable, PreparingRebalance, CompletingRebalance, Empty; Dead: there is none."""

    name: str
    state: str
    members: tuple[Member, ...] = ()


def describe(client: KafkaAdminClient, group: str) -> Group:
    """A group with its members; Dead for one that is not there.

    Raises:
        EnvironmentFault: we may not see it.
        RetryableError: its coordinator does not answer now.
    """
    try:
        found = client.describe_groups([group])[group]
    except kafka_errors.GroupIdNotFoundError:
        return Group(group, "Dead")
    refused = found["error"] or ""
    if kafka_errors.GroupAuthorizationFailedError.__name__ in refused:
        raise EnvironmentFault(
            f"Kafka does not show group {group}: grant Read on it (kafka-acls.sh --add --operation Read --group {group})"
        )
    if refused and kafka_errors.GroupIdNotFoundError.__name__ not in refused:
        raise RetryableError(f"group {group} cannot be looked at now: {refused.strip(' :')}")
    members = (
        Member(member["client_id"], member["client_host"].lstrip("/"), _assigned(member["member_assignment"]))
        for member in found["members"]
    )
    return Group(group, found["group_state"], tuple(sorted(members, key=lambda member: (member.client, member.host))))


def _assigned(assignment: object) -> tuple[TopicPartition, ...]:
    """The partitions of an assignment; none while the group rebalances, or where another program words it otherwise."""
    if not isinstance(assignment, dict):
        return ()
    places = assignment.get("assigned_partitions") or ()
    return tuple(sorted(TopicPartition(place["topic"], number) for place in places for number in place["partitions"]))


def members(client: KafkaAdminClient, group: str) -> int:
    """How many members a group has; 0 for one that is not there."""
    return len(describe(client, group).members)


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
