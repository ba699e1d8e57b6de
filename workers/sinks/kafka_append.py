"""Messages into the client's batches, whole batches at a time.

Comes in: the messages of one write. Goes out: a future for each batch. Never here: a transaction's begin or end, or a wait
for an acknowledgement.

The client's own ``send`` costs more than the rest of a record's way: for each record it sorts all partitions of the topic,
checks and measures what has been checked and measured, writes its bytes one by one, takes three locks, makes a future that is
resolved by itself, formats a line for a log that nobody reads, and wakes its sender while a batch waits. A write is flushed as
a whole, so all of that is done here once for a batch. How a batch begins, when it is sent and what is told of it stays the
client's.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterable
from typing import Any

from kafka import TopicPartition as KafkaTopicPartition
from kafka import errors as kafka_errors
from kafka.producer.producer_batch import ProducerBatch
from kafka.record import MemoryRecordsBuilder

from workers.records import Message
from workers.sinks.kafka_record import murmur2, record_bytes


class Appender:
    """The way into one producer's batches. Used by one thread."""

    def __init__(self, producer: Any) -> None:
        self._producer = producer
        # A batch that the broker finds too large, because a limit was lowered meanwhile, fails as it is: the halves that the
        # client would make of it belong to no future of ours. The next producer asks for the limits again.
        producer._sender._can_split = lambda *_: False
        self._partitions: dict[str, list[KafkaTopicPartition]] = {}

    def append(self, timed: Iterable[tuple[Message, int | None]]) -> list[Any]:
        """Have messages sent that their topics are known to take, each at its time (Unix, ms; None: now).

        Returns:
            The client's futures of the batches that hold them; see :func:`failure`.

        Raises:
            KafkaError: the producer is of no more use, or a topic's partitions are not to be found out.
        """
        self._partitions.clear()  # some may have been added
        placed: dict[KafkaTopicPartition, list[tuple[Message, int | None]]] = {}
        for message, timestamp_ms in timed:
            placed.setdefault(self._place(message), []).append((message, timestamp_ms))
        manager, futures = self._producer._transaction_manager, []
        for tp, entries in placed.items():
            if manager.is_transactional():
                manager.maybe_add_partition_to_transaction(tp)
            futures += self._fill(tp, entries)
        return futures

    def _place(self, message: Message) -> KafkaTopicPartition:
        partitions = self._partitions.get(message.topic) or self._look_up(message.topic)
        if message.partition is not None:
            number = message.partition
        elif message.key is not None:
            # As the Java client does it, so that keys stay where other producers put them.
            number = murmur2(message.key) & 0x7FFFFFFF
        else:
            number = random.randrange(len(partitions))  # noqa: S311
        return partitions[number % len(partitions)]

    def _look_up(self, topic: str) -> list[KafkaTopicPartition]:
        producer = self._producer
        if producer._metadata.partitions_for_topic(topic) is None:
            producer._wait_on_metadata(topic, producer.config["max_block_ms"])
        numbers = producer._metadata.partitions_for_topic(topic) or ()
        if not numbers:
            raise kafka_errors.UnknownTopicOrPartitionError(topic)
        found = self._partitions[topic] = [KafkaTopicPartition(topic, number) for number in sorted(numbers)]
        return found

    def _fill(self, tp: KafkaTopicPartition, entries: list[tuple[Message, int | None]]) -> list[Any]:
        """Batches of one partition's messages; the sender may take each as soon as it is full."""
        accumulator = self._producer._accumulator
        futures, at = [], 0
        accumulator._appends_in_progress.increment()
        try:
            while at < len(entries):
                with accumulator._tp_lock(tp):
                    if accumulator._closed:
                        raise kafka_errors.IllegalStateError("the producer is closed")
                    config = accumulator.config
                    records = MemoryRecordsBuilder(
                        config["message_version"], config["compression_attrs"], config["batch_size"]
                    )
                    batch, first = ProducerBatch(tp, records), at
                    while at < len(entries):
                        size = _append(records, *entries[at])
                        if size is None:  # it is full
                            break
                        batch.max_record_size = max(batch.max_record_size, size)
                        at += 1
                    assert at > first, "a batch takes one record, however large"
                    accumulator._batches[tp].append(batch)
                    accumulator._incomplete.add(batch)
                    futures.append(batch.produce_future)
                self._producer._sender.wakeup()
        finally:
            accumulator._appends_in_progress.decrement()
        return futures


def failure(future: Any) -> BaseException | None:
    """Why a batch whose future is done was not acknowledged; None: it was."""
    if future.exception is not None:
        error: BaseException = future.exception
        return error
    refused = future.value[2]  # the client tells of each record why it was refused
    return None if refused is None else refused(0)


def _append(records: Any, message: Message, timestamp_ms: int | None) -> int | None:
    """Put a message at a batch's end, as the client's own builder does; its bytes, or None where it does not fit."""
    builder = records._builder
    offset = records._next_offset
    if timestamp_ms is None:
        timestamp_ms = int(time.time() * 1000)
    first = timestamp_ms if offset == 0 else builder._first_timestamp
    written = record_bytes(offset, timestamp_ms - first, message.key, message.value, message.headers)
    if offset == 0:
        builder._first_timestamp = builder._max_timestamp = timestamp_ms
    elif len(written) + len(builder._buffer) > builder._batch_size:
        return None
    elif timestamp_ms > builder._max_timestamp:
        builder._max_timestamp = timestamp_ms
    builder._num_records += 1
    builder._last_offset = offset
    builder._buffer += written
    records._next_offset += 1
    return len(written)
