"""What the source hands over, and how much of it is held: records, and the partitions that they belong to.

Comes in: assignments and records, from the poll thread and the client's own. Goes out: chunks of records, in order; the ledger
and the outputs of files always agree on which partitions are ours. Never here: I/O, or a wait, but for files of partitions that go.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence

from workers import log, metrics
from workers.deadline import Deadline
from workers.errors import EnvironmentFault, RetryableError
from workers.offsets import OffsetLedger
from workers.placing import Placing
from workers.records import Position, Record, TopicPartition
from workers.settings import LimitSettings
from workers.sinks.files import FileOutput
from workers.state import Known
from workers.trace import UNTRACED, Trace

LOG = log.get(__name__)

# Records that are decoded and tokenised together: small enough that answers are settled in between.
CHUNK = 256
# And bytes of them, where all of a long text is tokenised: a tenth of a second's work.
CHUNK_BYTES = 128 << 10
# The client's I/O thread waits so long for files of partitions that go; its heartbeats wait too, and have 10 s.
PARTING_S = 3.0
# Records that cannot be decoded for now, because their schemas are out of reach, wait from the first to the second.
SHORTEST_WAIT_S, LONGEST_WAIT_S = 0.5, 15.0


class Intake:
    """The source's listener. ``lock`` guards ``ledger`` and ``inbox``, and is notified when either changes."""

    def __init__(
        self,
        topics: Sequence[str],
        files: Sequence[FileOutput],
        limits: LimitSettings,
        meter: metrics.Metrics,
        known: Known | None = None,
        *,
        most_bytes: int | None = None,
        trace: Trace = UNTRACED,
    ) -> None:
        """``topics``: names of the outputs that are topics, the dead letters' included; ``files``: the other outputs.

        ``known``: the state, where one is kept. ``most_bytes``: of the records that are handed on together; one alone may have
        more. None: as many as there are. ``trace`` is told of batches.
        """
        self.lock = threading.Condition()
        self.ledger = OffsetLedger(topics, [output.key for output in files], [] if known is None else [known.mark])
        self.inbox: deque[Sequence[Record]] = deque()
        self._reached: dict[TopicPartition, tuple[int, int]] = {}
        self._ended = False
        self._resume_at = 0.0
        self._wait_s = SHORTEST_WAIT_S
        self._files = tuple(files)
        self._known = known
        self._placing = Placing(topics, files, known)
        self._limits = limits
        self._most_bytes = most_bytes
        self._meter = meter
        self._trace = trace

    def place(self, partition: TopicPartition, epoch: int, position: Position) -> Position | None:
        """Where a partition starts, once every output has said how far it is."""
        return self._placing.place(partition, epoch, position)

    def assigned(self, partition: TopicPartition, epoch: int, position: Position) -> None:
        """A partition is ours."""
        with self.lock:
            self.ledger.assign(partition, epoch, position)
            for output in self._files:
                output.assign(partition, epoch, position.outputs[output.key])
            if self._known is not None:
                self._known.assign(partition, epoch, position.outputs[self._known.mark])

    def skipped(self, partition: TopicPartition, offset: int) -> None:
        """A partition goes on further ahead. What is held of it stays, and an output's next file reaches over the gap."""
        with self.lock:
            self.ledger.skip(partition, offset)
            if self._known is not None:
                self._known.skip(partition, offset)

    def parting(self, partitions: Iterable[TopicPartition]) -> None:
        """Put the files of partitions that go: what waits for its file would have to be embedded again."""
        deadline = Deadline(PARTING_S)
        for output in self._files:
            output.flush(deadline.remaining(), partitions)

    def revoked(self, partitions: Iterable[TopicPartition], *, lost: bool) -> None:
        """Partitions are ours no longer; their records are given up."""
        with self.lock:
            self._drop(partitions, "lost" if lost else "revoked")
            dropped = self.ledger.revoke(partitions)
            for partition in partitions:
                self._reached.pop(partition, None)
            for output in self._files:
                output.revoke(partitions)
            self._placing.revoke(partitions)  # first: who reads a state asks there whether it is wanted still
            if self._known is not None:
                self._known.revoke(partitions)
            self.lock.notify_all()
            self.measure()
        if dropped:
            self._meter.add(metrics.OUTCOMES_DROPPED, dropped, why="lost" if lost else "revoked")

    def received(self, records: Sequence[Record]) -> None:
        """Records of one partition, in order."""
        with self.lock:
            taken = [record for record in records if self.ledger.add(record)]
            portions = list(_portions(taken, self._most_bytes))
            self.inbox.extend(portions)
            self._trace.received(portions)
            self.lock.notify_all()
            self.measure()

    def reached(self, partition: TopicPartition, epoch: int, offset: int) -> None:
        """What a partition has below ``offset`` beside the records that were received is marks of transactions, and gaps."""
        with self.lock:
            self._reached[partition] = epoch, offset

    @property
    def ready(self) -> bool:
        """Whether there are records to take; under the lock."""
        return bool(self.inbox) and time.monotonic() >= self._resume_at

    def take(self) -> Sequence[Record]:
        """The next records, of one partition, if there are any to take; under the lock."""
        return self.inbox.popleft() if self.ready else ()

    @contextlib.contextmanager
    def holding(self, records: Sequence[Record]) -> Iterator[None]:
        """Decode records that were taken; when what decodes them is out of reach, they are the next ones again, after a while.

        Each time in a row it is a longer while. Limits fill up meanwhile, and partitions pause.
        """
        try:
            yield
        except (RetryableError, EnvironmentFault) as error:
            LOG.warning("decoding waits %s", log.fields(retry_in_s=self._wait_s, error=error))
            self._meter.add(metrics.DECODING_POSTPONED)
            origin = records[0].origin
            with self.lock:
                # An assignment that has ended meanwhile holds nothing: it is read again.
                if self.ledger.epochs.get(origin.topic_partition) == origin.epoch:
                    self.inbox.appendleft(records)
                self._resume_at = time.monotonic() + self._wait_s
            self._wait_s = min(2 * self._wait_s, LONGEST_WAIT_S)
        else:
            self._wait_s = SHORTEST_WAIT_S

    def room(self) -> int:
        """How many records the limits leave room for; of bytes the last poll may bring more."""
        limits = self._limits
        with self.lock:
            held = self.ledger.bytes + sum(output.bytes for output in self._files)
            return max(0, limits.records - self.ledger.records) if held < limits.bytes else 0

    def held(self) -> int:
        """Records whose outcome some output does not have yet."""
        with self.lock:
            return self.ledger.records + max((output.rows for output in self._files), default=0)

    def _drop(self, partitions: Iterable[TopicPartition], why: str) -> None:
        """Hold nothing of assignments that have ended: it is read again, and would be there twice. Under the lock."""
        gone = set(partitions)
        kept = [chunk for chunk in self.inbox if chunk[0].origin.topic_partition not in gone]
        self.inbox.clear()
        self.inbox.extend(kept)
        self._ended = True
        self._trace.given_up(gone, why)

    def after_an_end(self) -> dict[TopicPartition, int] | None:
        """The assignments that there are, when one has ended since this was asked last; under the lock."""
        ended, self._ended = self._ended, False
        return self.ledger.epochs if ended else None

    def progress(self) -> tuple[dict[TopicPartition, int], int]:
        """Where each partition goes on, and how many records are held."""
        with self.lock:
            epochs, following = self.ledger.epochs, self.ledger.following
            for partition, (epoch, offset) in self._reached.items():
                if epochs.get(partition) == epoch:
                    following[partition] = max(following[partition], offset)
            return following, self.ledger.records

    def close(self) -> None:
        """Look nothing more up."""
        self._placing.close()
        if self._known is not None:
            self._known.close()

    def measure(self) -> None:
        """Say how much is held; under the lock."""
        self._meter.set(metrics.IN_FLIGHT_RECORDS, self.ledger.records)
        self._meter.set(metrics.IN_FLIGHT_BYTES, self.ledger.bytes)


def _portions(records: Sequence[Record], most_bytes: int | None) -> Iterator[Sequence[Record]]:
    """The records in their order, so many together as are decoded and tokenised in one go."""
    start = held = 0
    for number, record in enumerate(records):
        too_large = most_bytes is not None and held + record.size > most_bytes
        if number > start and (too_large or number - start >= CHUNK):
            yield records[start:number]
            start, held = number, 0
        held += record.size
    if start < len(records):
        yield records[start:]
