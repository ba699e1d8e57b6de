"""Where partitions start of which the group has committed nothing.

Comes in: such partitions. Goes out: an offset for each, and what to write beside it. Never here: what is committed, or
assignments.

``latest`` means the end of a topic when the group first comes to it. A partition that is added later, and a topic that is
deleted and made anew, start at their beginning: else what is written to them before we hear of them would be lost. So the
first readers of a topic leave a note beside their first offsets, how many partitions it had, and read nothing before all of
those have an offset: a reader that finds its partition without one knows by the notes whether it is late or the partition
new.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Container, Iterable, Mapping
from typing import Any

from kafka import TopicPartition as KafkaTopicPartition

from workers import kafka_ends, log
from workers.records import Position, TopicPartition
from workers.settings import SourceSettings

LOG = log.get(__name__)

# A partition whose owner or leader is away must not hold up its topic for ever.
FIRST_START_S = 60.0
# Of a leader that hangs; the thread that asks polls for all partitions.
ASK_MS = 3_000


class Starts:
    """The start policy, for one consumer. Belongs to the thread that polls; errors are kafka-python's."""

    def __init__(self, consumer: Any, source: SourceSettings) -> None:
        """Asks nothing yet."""
        self._consumer = consumer
        self._source = source
        self._ids: dict[str, Any] = {}
        self._begun: set[str] = set()
        self._waiting: dict[str, float] = {}
        self._said: set[str] = set()

    def positions(
        self, partitions: Iterable[TopicPartition], anew: Container[TopicPartition] = ()
    ) -> dict[TopicPartition, tuple[Position, str]]:
        """Where the policy puts each that has a leader, and the metadata to commit beside it.

        ``anew``: those of topics that were made anew, of which what is committed says nothing.
        """
        wanted = kafka_ends.led(self._consumer, [KafkaTopicPartition(*partition) for partition in partitions])
        consumer, moment, notes = self._consumer, self._source.start_timestamp_ms, dict[Any, str]()
        if moment is not None:
            offsets = kafka_ends.since(consumer, wanted, moment, ASK_MS)
        elif self._source.start == "latest":
            known = {topic: self._siblings(topic) for topic in {tp.topic for tp in wanted}}
            first = [tp for tp in wanted if TopicPartition(*tp) not in anew and self._is_first(tp, known[tp.topic])]
            added = [tp for tp in wanted if tp not in first]
            offsets = kafka_ends.ends(consumer, first, ASK_MS) | kafka_ends.begins(consumer, added, ASK_MS)
            notes = {tp: _note(len(known[tp.topic])) for tp in first}
        else:
            offsets = kafka_ends.begins(consumer, wanted, ASK_MS)
        return {TopicPartition(*tp): (Position(offset), notes.get(tp, "")) for tp, offset in offsets.items()}

    def unfinished(self, topics: Iterable[str]) -> set[str]:
        """Those of ``topics`` that nothing may be read of yet: some of their first partitions have no offset."""
        if self._source.start != "latest":
            return set()
        found = set()
        for topic in topics:
            siblings = self._siblings(topic)
            first = _first(siblings)
            begun = any(metadata is not None for metadata in siblings.values())
            if begun and all(siblings.get(partition) is not None for partition in range(first)):
                self._begun.add(topic)
                self._waiting.pop(topic, None)
                continue
            since = self._waiting.setdefault(topic, time.monotonic())
            if time.monotonic() - since < FIRST_START_S:
                found.add(topic)
            elif topic not in self._said:
                self._said.add(topic)
                LOG.warning("started without some partitions %s", log.fields(topic=topic, partitions=first))
        return found

    def topic_id(self, topic: str) -> str:
        """Kafka's own id of a topic that is ours, in hex, as :meth:`made_anew` last saw it; empty where brokers say none."""
        found = self._ids.get(topic)
        return "" if found is None else uuid.UUID(str(found)).hex

    def made_anew(self) -> list[Any]:
        """Our partitions of topics that are not what they were: deleted, and made again under their name."""
        cluster, assigned = self._consumer._cluster, self._consumer.assignment()
        ids = {topic: cluster.topic_id(topic) for topic in {tp.topic for tp in assigned}}
        anew = {topic for topic, at in ids.items() if at is not None and self._ids.get(topic, at) != at}
        self._ids |= {topic: at for topic, at in ids.items() if at is not None}
        return [tp for tp in assigned if tp.topic in anew]

    def _siblings(self, topic: str) -> Mapping[int, str | None]:
        """The metadata committed for each partition of a topic, None where nothing is committed."""
        tps = [
            KafkaTopicPartition(topic, number) for number in sorted(self._consumer.partitions_for_topic(topic) or ())
        ]
        coordinator = self._consumer._coordinator
        # A fetch that timed out stays cached, and would answer with what was true then.
        coordinator._offset_fetch_futures.clear()
        found = coordinator.fetch_committed_offsets(tps, timeout_ms=5_000) if tps else {}
        return {
            tp.partition: entry.metadata or "" if (entry := found.get(tp)) is not None and entry.offset >= 0 else None
            for tp in tps
        }

    def _is_first(self, tp: Any, siblings: Mapping[int, str | None]) -> bool:
        """Whether the group comes to this partition as it comes to its topic."""
        if all(metadata is None for metadata in siblings.values()):
            # The commits of a topic go with it; that we read it before is all that is left to tell.
            return tp.topic not in self._begun
        return bool(tp.partition < _first(siblings))


def _note(partitions: int) -> str:
    return json.dumps({"v": 1, "outputs": {}, "first": partitions}, separators=(",", ":"))


def _first(siblings: Mapping[int, str | None]) -> int:
    """How many partitions the topic had when the group came to it, as far as notes are left; else 0."""
    most = 0
    for metadata in siblings.values():
        try:
            first = json.loads(metadata or "")["first"]
        except (ValueError, TypeError, KeyError, RecursionError):
            continue
        if isinstance(first, int):
            most = max(most, first)
    return most
