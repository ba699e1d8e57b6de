"""What a new assignment begins with: what the group has committed, else what the start policy says.

Comes in: assignments, and partitions whose logs have lost their end. Goes out: a position for each. Never here: the outputs' own
places (``workers.placing``), or seeking.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from kafka import OffsetAndMetadata
from kafka import TopicPartition as KafkaTopicPartition

from workers import kafka_ends
from workers.errors import RetryableError
from workers.offsets import write_position
from workers.records import Position, TopicPartition
from workers.settings import SourceSettings
from workers.sources.kafka_start import ASK_MS, Starts

COMMIT_MS = 5_000


class Places:
    """Positions by assignment. :meth:`look_up` belongs to the thread that polls; the others are quick, and any thread's."""

    def __init__(self, source: SourceSettings) -> None:
        """Asks nothing yet."""
        self._source = source
        self._lock = threading.Lock()
        self._found: dict[tuple[TopicPartition, int], Position] = {}
        self._cut: dict[TopicPartition, _Cut] = {}

    def of(self, partition: TopicPartition, epoch: int) -> Position | None:
        """The position of an assignment, once it was looked up."""
        return self._found.get((partition, epoch))

    def cut(self, partition: TopicPartition, offset: int, *, ends: bool = False) -> None:
        """The partition's next assignment begins at ``offset`` at the latest, or where its log ``ends``: no more of it was read."""
        with self._lock:
            self._cut[partition] = _Cut(offset, ends)

    def forget(self, partitions: Iterable[TopicPartition]) -> None:
        """Assignments have begun or ended."""
        with self._lock:
            for partition in partitions:
                self._cut.pop(partition, None)

    def look_up(
        self,
        unplaced: Mapping[TopicPartition, int],
        committed: Callable[[Iterable[TopicPartition]], Mapping[TopicPartition, Position]],
        starts: Starts,
        consumer: Any,
    ) -> None:
        """Know the position of each of these assignments, by its epoch; those that are known are not asked about again.

        Of a partition without a leader it may stay unknown.

        Raises:
            KafkaError, RetryableError: not to be known now.
        """
        self._found = {key: at for key, at in self._found.items() if unplaced.get(key[0]) == key[1]}
        unknown = self.unknown(unplaced)
        cuts, unled = self._cuts(unknown, consumer)
        asked = {partition: epoch for partition, epoch in unknown.items() if partition not in unled}
        if not asked:
            return
        ids = {partition: starts.topic_id(partition.topic) for partition in asked}
        found = committed(asked)
        # A commit that was on its way when its topic was deleted outlives it, and says nothing of the one that is made anew.
        past = {partition for partition, at in found.items() if not at.of(ids[partition])}
        found = {partition: at for partition, at in found.items() if partition not in past}
        cut = {partition: _before(found.get(partition), at) for partition, at in cuts.items()}
        # At once: a leader that hangs, and is asked below, holds up none of these.
        self._know(asked, ids, {partition: at for partition, at in found.items() if partition not in cut})
        missing = [partition for partition in asked if partition not in found and partition not in cut]
        started = starts.positions(missing, past) if missing else {}
        fixed = {partition: (at.offset, write_position(at)) for partition, at in cut.items()}
        if self._source.start != "earliest":
            # "latest" must mean the moment of the first start: without a commit, a crash before the first record would
            # move it to the moment of the restart, and lose what came between.
            fixed |= {partition: (at.offset, note) for partition, (at, note) in started.items()}
        if fixed:
            # One that fails is tried again, because none of these is placed before it.
            consumer.commit({KafkaTopicPartition(*p): OffsetAndMetadata(*at, -1) for p, at in fixed.items()}, COMMIT_MS)
        if cut and any(at.offset != cut[partition].offset for partition, at in committed(cut).items()):
            raise RetryableError("a transaction that had begun before the log was cut has moved the group again")
        self._know(asked, ids, cut | {partition: at for partition, (at, _) in started.items()})

    def _know(
        self,
        asked: Mapping[TopicPartition, int],
        ids: Mapping[TopicPartition, str],
        found: Mapping[TopicPartition, Position],
    ) -> None:
        for partition, at in found.items():
            self._found[partition, asked[partition]] = replace(at, topic_id=ids[partition])

    def unknown(self, unplaced: Mapping[TopicPartition, int]) -> dict[TopicPartition, int]:
        """Those of these assignments whose positions are still to be looked up."""
        return {partition: epoch for partition, epoch in unplaced.items() if (partition, epoch) not in self._found}

    def _cuts(
        self, asked: Iterable[TopicPartition], consumer: Any
    ) -> tuple[dict[TopicPartition, int], set[TopicPartition]]:
        """Where those begin, at the latest, whose logs were cut; and those of them whose end no leader says."""
        with self._lock:
            cuts = {partition: self._cut[partition] for partition in asked if partition in self._cut}
        led = kafka_ends.led(consumer, [KafkaTopicPartition(*p) for p, cut in cuts.items() if cut.ends])
        ends = {TopicPartition(*tp): end for tp, end in kafka_ends.ends(consumer, led, ASK_MS).items()}
        unled = {partition for partition, cut in cuts.items() if cut.ends and partition not in ends}
        at = {
            partition: min(cut.offset, ends.get(partition, cut.offset))
            for partition, cut in cuts.items()
            if partition not in unled
        }
        return at, unled


class _Cut(NamedTuple):
    offset: int
    ends: bool


def _before(position: Position | None, offset: int) -> Position:
    """A position with nothing in it that lies behind ``offset``."""
    if position is None:
        return Position(offset)
    outputs = {name: min(at, offset) for name, at in position.outputs.items()}
    return replace(position, offset=min(position.offset, offset), outputs=outputs)
