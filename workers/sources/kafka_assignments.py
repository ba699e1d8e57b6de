"""Which partitions are ours, each under the epoch of its assignment.

Comes in: what the group gives and takes, and the positions that were found. Goes out: the same to the listener, in the order in
which it happened. Never here: Kafka.

Every assignment has an epoch of its own, also when it follows another of the same partition: what was read under an earlier one is
known by that, wherever it is on its way.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable

from workers.records import Position, TopicPartition
from workers.sources.base import SourceListener
from workers.sources.kafka_commits import OffsetCommits
from workers.sources.kafka_places import Places


class Assignments:
    """The partitions of one source. Quick, and any thread's: the client's I/O thread calls it as well as the one that polls."""

    def __init__(self, places: Places, commits: OffsetCommits) -> None:
        """``listener`` is to be set before anything is assigned."""
        self.listener: SourceListener | None = None
        self._places = places
        self._commits = commits
        self._lock = threading.Lock()
        self._epoch = 0
        self._epochs: dict[TopicPartition, int] = {}
        self._unplaced: dict[TopicPartition, int] = {}

    @property
    def owned(self) -> set[TopicPartition]:
        """All that are ours."""
        with self._lock:
            return set(self._epochs)

    @property
    def unplaced(self) -> dict[TopicPartition, int]:
        """Those that have no place yet, and so are not read, with their epochs."""
        with self._lock:
            return dict(self._unplaced)

    @property
    def placed(self) -> dict[TopicPartition, int]:
        """Those that are read, with their epochs."""
        with self._lock:
            return {partition: epoch for partition, epoch in self._epochs.items() if self._has_place(partition)}

    def add(self, partitions: Iterable[TopicPartition]) -> None:
        """They are ours from now on, and are to be placed."""
        with self._lock:
            self._begin(partitions)

    def drop(self, partitions: Iterable[TopicPartition], *, lost: bool) -> None:
        """They are ours no longer. ``lost``: the group went on without us."""
        with self._lock:
            for partition in (gone := list(partitions)):
                self._epochs.pop(partition, None)
                self._unplaced.pop(partition, None)
            self._end(gone, lost=lost)

    def begin_again(self, partitions: Iterable[TopicPartition]) -> list[TopicPartition]:
        """End the assignments of those that are ours, and have them placed anew; returns them."""
        with self._lock:
            return self._again([partition for partition in partitions if partition in self._epochs])

    def give_up_places(self, partitions: Iterable[TopicPartition]) -> list[TopicPartition]:
        """The same for those that have a place; the others get one anyway."""
        with self._lock:
            return self._again([partition for partition in partitions if self._has_place(partition)])

    def cut(self, partition: TopicPartition, offset: int, *, ends: bool) -> bool:
        """Place it anew, at ``offset`` at the latest, as :meth:`Places.cut` has it; whether it had a place."""
        with self._lock:
            if not self._has_place(partition):
                return False
            self._again([partition])
            self._places.cut(partition, offset, ends=ends)
            return True

    def place(self, partition: TopicPartition, epoch: int, position: Position) -> bool:
        """It is read from there on; False when the assignment has ended."""
        with self._lock:
            if self._unplaced.get(partition) != epoch:
                return False
            del self._unplaced[partition]
            self._places.forget([partition])
            self._told.assigned(partition, epoch, position)
            return True

    def skip(self, partition: TopicPartition, offset: int) -> None:
        """Its log begins at ``offset``, behind what comes next: say so, if it has a place."""
        with self._lock:
            if self._has_place(partition):
                self._told.skipped(partition, offset)

    @property
    def _told(self) -> SourceListener:
        assert self.listener is not None
        return self.listener

    def _has_place(self, partition: TopicPartition) -> bool:
        """Whether it is ours, and read."""
        return partition in self._epochs and partition not in self._unplaced

    def _begin(self, partitions: Iterable[TopicPartition]) -> None:
        for partition in partitions:
            self._epoch += 1
            self._epochs[partition] = self._unplaced[partition] = self._epoch

    def _end(self, partitions: list[TopicPartition], *, lost: bool) -> None:
        self._places.forget(partitions)
        self._commits.drop(partitions)
        self._told.revoked(partitions, lost=lost)

    def _again(self, partitions: list[TopicPartition]) -> list[TopicPartition]:
        if partitions:
            self._begin(partitions)
            self._end(partitions, lost=True)
        return partitions
