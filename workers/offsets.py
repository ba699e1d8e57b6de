"""The ledger: which records are in flight, which are done, and how far each partition may commit. Pure.

Comes in: records in partition order, outcomes in any order. Goes out: each partition's completed prefix, in order. Never
here: locks, clocks, I/O; the reader guards the ledger with its own lock.

One idea does four jobs: batches may finish out of order, outcomes still leave in partition order, a transaction holds
exactly the outcomes of the offsets that it commits, and what is in flight has a ceiling.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from workers.records import Chunked, Origin, Outcome, Position, Record, Settled, TopicPartition

# What a chunk costs in memory beside its vector.
_PART_BYTES = 300


@dataclass(frozen=True, slots=True)
class Prefix:
    """The settled records at the front of a partition: what the next commit of the partition may hold.

    ``next_offset`` is the offset to read after them; ``already`` says, by output name, below which offset an output has
    its records from an earlier run.
    """

    topic_partition: TopicPartition
    epoch: int
    settled: tuple[Settled, ...]
    next_offset: int
    already: Mapping[str, int]


class _Entry:
    __slots__ = ("outcome", "record", "size")

    def __init__(self, record: Record) -> None:
        self.record = record
        self.size = record.size
        self.outcome: Outcome | None = None


class _Lane:
    __slots__ = (
        "already",
        "entries",
        "epoch",
        "files",
        "index",
        "next_offset",
        "released",
        "start",
        "told",
        "topic_id",
    )

    def __init__(self, epoch: int, position: Position, files: Iterable[str]) -> None:
        self.epoch = epoch
        self.topic_id = position.topic_id
        self.already = dict(position.outputs)
        self.start = self.next_offset = self.released = position.offset
        self.files = {name: self.already.get(name, position.offset) for name in files}
        self.told: Mapping[str, int] = {}
        self.entries: deque[_Entry] = deque()
        self.index: dict[int, _Entry] = {}


class OffsetLedger:
    """In-flight records of the assigned partitions.

    A partition's ``epoch`` names one assignment of it. Everything that carries another epoch than the current one is
    refused, so that results for a partition that was lost, and perhaps regained, can never be written.
    """

    def __init__(self, topics: Sequence[str] = (), files: Sequence[str] = (), marks: Sequence[str] = ()) -> None:
        """Names of the outputs: ``topics`` move on with a commit, ``files`` each in its own time (:meth:`advance`).

        ``marks`` are no outputs: they stay as the position has them with which an assignment begins, or where it skips to.
        """
        self._topics = tuple(topics)
        self._files = tuple(files)
        self._marks = tuple(marks)
        self._lanes: dict[TopicPartition, _Lane] = {}
        self._records = 0
        self._bytes = 0
        self._turn = 0

    @property
    def records(self) -> int:
        """Records in flight: added, not yet released."""
        return self._records

    @property
    def bytes(self) -> int:
        """Bytes of the records in flight, as :attr:`Record.size` counts them."""
        return self._bytes

    @property
    def following(self) -> dict[TopicPartition, int]:
        """The assigned partitions with the offset after the last record added to each."""
        return {partition: lane.next_offset for partition, lane in self._lanes.items()}

    @property
    def epochs(self) -> dict[TopicPartition, int]:
        """The assigned partitions with the epoch of each."""
        return {partition: lane.epoch for partition, lane in self._lanes.items()}

    def assign(self, partition: TopicPartition, epoch: int, position: Position) -> None:
        """Start a partition at ``position``; whatever an earlier epoch left is dropped."""
        self.revoke([partition])
        self._lanes[partition] = _Lane(epoch, position, self._files)

    def skip(self, partition: TopicPartition, offset: int) -> None:
        """The source has nothing any more from where the partition goes on up to ``offset``. What is in flight stays."""
        lane = self._lanes[partition]
        lane.next_offset = max(lane.next_offset, offset)
        for name in self._marks:
            lane.already[name] = max(lane.already[name], offset)

    def revoke(self, partitions: Iterable[TopicPartition]) -> int:
        """Give partitions up; returns how many records in flight went with them. Unknown partitions are ignored."""
        dropped = 0
        for partition in partitions:
            lane = self._lanes.pop(partition, None)
            if lane is not None:
                dropped += len(lane.entries)
                self._forget(lane, len(lane.entries))
        return dropped

    def add(self, record: Record) -> bool:
        """Take a record in flight; False when its epoch is stale, or its offset lies before the partition's position.

        Offsets may have gaps (compaction, transaction markers); they never go backwards.
        """
        origin = record.origin
        lane = self._lane(origin)
        if lane is None or origin.offset < lane.next_offset:
            return False
        entry = _Entry(record)
        lane.entries.append(entry)
        lane.index[origin.offset] = entry
        lane.next_offset = origin.offset + 1
        self._records += 1
        self._bytes += entry.size
        return True

    def settle(self, origin: Origin, outcome: Outcome) -> bool:
        """Give a record its outcome; False when its epoch is stale, it has been released, or it has an outcome already."""
        lane = self._lane(origin)
        entry = lane.index.get(origin.offset) if lane is not None else None
        if entry is None or entry.outcome is not None:
            return False
        entry.outcome = outcome
        if isinstance(outcome, Chunked):
            # A text's vectors may take more than the text, and wait for the records before theirs.
            held = sum(part.vector.nbytes + _PART_BYTES for part in outcome.parts)
            entry.size += held
            self._bytes += held
        return True

    def ready(self, most: int) -> int:
        """How many records :meth:`drain` would return, counted up to ``most``; a record in chunks counts as so many."""
        count = 0
        for lane in self._lanes.values():
            for entry in lane.entries:
                if entry.outcome is None or count >= most:
                    break
                count += _weight(entry.outcome)
        return count

    def drain(self, most: int) -> list[Prefix]:
        """The completed prefixes, ``most`` records in all; partitions take turns at being first.

        A record in chunks counts as so many. Nothing is removed: call :meth:`release` once a prefix is committed. Draining
        again returns the same records, and those that were completed since.
        """
        partitions = sorted(self._lanes)
        if not partitions:
            return []
        self._turn = (self._turn + 1) % len(partitions)
        prefixes = []
        for partition in partitions[self._turn :] + partitions[: self._turn]:
            lane = self._lanes[partition]
            settled: list[Settled] = []
            for entry in lane.entries:
                if entry.outcome is None or most <= 0:
                    break
                settled.append(Settled(entry.record, entry.outcome))
                most -= _weight(entry.outcome)
            if settled:
                following = settled[-1].record.origin.offset + 1
                prefixes.append(Prefix(partition, lane.epoch, tuple(settled), following, dict(lane.already)))
        return prefixes

    def advance(self, partition: TopicPartition, epoch: int, name: str, offset: int) -> None:
        """An output of files has all outcomes below ``offset``; of a past epoch, that is forgotten."""
        lane = self._lanes.get(partition)
        if lane is not None and lane.epoch == epoch:
            lane.files[name] = max(lane.files[name], offset)

    def chains(self, partition: TopicPartition) -> list[int]:
        """How far each output of files has come, in their order."""
        return list(self._lanes[partition].files.values())

    @property
    def untold(self) -> bool:
        """Whether files have moved on since the last commit that said so."""
        return any(lane.files != lane.told for lane in self._lanes.values())

    def positions(self, prefixes: Iterable[Prefix]) -> dict[TopicPartition, Position]:
        """What to commit once ``prefixes`` are in their topics, partitions whose files have moved on included.

        The offset is where the output that is furthest behind goes on; each output's own position stands beside it.
        """
        following = {prefix.topic_partition: prefix.next_offset for prefix in prefixes}
        found = {}
        for partition, lane in self._lanes.items():
            if partition in following or lane.files != lane.told:
                offset = following.get(partition, lane.released)
                outputs = {name: max(offset, lane.already.get(name, 0)) for name in self._topics} | lane.files
                outputs |= {name: lane.already[name] for name in self._marks}
                found[partition] = Position(min([offset, *lane.files.values()]), outputs, lane.topic_id)
        return found

    def told(self, positions: Mapping[TopicPartition, Position]) -> None:
        """These positions are committed."""
        for partition, position in positions.items():
            if (lane := self._lanes.get(partition)) is not None:
                lane.told = {name: position.outputs[name] for name in self._files}

    def owns(self, assignments: Mapping[TopicPartition, int]) -> bool:
        """Whether these partitions are still in the assignments of these epochs."""
        return all(
            (lane := self._lanes.get(partition)) is not None and lane.epoch == epoch
            for partition, epoch in assignments.items()
        )

    def release(self, prefix: Prefix) -> None:
        """Forget a prefix that is committed. A prefix of a past epoch has gone already."""
        lane = self._lanes.get(prefix.topic_partition)
        if lane is not None and lane.epoch == prefix.epoch:
            self._release(lane, prefix.next_offset)

    def resolve(self, partition: TopicPartition, epoch: int, position: Position) -> list[Settled]:
        """Forget what a commit in doubt turns out to have held, by the ``position`` that is committed; returns it.

        Raises:
            ValueError: the topics have outcomes beyond a record that has none yet. Somebody else commits for the
                partition; the caller must give it up and read it again.
        """
        lane = self._lanes.get(partition)
        if lane is None or lane.epoch != epoch or not position.of(lane.topic_id):
            return []
        reached = min((position.outputs.get(name, position.offset) for name in self._topics), default=position.offset)
        if reached <= min((lane.already.get(name, lane.start) for name in self._topics), default=lane.start):
            reached = position.offset  # the topics had this when the assignment began: it says nothing of the commit
        done = self._release(lane, reached) if reached > lane.released else []
        return [Settled(entry.record, entry.outcome) for entry in done if entry.outcome is not None]

    def _release(self, lane: _Lane, committed: int) -> list[_Entry]:
        """Forget the records below ``committed``, and return them; all of them have their outcomes."""
        done: list[_Entry] = []
        for entry in lane.entries:
            origin = entry.record.origin
            if origin.offset >= committed:
                break
            if entry.outcome is None:
                raise ValueError(
                    f"{origin.topic_partition} is committed up to {committed}, beyond a record that this reader still has"
                )
            done.append(entry)
        self._forget(lane, len(done))
        lane.released = max(lane.released, committed)
        return done

    def _lane(self, origin: Origin) -> _Lane | None:
        lane = self._lanes.get(TopicPartition(origin.topic, origin.partition))
        return lane if lane is not None and lane.epoch == origin.epoch else None

    def _forget(self, lane: _Lane, count: int) -> None:
        for _ in range(count):
            entry = lane.entries.popleft()
            del lane.index[entry.record.origin.offset]
            self._records -= 1
            self._bytes -= entry.size


def _weight(outcome: Outcome) -> int:
    """How many output records an outcome makes."""
    return len(outcome.parts) if isinstance(outcome, Chunked) else 1


def write_position(position: Position) -> str:
    """The positions of the outputs as the metadata string that travels with an offset commit (4,096 bytes at most)."""
    said = {"v": 1, "outputs": dict(position.outputs)} | ({"topic": position.topic_id} if position.topic_id else {})
    return json.dumps(said, separators=(",", ":"))


def read_position(offset: int, metadata: str) -> Position:
    """A committed position; metadata that another program wrote counts as none."""
    try:
        said = json.loads(metadata)
        outputs = {str(name): int(value) for name, value in said["outputs"].items()}
        return Position(offset, outputs, str(said.get("topic", "")))
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return Position(offset)
