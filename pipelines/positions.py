"""How far a pipeline's group is in each partition of its source.

Comes in: an admin client, settings, which partitions. Goes out: what is committed, where the log begins and ends, and the lag.
Never here: a table, or a commit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from workers import kafka_topics
from workers.errors import EnvironmentFault, SettingsError
from workers.kafka_topics import Topic
from workers.records import Position, TopicPartition
from workers.settings import Settings


@dataclass(frozen=True, slots=True)
class Standing:
    """A partition, what the group has committed of it (None: nothing), its first offset, and the one after its last."""

    partition: TopicPartition
    committed: Position | None
    begin: int
    end: int

    @property
    def following(self) -> int:
        """The offset that is read next."""
        return self.begin if self.committed is None else max(self.begin, self.committed.offset)

    @property
    def lag(self) -> int:
        """Offsets from there to the end: records, and marks of transactions among them."""
        return max(0, self.end - self.following)

    @property
    def apart(self) -> dict[str, int]:
        """The outputs that are elsewhere than the committed offset, and where."""
        at = self.committed
        return {} if at is None else {name: own for name, own in sorted(at.own.items()) if own != at.offset}

    @property
    def elsewhere(self) -> str:
        """The same in words."""
        return ", ".join(f"{name} at {own:,}" for name, own in self.apart.items())

    def as_json(self) -> dict[str, Any]:
        """For programs; ``outputs`` are those that said where they are."""
        at = self.committed
        return {
            "topic": self.partition.topic,
            "partition": self.partition.partition,
            "committed": None if at is None else at.offset,
            "begin": self.begin,
            "end": self.end,
            "lag": self.lag,
            "outputs": {} if at is None else at.own,
        }


def source_partitions(
    client: Any, settings: Settings, places: Sequence[str] = ()
) -> tuple[dict[str, Topic], list[TopicPartition]]:
    """The source's topics, and those of their partitions that ``places`` mean; without any, all.

    Raises:
        EnvironmentFault: a topic is not there.
        SettingsError: a place is none.
    """
    topics = kafka_topics.describe_topics(client, kafka_topics.source_topics(client, settings.source))
    if missing := [name for name in settings.source.topics if name not in topics]:
        raise EnvironmentFault(f"topic {', '.join(missing)} does not exist, or this user may not see it")
    if not topics:
        raise EnvironmentFault(f"source.pattern {settings.source.pattern} matches no topic that this user may see")
    every = [TopicPartition(name, n) for name in sorted(topics) for n in range(topics[name].partitions)]
    if not places:
        return topics, every
    meant: list[TopicPartition] = []
    for place in places:
        found = [tp for tp in every if place in (tp.topic, str(tp))]
        if not found:
            raise SettingsError(
                f"{place!r} is no topic of the source and no partition of one: write TOPIC or TOPIC/PARTITION, such as "
                f"{every[0]}"
            )
        meant += found
    return topics, sorted(set(meant))


def standings(client: Any, settings: Settings, places: Sequence[str] = ()) -> list[Standing]:
    """How far the group is in each partition; errors as :func:`source_partitions`."""
    topics, wanted = source_partitions(client, settings, places)
    committed = kafka_topics.committed_positions(client, settings.source.group)
    begins, ends = kafka_topics.begin_offsets(client, topics), kafka_topics.end_offsets(client, topics)
    return [Standing(tp, committed.get(tp), begins[tp], ends[tp]) for tp in wanted]
