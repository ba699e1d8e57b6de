"""What is known of the keys of the partitions that are ours: as of what is committed, and as of what is about to be.

Comes in: assignments, records as they are prepared, prefixes as they are rendered and committed. Goes out: which of them change
nothing, what stands under a key, and the records of the state topic that a transaction takes. Never here: Kafka, or a wait.

Two positions matter. What the topics have is ahead of what the group has committed while outputs of files lag behind: those
records will be read again after a crash, and must then meet the state as it was. So the local copy goes with the first, and a
change is written to the state topic only in the transaction whose committed offset reaches beyond its record. Until then the
topic says that the key is in doubt: the source may have lost the record by the time that it would be read again.

Who fences: what carries another epoch than the current one is refused, as in the ledger; :meth:`Known.due` is for assignments
that the caller holds, who looks again before it commits.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from workers.errors import PoisonError
from workers.records import STATE_MARK, Document, Message, Position, Record, Tombstone, TopicPartition, Unchanged
from workers.state.entry import NOTHING, Change, Digests, Entry, read_entry, state_key, write_entry
from workers.state.store import Store

type_found = Document | Tombstone | PoisonError
# Pieces of a partition's state as it is read: keys and values, None where a key is gone.
type_log = Callable[[TopicPartition], Iterator[Sequence[tuple[bytes, bytes | None]]]]


@dataclass(slots=True)
class _Lane:
    """One assignment of a partition.

    ``since``: what records before this offset have left is not believed; ``kept``: keys that were in doubt when it began, by the
    offset of the last record that may have been written: until it is read again they stay so.
    ``underway``: keys of records that may change something and are not committed to the topics, with the last one's offset;
    ``prepared``: the same in order. ``untold``: changes that are in the copy and not in the state topic; ``doubts``: how many of
    them each key has, and under how many chunks something may stand there.
    """

    epoch: int
    store: Store
    since: int
    kept: dict[bytes, int]
    underway: dict[bytes, int] = field(default_factory=dict)
    prepared: deque[tuple[int, bytes]] = field(default_factory=deque)
    untold: deque[Change] = field(default_factory=deque)
    doubts: dict[bytes, tuple[int, int]] = field(default_factory=dict)

    def entry(self, key: bytes) -> Entry | None:
        (value,) = self.store.get([key])
        return None if value is None else read_entry(value)


class View:
    """What stands under the keys of one partition while a prefix is rendered, record by record."""

    def __init__(self, known: Known, partition: TopicPartition, epoch: int) -> None:
        self._known = known
        self._partition = partition
        self._epoch = epoch
        self._since = known.since(partition, epoch)
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
        return self._known.skips and entry is not None and _same(document, entry, self._since)

    def leaves(self, record: Record, entry: Entry | None) -> None:
        """What the record leaves under its key."""
        if record.key is None:
            return
        key, before, offset = state_key(record.origin.topic, record.key), self.before(record), record.origin.offset
        if entry is None and before is None:
            return
        chunks = 0 if before is None else before.chunks
        if offset < self._since:
            # Read again for files alone: what topics have of it is not known.
            entry = Entry(NOTHING, 0) if entry is None else entry
            entry = entry._replace(chunks=max(chunks, entry.chunks))
        if entry is not None:
            entry = entry._replace(offset=offset)
        self._new[key] = entry
        self.changes.append(Change(offset, key, entry, chunks))


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
        self.topic = topic
        self.skips = skip
        self._log = log
        self._digests = digests
        self._store = store
        self._lock = threading.Lock()
        self._lanes: dict[TopicPartition, _Lane] = {}
        self._loaded: dict[TopicPartition, tuple[int, Store, dict[bytes, int]]] = {}
        self._closed = False

    @property
    def mark(self) -> str:
        """What stands in a committed position, with the offset since which this state, for these outputs, has been kept."""
        return f"{STATE_MARK}{self._digests.base}"

    # ---- the partitions, as the reader has them

    def load(self, partition: TopicPartition, epoch: int, wanted: Callable[[], bool]) -> int | None:
        """Read the state of an assignment before it begins, for as long as it is ``wanted``; returns how many keys it has.

        Takes long. It must come after the group's committed offset was read, from which the assignment will begin.

        Raises:
            EnvironmentFault, RetryableError: it cannot be read.
        """
        store, doubts = self._store(), dict[bytes, int]()
        try:
            for piece in self._log(partition):
                if not wanted():
                    break
                store.put(piece)
                for key, value in piece:
                    doubts.pop(key, None)
                    if value is not None and value.endswith(NOTHING):
                        doubts[key] = read_entry(value).offset
        except BaseException:
            store.close()
            raise
        with self._lock:
            old = self._loaded.get(partition)
            if self._closed or not wanted() or (old is not None and old[0] > epoch):
                store.close()
                return None
            if old is not None:
                old[1].close()
            self._loaded[partition] = epoch, store, doubts
            return len(store)

    def assign(self, partition: TopicPartition, epoch: int, since: int) -> None:
        """An assignment begins, at the offset that was committed when its state was read; ``since`` as its mark says."""
        with self._lock:
            if self._closed:
                return
            self._drop(partition)
            epoch_loaded, store, doubts = self._loaded.pop(partition)
            assert epoch_loaded == epoch, f"{partition} begins without its state"
            self._lanes[partition] = _Lane(epoch, store, since, doubts)

    def skip(self, partition: TopicPartition, offset: int) -> None:
        """The source has nothing any more before ``offset``: what those records have left is not believed.

        An output of files may lack some of them that the topics have, and nobody can read them again for it.
        """
        with self._lock:
            if (lane := self._lanes.get(partition)) is not None:
                lane.since = max(lane.since, offset)

    def revoke(self, partitions: Iterable[TopicPartition]) -> None:
        """Partitions are ours no longer."""
        with self._lock:
            for partition in partitions:
                self._drop(partition)
                if (loaded := self._loaded.pop(partition, None)) is not None:
                    loaded[1].close()

    def close(self) -> None:
        """Give the disk back."""
        with self._lock:
            self._closed = True  # from here on nothing is added
            every = [*self._lanes, *self._loaded]
        self.revoke(every)

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
                    entry = lane.entry(key)
                    if entry is not None and _same(now, entry, lane.since):
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
            return lane.entry(key) if lane is not None and lane.epoch == epoch else None

    def since(self, partition: TopicPartition, epoch: int) -> int:
        """What records before this offset have left is not believed."""
        with self._lock:
            lane = self._lanes.get(partition)
            return lane.since if lane is not None and lane.epoch == epoch else 0

    def view(self, partition: TopicPartition, epoch: int) -> View:
        """What stands under the keys of an assignment, for one prefix of it."""
        return View(self, partition, epoch)

    def due(
        self, positions: Mapping[TopicPartition, Position], fresh: Mapping[TopicPartition, Sequence[Change]]
    ) -> list[Message]:
        """What a transaction that commits ``positions`` writes to the state topic; ``fresh``: of prefixes that it holds."""
        with self._lock:
            return [
                Message(self.topic, key, None if entry is None else write_entry(entry), (), -1, partition.partition)
                for partition, position in positions.items()
                for key, entry in self._due(partition, position.offset, fresh.get(partition, ())).items()
            ]

    def _due(self, partition: TopicPartition, end: int, fresh: Sequence[Change]) -> dict[bytes, Entry | None]:
        if (lane := self._lanes.get(partition)) is None:
            return {}  # the commit will find that out
        last: dict[bytes, Entry | None] = {}
        left: dict[bytes, int] = {}  # of each key, the changes that stay untold
        for change in lane.untold:
            if change.offset >= end:
                break
            last[change.key] = change.entry
            left[change.key] = left.get(change.key, lane.doubts[change.key][0]) - 1
        doubts: dict[bytes, Entry | None] = {}
        for change in fresh:
            if change.offset < end:
                last[change.key] = change.entry
                continue
            count, most = lane.doubts.get(change.key, (0, 0))
            left[change.key] = left.get(change.key, count) + 1
            doubt = doubts.get(change.key)
            most = max(change.most, most if doubt is None else doubt.chunks)
            doubts[change.key] = Entry(NOTHING, 0, most, max(change.offset, lane.kept.get(change.key, 0)))
        return {key: one for key, one in last.items() if not left.get(key) and lane.kept.get(key, -1) < end} | doubts

    def released(self, partition: TopicPartition, epoch: int, changes: Iterable[Change], end: int) -> None:
        """The topics have a partition's outcomes below ``end``, which made ``changes``.

        Raises:
            EnvironmentFault: the disk is full.
        """
        with self._lock:
            lane = self._lanes.get(partition)
            if lane is None or lane.epoch != epoch:
                return
            done = [change for change in changes if change.offset < end]
            lane.store.put((one.key, None if one.entry is None else write_entry(one.entry)) for one in done)
            lane.untold.extend(done)
            for one in done:
                count, most = lane.doubts.get(one.key, (0, 0))
                lane.doubts[one.key] = count + 1, max(most, one.most)
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
                    key = lane.untold.popleft().key
                    count, most = lane.doubts.pop(key)
                    if count > 1:
                        lane.doubts[key] = count - 1, most


def _same(document: Document, entry: Entry, since: int) -> bool:
    return entry.digest == document.digest and entry.offset >= since
