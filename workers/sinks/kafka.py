"""Messages into Kafka topics, through kafka-python 3.0: in transactions that carry the offsets, or without.

Comes in: ready messages, the positions that they settle, the membership that fences them. Goes out: committed records.
Never here: rendering, the ledger, or a retry inside a transaction.

What the client needs, each with a test that fails without it:

- every batch's future is checked before a commit: the client commits a transaction whose records it has dropped;
- every wait has a bound: its own wait for ever when a coordinator connection breaks at the wrong moment;
- after any failure the producer is thrown away: offsets of an aborted transaction leak into the next one;
- thrown away means its sender thread is dead: a zombie sender fences its successor.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kafka import OffsetAndMetadata
from kafka import TopicPartition as KafkaTopicPartition
from kafka import errors as kafka_errors
from kafka.record import MemoryRecordsBuilder
from kafka.record.default_records import DefaultRecordBatchBuilder

from workers import kafka_client, kafka_topics, log, metrics
from workers.deadline import Deadline
from workers.errors import CommitError, EnvironmentFault, RetryableError
from workers.kafka_topics import Topic
from workers.offsets import write_position
from workers.records import Message, Position, TopicPartition
from workers.settings import KafkaSettings
from workers.sinks.kafka_append import Appender, failure

LOG = log.get(__name__)

# Above the request timeout, so that a slow broker is not mistaken for a dead reader; it also bounds how long a reader
# that died for good holds back read_committed consumers.
TRANSACTION_TIMEOUT_MS = 15_000
REQUEST_TIMEOUT_MS = 5_000
DELIVERY_TIMEOUT_MS = 8_000
WAIT_S = 10.0
BATCH_BYTES = 256 << 10
# Batches of larger records are compressed into what nobody can be expected to unpack.
LARGEST_RECORD_BYTES = 256 << 20
ZSTD = DefaultRecordBatchBuilder.CODEC_ZSTD

type_commit = Callable[[Mapping[TopicPartition, Position]], None]


class KafkaSink:
    """Writes to the topics it is given. The two delivery guarantees are its two subclasses."""

    _appender: Appender

    def __init__(self, kafka: KafkaSettings, topics: Sequence[str], meter: metrics.Metrics) -> None:
        """``topics``: every topic that messages will name."""
        self._kafka = kafka
        self._names = list(topics)
        self._meter = meter
        self._topics: dict[str, Topic] = {}
        self._producer: Any = None
        self._large = False  # whether the next write may hold what is larger than its topic takes

    def open(self) -> None:
        """Look at the topics and connect.

        Raises:
            EnvironmentFault: a topic is missing, or we may not write.
            RetryableError: the broker does not answer now.
        """
        with kafka_client.admin(self._kafka) as client:
            self._topics = kafka_topics.describe_topics(client, self._names)
        for name in self._names:
            if name not in self._topics:
                raise EnvironmentFault(f"topic {name} does not exist; create it, or correct the settings")
        try:
            self._connect()
            self._appender = Appender(self._producer)
        except kafka_errors.AuthorizationError as error:
            raise EnvironmentFault(f"Kafka does not let this pipeline write: {error}") from error
        except kafka_errors.KafkaError as error:
            raise RetryableError(f"no producer can be started now: {error}") from error

    def _connect(self) -> None:
        raise AssertionError("one of the two subclasses is used")

    def _new_producer(self, **more: Any) -> Any:
        smallest = min(topic.max_message_bytes for topic in self._topics.values())
        return kafka_client.bare_producer(
            self._kafka,
            acks="all",
            linger_ms=5,
            # A batch is what the broker measures against max.message.bytes; one record always goes.
            batch_size=max(1, min(BATCH_BYTES, smallest - 512)),
            max_request_size=max(topic.max_message_bytes for topic in self._topics.values()),
            request_timeout_ms=REQUEST_TIMEOUT_MS,
            delivery_timeout_ms=DELIVERY_TIMEOUT_MS,
            max_block_ms=10_000,
            # Slept before each retry of a transaction's first request to a partition, which needs one or two as a rule.
            retry_backoff_ms=20,
            **more,
        )

    def refuses(self, message: Message) -> str | None:
        """Why the topic would refuse the message: ``too_large`` or ``no_key``.

        Found before a transaction begins: a record that the broker refuses takes the whole transaction with it.
        """
        return self._topics[message.topic].refuses(message)

    def takes_compressed(self, message: Message) -> bool:
        """Whether the message's own batch fits into its topic once it is compressed.

        A source record may have come in a compressed batch, which is what the broker measures; here it is larger.
        """
        topic = self._topics[message.topic]
        if topic.compression not in ("producer", "zstd") or (topic.compacted and message.key is None):
            return False
        if message.size > LARGEST_RECORD_BYTES:
            return False
        headers = [(name, value or b"") for name, value in message.headers]
        batch = MemoryRecordsBuilder(magic=2, compression_type=ZSTD, batch_size=message.size)
        batch.append(timestamp=max(0, message.timestamp_ms), key=message.key, value=message.value, headers=headers)
        batch.close()
        fits = bool(batch.size_in_bytes() <= topic.max_message_bytes)
        self._large |= fits
        return fits

    def _compress(self, messages: Sequence[Message]) -> None:
        """Have the client compress this write, where one of it fits in no other way, and no other write.

        The client compresses all that it sends, or nothing.
        """
        large, self._large = self._large, False
        squeeze = large and any(message.size > self._topics[message.topic].max_message_bytes for message in messages)
        self._producer._accumulator.config["compression_attrs"] = ZSTD if squeeze else 0

    def write(self, messages: Sequence[Message]) -> None:
        """Send, flush, and look at every acknowledgement."""
        try:
            self._begin()
            self._compress(messages)
            futures = self._send(messages)
            self._producer.flush(timeout=WAIT_S)
            for future in futures:
                if not future.is_done:
                    raise RetryableError(f"a batch was not acknowledged within {WAIT_S:.0f} s")
                if (error := failure(future)) is not None:
                    raise error
        except (kafka_errors.KafkaError, AssertionError, TypeError, ValueError) as error:
            raise RetryableError(f"writing failed: {self._said(error)}") from error

    def _said(self, error: BaseException) -> str:
        """What went wrong, in one line."""
        return f"{type(error).__name__} {error}"

    def _begin(self) -> None:
        """Hook: what comes before the first record of a write."""

    def _send(self, messages: Sequence[Message]) -> list[Any]:
        now = int(time.time() * 1000)
        return self._appender.append((one, self._timestamp(one, self._topics[one.topic], now)) for one in messages)

    def _timestamp(self, message: Message, topic: Topic, now: int) -> int | None:
        if message.timestamp_ms < 0:
            return None
        earliest, latest = now - topic.timestamp_before_max_ms + 1000, now + topic.timestamp_after_max_ms - 1000
        if earliest <= message.timestamp_ms <= latest:
            return message.timestamp_ms
        self._meter.add(metrics.TIMESTAMPS_CLAMPED)
        return max(0, min(max(earliest, message.timestamp_ms), latest))

    def abandon(self) -> None:
        """Make sure that nothing of this producer is sent any more."""
        producer, self._producer = self._producer, None
        if producer is None:
            return
        # close() would flush, raise, and leave the sender thread alive.
        with contextlib.suppress(kafka_errors.KafkaError, RuntimeError, AttributeError):
            producer._sender.force_close()
            producer._sender.join(2)
        producer._closed = True
        with contextlib.suppress(kafka_errors.KafkaError, RuntimeError, AttributeError):
            producer._unregister_cleanup()

    def close(self) -> None:
        """Release the producer; a transaction that is open is left to be aborted."""
        if self._producer is not None:
            with contextlib.suppress(kafka_errors.KafkaError, RuntimeError):
                self._producer.close(timeout=2)
            self.abandon()  # a close that fails leaves the sender thread alive


class TransactionalSink(KafkaSink):
    """Exactly once: messages and offsets become visible in one transaction, fenced by the group's generation."""

    def __init__(
        self,
        kafka: KafkaSettings,
        topics: Sequence[str],
        meter: metrics.Metrics,
        *,
        transactional_id: Callable[[], str],
    ) -> None:
        """``transactional_id`` is asked at every connection: a reader's slot may change while it lives."""
        super().__init__(kafka, topics, meter)
        self._transactional_id = transactional_id

    def _connect(self) -> None:
        producer = self._new_producer(
            transactional_id=self._transactional_id(), transaction_timeout_ms=TRANSACTION_TIMEOUT_MS
        )
        self._producer = producer
        # Aborts what an earlier incarnation left open, or waits for a commit that was decided.
        producer.init_transactions()

    def _begin(self) -> None:
        self._producer.begin_transaction()

    def _said(self, error: BaseException) -> str:
        if isinstance(error, kafka_errors.ProducerFencedError | kafka_errors.InvalidProducerEpochError):
            return (
                f"somebody else writes as {self._transactional_id()}: a predecessor that has not ended yet, or a second "
                "deployment on this host, which then needs a delivery.cluster of its own"
            )
        return super()._said(error)

    def commit(self, positions: Mapping[TopicPartition, Position], membership: object) -> None:
        """Send the offsets under ``membership`` and commit; neither is waited for longer than ten seconds."""
        offsets = {
            KafkaTopicPartition(*tp): OffsetAndMetadata(at.offset, write_position(at), -1)
            for tp, at in positions.items()
        }
        manager = self._producer._transaction_manager
        try:
            self._wait(manager.send_offsets_to_transaction(offsets, membership), "the offsets")
            self._wait(manager.begin_commit(), "the commit")
        except kafka_errors.KafkaError as error:
            raise CommitError(f"the transaction failed: {self._said(error)}") from error

    def publish(self, messages: Sequence[Message]) -> None:
        """Write messages in a transaction of their own, which carries no offsets.

        Raises:
            CommitError: it failed, or its outcome is unknown.
            RetryableError: a message was not taken; nothing of the transaction is visible.
        """
        self._large = True  # nobody has asked
        self.write(messages)
        try:
            self._wait(self._producer._transaction_manager.begin_commit(), "the commit")
        except kafka_errors.KafkaError as error:
            raise CommitError(f"the transaction failed: {self._said(error)}") from error

    def _wait(self, result: Any, what: str) -> None:
        deadline = Deadline(WAIT_S)
        self._producer._sender.wakeup()
        if not result.wait(timeout_ms=int(deadline.remaining() * 1000)):
            raise CommitError(f"{what} of the transaction were not acknowledged within {WAIT_S:.0f} s")


class IdempotentSink(KafkaSink):
    """At least once: messages are acknowledged before their offsets are committed; a crash in between repeats them."""

    def __init__(
        self, kafka: KafkaSettings, topics: Sequence[str], meter: metrics.Metrics, *, commit: type_commit
    ) -> None:
        """``commit`` is the source's own, for offsets outside a transaction."""
        super().__init__(kafka, topics, meter)
        self._commit = commit

    def _connect(self) -> None:
        self._producer = self._new_producer()

    def commit(self, positions: Mapping[TopicPartition, Position], membership: object) -> None:
        """Hand the positions to the source; the group itself fences a member that is out."""
        self._commit(positions)
