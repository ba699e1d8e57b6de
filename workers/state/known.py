"""What is known of the keys of the partitions that are ours: as of what is committed, and as of what is about to be.

Comes in: assignments, records as they are prepared, prefixes as they are rendered and committed. Goes out: which of them change
nothing, what stands under a key, and the records of the state topic that a transaction takes. Never here: Kafka, or a wait.

Two positions matter. What the topics have is ahead of what the group has committed while outputs of files lag behind: those
records will be read again after a crash, and must then meet the state as it was. So the local copy goes with the first, and a
change is written to the state topic only in the transaction whose committed offset reaches beyond its record.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from workers.errors import PoisonError
from workers.records import Document, Message, Position, Record, Tombstone, TopicPartition, Unchanged
from workers.state.entry import Change, Digests, Entry, read_entry, state_key, write_entry
from workers.state.store import Store

type_found = Document | Tombstone | PoisonError

# Pieces of a partition's state as it is read: keys and values, None where a key is gone.
type_log = Callable[[TopicPartition], Iterator[Sequence[tuple[bytes, bytes | None]]]]


@dataclass(slots=True)
class _Lane:
    """One assignment of a partition.

    ``underway``: keys of records that may change something and are not committed to the topics, with the last one's offset;
    ``prepared``: the same in order. ``untold``: changes that are in the copy and not in the state topic.
    """

    epoch: int
    store: Store
    underway: dict[bytes, int] = field(default_factory=dict)
    prepared: deque[tuple[int, bytes]] = field(default_factory=deque)
    untold: deque[Change] = field(default_factory=deque)


class View:
    """What stands under the keys of one partition while a prefix is rendered, record by record."""

    def __init__(self, known: Known, partition: TopicPartition, epoch: int) -> None:
        self._known = known
        self._partition = partition
        self._epoch = epoch
        self._new: dict[bytes, Entry | None] = {}
        self.changes: list[Change] = []

    def before(self, record: Record) -> Entry | None:
        """What stands under the record's key, by all records before it; None: nothing, or it has no key."""
        if record.key is None:
            return None
        key = state_key(record.origin.topic, record.key)
        if key in self._new:
            return self._new[key]
        return self._known.entry(self._partition, self._epoch, key)

    def same(self, document: Document, entry: Entry | None) -> bool:
        """Whether writing ``document`` over ``entry`` would change nothing, and need not be done."""
        return self._known.skips and entry is not None and entry.digest == document.digest

    def leaves(self, record: Record, entry: Entry | None) -> None:
        """What the record leaves under its key."""
        if record.key is None:
            return
        key = state_key(record.origin.topic, record.key)
        if entry is None and self.before(record) is None:
            return
        self._new[key] = entry
        self.changes.append(Change(record.origin.offset, key, entry))


class Known:
    """The state of the partitions that are ours. For any number of threads."""

    def __init__(
        self, topic: str, log: type_log, digests: Digests, *, skip: bool, store: Callable[[], Store] = Store
    ) -> None:
        """Nothing is read yet.

        Args:
            topic: where it is kept.
            log: reads a partition's state from there, in order, as of what the group has committed.
            digests: what tells one output record from another.
            skip: whether records that change nothing are not embedded again.
            store: makes the local copy of one partition.
        """
        self._topic = topic
        self._log = log
        self._digests = digests
        self.skips = skip
        self._store = store
        self._lock = threading.Lock()
        self._lanes: dict[TopicPartition, _Lane] = {}
        self._loaded: dict[TopicPartition, tuple[int, Store]] = {}

    # ---- the partitions, as the reader has them

    def load(self, partition: TopicPartition, epoch: int, wanted: Callable[[], bool]) -> int | None:
        """Read the state of an assignment before it begins, for as long as it is ``wanted``; returns how many keys it has.

        Takes long. It must come after the group's committed offset was read, from which the assignment will begin.

        Raises:
            EnvironmentFault, RetryableError: it cannot be read.
        """
        store = self._store()
        try:
            for piece in self._log(partition):
                store.put(piece)
                if not wanted():
                    store.close()
                    return None
        except BaseException:
            store.close()
            raise
        with self._lock:
            if (old := self._loaded.pop(partition, None)) is not None:
                old[1].close()
            self._loaded[partition] = epoch, store
            return len(store)

    def assign(self, partition: TopicPartition, epoch: int) -> None:
        """An assignment begins, at the offset that was committed when its state was read."""
        with self._lock:
            self._drop(partition)
            found = self._loaded.pop(partition, None)
            assert found is not None and found[0] == epoch, f"{partition} begins without its state"
            self._lanes[partition] = _Lane(epoch, found[1])

    def move(self, partition: TopicPartition, epoch: int) -> None:
        """A partition that is ours goes on further ahead, under a new epoch."""
        with self._lock:
            if (lane := self._lanes.get(partition)) is not None:
                self._lanes[partition] = _Lane(epoch, lane.store, untold=lane.untold)

    def revoke(self, partitions: Iterable[TopicPartition]) -> None:
        """Partitions are ours no longer."""
        with self._lock:
            for partition in partitions:
                self._drop(partition)

    def close(self) -> None:
        """Give the disk back."""
        with self._lock:
            for partition in [*self._lanes, *self._loaded]:
                self._drop(partition)
                if (loaded := self._loaded.pop(partition, None)) is not None:
                    loaded[1].close()

    def _drop(self, partition: TopicPartition) -> None:
        if (lane := self._lanes.pop(partition, None)) is not None:
            lane.store.close()

    @property
    def disk_bytes(self) -> int:
        """What the copies take on disk."""
        with self._lock:
            return sum(lane.store.bytes for lane in self._lanes.values())

    # ---- the work thread

    def recognise(self, found: Sequence[tuple[Record, type_found]]) -> list[tuple[Record, type_found | Unchanged]]:
        """Records of one partition with what was decoded: documents get their digest, or turn out to be unchanged.

        A record is unchanged when its key's entry says so and no record that is on its way may change that entry. All records
        that are held must pass here, in their order.
        """
        out: list[tuple[Record, type_found | Unchanged]] = []
        for record, meaning in found:
            if record.key is None:
                out.append((record, meaning))
                continue
            key, origin, now = state_key(record.origin.topic, record.key), record.origin, meaning
            if isinstance(meaning, Document):
                now = replace(meaning, digest=self._digests.of(record, meaning))
            with self._lock:
                lane = self._lanes.get(origin.topic_partition)
                if lane is None or lane.epoch != origin.epoch:
                    out.append((record, now))  # nobody will take its outcome
                    continue
                if isinstance(now, Document) and self.skips and key not in lane.underway:
                    entry = _entry(lane, key)
                    if entry is not None and entry.digest == now.digest:
                        out.append((record, Unchanged(entry.tokens)))
                        continue
                lane.underway[key] = origin.offset
                lane.prepared.append((origin.offset, key))
            out.append((record, now))
        return out

    # ---- the commit thread

    def entry(self, partition: TopicPartition, epoch: int, key: bytes) -> Entry | None:
        """What stands under a state key, by what the topics have; None of an assignment that has ended."""
        with self._lock:
            lane = self._lanes.get(partition)
            return _entry(lane, key) if lane is not None and lane.epoch == epoch else None

    def view(self, partition: TopicPartition, epoch: int) -> View:
        """What stands under the keys of an assignment, for one prefix of it."""
        return View(self, partition, epoch)

    def due(
        self, positions: Mapping[TopicPartition, Position], fresh: Mapping[TopicPartition, Sequence[Change]]
    ) -> list[Message]:
        """What a transaction that commits ``positions`` writes to the state topic; ``fresh``: of prefixes that it holds."""
        messages = []
        for partition, position in positions.items():
            with self._lock:
                lane = self._lanes.get(partition)
                changes = [*(lane.untold if lane is not None else ()), *fresh.get(partition, ())]
            last = {change.key: change.entry for change in changes if change.offset < position.offset}
            messages += [
                Message(self._topic, key, None if entry is None else write_entry(entry), (), -1, partition.partition)
                for key, entry in last.items()
            ]
        return messages

    def released(self, partition: TopicPartition, epoch: int, changes: Iterable[Change], end: int) -> None:
        """The topics have a partition's outcomes below ``end``, which made ``changes``."""
        with self._lock:
            lane = self._lanes.get(partition)
            if lane is None or lane.epoch != epoch:
                return
            done = [change for change in changes if change.offset < end]
            lane.store.put((one.key, None if one.entry is None else write_entry(one.entry)) for one in done)
            lane.untold.extend(done)
            while lane.prepared and lane.prepared[0][0] < end:
                offset, key = lane.prepared.popleft()
                if lane.underway.get(key) == offset:
                    del lane.underway[key]

    def told(self, positions: Mapping[TopicPartition, Position], epochs: Mapping[TopicPartition, int]) -> None:
        """These positions are committed, and the state topic has what they take."""
        with self._lock:
            for partition, position in positions.items():
                lane = self._lanes.get(partition)
                if lane is None or lane.epoch != epochs.get(partition):
                    continue
                while lane.untold and lane.untold[0].offset < position.offset:
                    lane.untold.popleft()


def _entry(lane: _Lane, key: bytes) -> Entry | None:
    (value,) = lane.store.get([key])
    return None if value is None else read_entry(value)
