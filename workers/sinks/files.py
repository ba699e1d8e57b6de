"""Rows into files: gathered for each partition until a file is full, then put into the partition's chain.

Comes in: rows that are due, in partition order. Goes out: files, and how far each partition's chain has come. Never here: a
file's format, Kafka, or the ledger.

Rows wait in memory, in columns. A partition that is lost takes its rows along: nobody has been told that they are done, so
the next owner reads their records again. A store that does not answer is asked again for as long as it takes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from workers import log, metrics
from workers.deadline import Deadline
from workers.errors import EnvironmentFault
from workers.records import TopicPartition
from workers.settings import Rotation
from workers.sinks.chain import Chain
from workers.trace import UNTRACED, Trace

LOG = log.get(__name__)

IDLE_S = 0.25
MOST_BACKOFF_S = 5.0

type_progress = Callable[[TopicPartition, int, int], None]


class RowFormat(Protocol):
    """How rows become a file. A batch is what the format likes, with ``num_rows`` and ``nbytes``."""

    def batch(self, rows: Sequence[Any]) -> Any:
        """Rows of one partition, in offset order."""

    def after(self, batch: Any, offset: int) -> Any:
        """The batch without the rows of smaller source offsets."""

    def file(self, batches: Sequence[Any], notes: Mapping[str, str]) -> bytes:
        """A whole file, with notes that can be read from its end."""


@dataclass(slots=True)
class _Lane:
    """One assignment of a partition: its chain reaches up to ``position``, its rows up to ``taken``."""

    partition: TopicPartition
    epoch: int
    folder: str
    position: int
    taken: int
    since: float | None = None
    batches: list[Any] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        return sum(batch.nbytes for batch in self.batches)

    @property
    def waits(self) -> bool:
        return self.taken > self.position

    @property
    def rows(self) -> int:
        return sum(batch.num_rows for batch in self.batches)


class FileOutput:
    """One output that is files. ``run`` belongs to one thread; the other methods are quick, but for :meth:`find`."""

    def __init__(
        self,
        name: str,
        key: str,
        chain: Chain,
        format: RowFormat,
        rotation: Rotation,
        *,
        most_bytes: int,
        meter: metrics.Metrics,
        trace: Trace = UNTRACED,
    ) -> None:
        """Nothing is started here.

        Args:
            name: of the output, in logs and metrics.
            key: of its positions: one that is committed under it is known to be of this group and fingerprint.
            chain: where files go.
            format: how rows become a file.
            rotation: when a file is full.
            most_bytes: rows of more bytes do not wait, however far from full their file is.
            meter: counts files.
            trace: is told of them.
        """
        self.name = name
        self.key = key
        self._chain = chain
        self._format = format
        self._rotation = rotation
        self._most = most_bytes
        self._meter = meter
        self._trace = trace
        self._lock = threading.Condition()
        self._lanes: dict[TopicPartition, _Lane] = {}
        self._folders: dict[TopicPartition, str] = {}
        self._bytes = 0
        self._hurried: set[TopicPartition] = set()
        self._stop = False

    @property
    def bytes(self) -> int:
        """Bytes of the rows that wait."""
        return self._bytes

    @property
    def rows(self) -> int:
        """Rows that wait."""
        with self._lock:
            return sum(lane.rows for lane in self._lanes.values())

    def find(self, partition: TopicPartition, hint: int | None) -> int | None:
        """Where the partition's chain ends, ``hint`` where it has no file from there on; asks the store, and may take long.

        Raises:
            EnvironmentFault: the store does not answer.
            OtherChain: the chain is another pipeline's.
        """
        place = self._chain.find(partition, hint)
        with self._lock:
            self._folders[partition] = place.folder
        return place.end

    # ---- the partitions, as the reader has them

    def assign(self, partition: TopicPartition, epoch: int, position: int) -> None:
        """A partition is ours, and its chain ends at ``position``: :meth:`find` came before."""
        with self._lock:
            self._lanes.pop(partition, None)
            self._lanes[partition] = _Lane(partition, epoch, self._folders[partition], position, position)
            self._measure()

    def revoke(self, partitions: Iterable[TopicPartition]) -> None:
        """Give partitions up, and the rows that wait for their files."""
        with self._lock:
            for partition in partitions:
                self._lanes.pop(partition, None)
                self._hurried.discard(partition)
            self._measure()
            self._lock.notify_all()

    def append(self, partition: TopicPartition, epoch: int, rows: Sequence[Any], next_offset: int) -> None:
        """Take the rows of a partition's next records, all those up to ``next_offset``; what the chain has is dropped."""
        batch = self._format.batch(rows) if rows else None
        with self._lock:
            lane = self._lanes.get(partition)
            if lane is None or lane.epoch != epoch or next_offset <= lane.taken:
                return
            if batch is not None:
                kept = self._format.after(batch, lane.taken)
                if kept.num_rows:
                    lane.batches.append(kept)
            lane.taken = next_offset
            if lane.since is None:
                lane.since = time.monotonic()
            self._measure()
            self._lock.notify_all()

    # ---- writing

    def run(self, progress: type_progress) -> None:
        """Put files as they fill, until :meth:`stop`; ``progress`` hears of each partition, its epoch, and its chain's end.

        Raises:
            OtherChain: a chain is another pipeline's.
        """
        while True:
            with self._lock:
                lane = self._due()
                if self._stop:
                    return
                if lane is None:
                    self._lock.wait(IDLE_S)
                    continue
                start, end, batches = lane.position, lane.taken, list(lane.batches)
            self._put(lane, start, end, batches, progress)

    def flush(self, timeout_s: float, partitions: Iterable[TopicPartition] | None = None) -> bool:
        """Put what waits of these partitions, or of all, however little; whether it was put within ``timeout_s``."""
        deadline = Deadline(timeout_s)
        with self._lock:
            wanted = set(self._lanes if partitions is None else partitions)
            self._hurried |= wanted
            self._lock.notify_all()
            while any(lane.waits for partition, lane in self._lanes.items() if partition in wanted):
                if self._stop or deadline.expired:
                    return False
                self._lock.wait(max(0.01, deadline.remaining()))
            self._hurried -= wanted
        return True

    def stop(self) -> None:
        """End :meth:`run` after the attempt that is under way."""
        with self._lock:
            self._stop = True
            self._lock.notify_all()

    def _due(self) -> _Lane | None:
        """The partition whose file is next, if one is; under the lock."""
        waiting = [lane for lane in self._lanes.values() if lane.waits]
        if waiting and self._bytes > self._most:
            return max(waiting, key=lambda lane: lane.bytes)
        rotation, now = self._rotation, time.monotonic()
        for lane in waiting:
            if lane.partition in self._hurried or lane.bytes >= rotation.bytes or lane.rows >= rotation.rows:
                return lane
            if lane.since is not None and now - lane.since >= rotation.seconds:
                return lane
        return None

    def _put(self, lane: _Lane, start: int, end: int, batches: list[Any], progress: type_progress) -> None:
        file = self._chain.file(lane.folder, start, end, lambda notes: self._format.file(batches, notes))
        delay = 0.2
        while True:
            try:
                with self._trace.putting(self.name, lane.partition, start, end):
                    reached = self._chain.put(file)
                break
            except EnvironmentFault as error:
                self._meter.add(metrics.FILE_PUTS_FAILED, output=self.name)
                LOG.warning("file not put %s", log.fields(output=self.name, retry_in_s=delay, error=error))
            with self._lock:
                self._lock.wait_for(lambda: self._stop or self._lanes.get(lane.partition) is not lane, delay)
                if self._stop or self._lanes.get(lane.partition) is not lane:
                    return
            delay = min(2 * delay, MOST_BACKOFF_S)
        if reached == end:
            self._meter.add(metrics.FILES_PUT, output=self.name)
            self._meter.add(metrics.FILE_BYTES_PUT, len(file.content), output=self.name)
        else:
            self._meter.add(metrics.FILES_LOST, output=self.name)
            LOG.warning(
                "another reader was first %s",
                log.fields(output=self.name, partition=lane.partition, start=start, end=end, continues_at=reached),
            )
        with self._lock:
            if self._lanes.get(lane.partition) is not lane:
                return
            left = [self._format.after(batch, reached) for batch in lane.batches]
            lane.batches = [batch for batch in left if batch.num_rows]
            lane.position, lane.taken = reached, max(lane.taken, reached)
            lane.since = time.monotonic() if lane.waits else None
            self._measure()
            self._lock.notify_all()
        progress(lane.partition, lane.epoch, reached)

    def _measure(self) -> None:
        self._bytes = sum(lane.bytes for lane in self._lanes.values())
        self._meter.set(metrics.FILE_BYTES_WAITING, self._bytes, output=self.name)
