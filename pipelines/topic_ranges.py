"""Which offsets of which partitions are meant: those that a batch job reads, and those that a run would find.

Comes in: settings. Goes out: a range for each partition, as the log has it now. Never here: a record.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.dead_letters import require_topic
from workers import kafka_client, kafka_groups, kafka_topics
from workers.errors import EnvironmentFault
from workers.kafka_topics import Topic
from workers.records import TopicPartition
from workers.settings import Settings
from workers.settings.batch import type_bound


@dataclass(frozen=True, slots=True)
class PartitionRange:
    """Offsets ``start`` to ``stop`` (exclusive) of a partition."""

    partition: TopicPartition
    start: int
    stop: int

    @property
    def offsets(self) -> int:
        """How many; no more records than these."""
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Ranges:
    """The ranges of all partitions, those without offsets too, and what is known of their topics."""

    topics: Mapping[str, Topic]
    partitions: tuple[PartitionRange, ...]

    @property
    def offsets(self) -> int:
        """How many they are together."""
        return sum(each.offsets for each in self.partitions)


def named_topics(settings: Settings) -> list[str]:
    """The source's topics, which are there and may be read. Errors as below."""
    with kafka_client.admin(settings.kafka) as client:
        return list(_topics(client, settings))


def batch_ranges(settings: Settings) -> Ranges:
    """What ``batch.start`` and ``batch.end`` mean now, of the source's topics; up to what is committed, at most.

    Raises:
        EnvironmentFault: a topic is not there or may not be read, or its log has no such offsets.
        RetryableError: the broker does not answer now.
    """
    batch = settings.batch

    def chosen(client: Any, topics: Mapping[str, Topic]) -> tuple[PartitionRange, ...]:
        begins, ends = kafka_topics.begin_offsets(client, topics), kafka_topics.committed_ends(client, topics)
        named = batch.first if isinstance(batch.first, Mapping) else batch.last
        wanted = _named(begins, named) if isinstance(named, Mapping) else sorted(begins)
        starts = _placed(client, wanted, batch.first, begins, ends, default=begins)
        stops = _placed(client, wanted, batch.last, begins, ends, default=ends)
        return tuple(PartitionRange(tp, starts[tp], max(starts[tp], stops[tp])) for tp in wanted)

    return _ranges(settings, chosen)


def waiting_ranges(settings: Settings) -> Ranges:
    """What ``run`` would read of what is there: from what its group has committed, else from where it starts.

    Errors as above.
    """
    source = settings.source

    def chosen(client: Any, topics: Mapping[str, Topic]) -> tuple[PartitionRange, ...]:
        begins, ends = kafka_topics.begin_offsets(client, topics), kafka_topics.committed_ends(client, topics)
        committed = kafka_topics.committed_offsets(client, source.group)
        default = ends if source.start == "latest" else begins
        starts = _placed(client, sorted(begins), source.start_timestamp_ms, begins, ends, default=default)
        return tuple(
            PartitionRange(tp, min(max(committed.get(tp, start), begins[tp]), ends[tp]), ends[tp])
            for tp, start in starts.items()
        )

    return _ranges(settings, chosen)


def whole_ranges(settings: Settings) -> Ranges:
    """All that is there. Errors as above."""

    def chosen(client: Any, topics: Mapping[str, Topic]) -> tuple[PartitionRange, ...]:
        begins, ends = kafka_topics.begin_offsets(client, topics), kafka_topics.committed_ends(client, topics)
        return tuple(PartitionRange(tp, begins[tp], max(begins[tp], ends[tp])) for tp in sorted(begins))

    return _ranges(settings, chosen)


def _ranges(settings: Settings, chosen: Callable[[Any, Mapping[str, Topic]], tuple[PartitionRange, ...]]) -> Ranges:
    with kafka_client.admin(settings.kafka) as client:
        topics = _topics(client, settings)
        return Ranges(topics, chosen(client, topics))


def _topics(client: Any, settings: Settings) -> dict[str, Topic]:
    names = kafka_topics.source_topics(client, settings.source)
    topics = kafka_topics.describe_topics(client, names)
    for name in names:
        require_topic(settings.kafka, topics, name, "READ", "read")
    if not topics:
        raise EnvironmentFault(f"source.pattern {settings.source.pattern} matches no topic that this user may see")
    return topics


def _named(there: Mapping[TopicPartition, int], named: Mapping[str, int]) -> list[TopicPartition]:
    """The partitions that are named."""
    known = {str(tp): tp for tp in there}
    if other := next((name for name in named if name not in known), None):
        raise EnvironmentFault(
            f"batch.start or batch.end names {other}, which is no partition of the source's topics; such as {next(iter(known))}"
        )
    return sorted(known[name] for name in named)


def _placed(
    client: Any,
    wanted: list[TopicPartition],
    bound: type_bound | None,
    begins: Mapping[TopicPartition, int],
    ends: Mapping[TopicPartition, int],
    *,
    default: Mapping[TopicPartition, int],
) -> dict[TopicPartition, int]:
    """Where a bound lies in each partition; of a moment: at the first record since then, else at the end."""
    if bound is None:
        return {tp: default[tp] for tp in wanted}
    if isinstance(bound, int):
        since = kafka_groups.offsets_since(client, wanted, bound)
        return {tp: min(since.get(tp, ends[tp]), ends[tp]) for tp in wanted}
    for tp in wanted:
        if not begins[tp] <= bound[str(tp)] <= ends[tp]:
            raise EnvironmentFault(
                f"{tp} has the offsets {begins[tp]:,} to {ends[tp]:,} now, and {bound[str(tp)]:,} is none of them: what was there "
                "has been deleted, or is not written or committed yet"
            )
    return {tp: bound[str(tp)] for tp in wanted}
