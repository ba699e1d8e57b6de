"""A range of one partition's offsets, read from its begin to its end and by no group.

Comes in: a partition and two offsets. Goes out: the committed records between them, in their order, and how many offsets were
deleted before they could be read. Never here: the consumer loop (``sources``), an offset that is committed, or who wants the
range.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from kafka import TopicPartition as KafkaTopicPartition
from kafka import errors as kafka_errors

from workers import kafka_ends, log, metrics
from workers.deadline import Deadline
from workers.errors import EnvironmentFault, RetryableError
from workers.kafka_client import bare_consumer, sentence
from workers.kafka_records import OPEN_TRANSACTION_S, record_of
from workers.records import Record, TopicPartition
from workers.settings import KafkaSettings
from workers.sources.kafka_holds import Holds

LOG = log.get(__name__)

_POLL_MS = 250
_MOST_RECORDS = 1_000
_FETCH_WAIT_MS = 100
_ASK_MS = 30_000
_RECONNECT_S = 2.0
# One partition is read at a time: what comes in one answer decides how fast that is.
FETCH_BYTES = 4 << 20


class RangeReader:
    """One consumer, for range after range; for one thread. After an error it is to be closed."""

    def __init__(
        self, kafka: KafkaSettings, *, fetch_bytes: int = FETCH_BYTES, patience_s: float = OPEN_TRANSACTION_S
    ) -> None:
        """Nothing is connected here. ``fetch_bytes``: of a partition, in one answer of its broker's."""
        self._kafka = kafka
        self._fetch_bytes = fetch_bytes
        self._patience_s = patience_s
        self._consumer: Any = None
        self._holds: Holds | None = None
        self._at: tuple[TopicPartition, int] | None = None
        self.gone = 0  # offsets of the latest range that its log had lost before they were read

    def read(self, partition: TopicPartition, start: int, stop: int) -> Iterator[list[Record]]:
        """The records with the offsets ``start`` to ``stop`` (exclusive), some at a time.

        Offsets that hold none (transaction markers, what was aborted or compacted away) are passed over; those that were
        deleted are counted in :attr:`gone`. A transaction that is open is waited for.

        Raises:
            EnvironmentFault: no broker answers, we may not read the topic, or a batch of it cannot be read.
            RetryableError: nothing more comes, though there is more; or the log ends before ``start``.
        """
        self.gone = 0
        if start >= stop:
            return
        try:
            yield from self._read(partition, start, stop)
        except kafka_errors.AuthorizationError as error:
            raise EnvironmentFault(
                f"{self._kafka.who} may not read topic {partition.topic}: grant Read on it (kafka-acls.sh --add)"
            ) from error
        except kafka_errors.KafkaError as error:
            raise RetryableError(f"{partition} cannot be read: {sentence(error)}") from error

    def close(self) -> None:
        """Close the consumer; the next range opens another."""
        if self._consumer is not None:
            self._consumer.close()
        self._consumer = self._at = None

    def _read(self, partition: TopicPartition, start: int, stop: int) -> Iterator[list[Record]]:
        tp, at, deadline = KafkaTopicPartition(*partition), start, Deadline(self._patience_s)
        self._go(partition, at)
        while at < stop:
            try:
                # No more than the range can hold: what is beyond it stays with the client, for the next one.
                polled = self._consumer.poll(_POLL_MS, max_records=min(_MOST_RECORDS, stop - at))
            except kafka_errors.OffsetOutOfRangeError:
                if deadline.expired:
                    raise
                at = self._skip(partition, at, stop)
                continue
            found = [record_of(raw) for raw in polled.get(tp, ()) if raw.offset < stop]
            # A position also moves past what holds no record.
            reached = self._consumer.position(tp, _ASK_MS)
            self._at = (partition, reached)
            if self._holds is not None and self._holds.known():
                self._at = None
                raise EnvironmentFault(
                    f"{partition} cannot be read from offset {reached} on: its next batch is broken, or packed in a way that "
                    "this machine has no library for; the log says more"
                )
            if found:
                yield found
            if reached != at:
                at, deadline = reached, Deadline(self._patience_s)
            elif deadline.expired:
                raise RetryableError(
                    f"{partition} gave nothing from offset {at} on for {self._patience_s:.0f} s, and offsets up to {stop} are "
                    "asked for: its broker does not answer, or somebody's transaction is still open"
                )

    def _go(self, partition: TopicPartition, offset: int) -> None:
        """Stand at an offset; where we stand there already, what was fetched ahead is kept."""
        if self._consumer is None:
            self._consumer = self._connect()
            self._holds = Holds(self._consumer, metrics.Metrics())
        if self._at != (partition, offset):
            tp = KafkaTopicPartition(*partition)
            self._consumer.assign([tp])
            self._consumer.seek(tp, offset)
            self._at = (partition, offset)

    def _connect(self) -> Any:
        deadline = Deadline(self._patience_s)
        while True:
            try:
                return bare_consumer(
                    self._kafka,
                    # A position that the log does not have is ours to deal with: the client would skip what was deleted unseen.
                    auto_offset_reset="none",
                    # An answer that waits at one partition's end holds up the next partition of that broker.
                    fetch_max_wait_ms=_FETCH_WAIT_MS,
                    fetch_max_bytes=max(16 << 20, self._fetch_bytes),
                    max_partition_fetch_bytes=self._fetch_bytes,
                )
            except EnvironmentFault as error:
                # Whoever hands out ranges was connected: a broker that restarts comes back.
                if deadline.expired:
                    raise
                LOG.warning("not connected %s", log.fields(error=error))
            time.sleep(_RECONNECT_S)

    def _skip(self, partition: TopicPartition, at: int, stop: int) -> int:
        """The log does not have what comes next: go on with its first record, and count what is gone."""
        tp = KafkaTopicPartition(*partition)
        begin, end = kafka_ends.bounds(self._consumer, tp, _ASK_MS)
        if at > end:
            raise RetryableError(
                f"{partition} ends at offset {end}, and offset {at} is asked for: records were lost, or the topic was made anew"
            )
        target: int = min(max(at, begin), stop)
        if target > at:
            LOG.warning(
                "offsets deleted before they were read %s", log.fields(partition=partition, start=at, stop=target)
            )
        self.gone += target - at
        self._consumer.seek(tp, target)
        self._at = (partition, target)
        return target
