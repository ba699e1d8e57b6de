"""Messages into the client's batches, by the shortest way there is.

Comes in: messages of one write. Goes out: a future for each. Never here: a transaction's begin or end, or a wait for an
acknowledgement.

The client's own ``send`` costs as much as the rest of a record's way. For each record it sorts all partitions of the topic,
checks and measures what has been checked and measured, formats a line for a log that nobody reads, and makes a system call to
wake its sender while a batch waits. Here that is done once for a write, or once for a batch.
"""

from __future__ import annotations

import random
from typing import Any

from kafka import TopicPartition as KafkaTopicPartition
from kafka.partitioner.default import murmur2

from workers.records import Message


class Appender:
    """The way into one producer's batches. Used by one thread."""

    def __init__(self, producer: Any) -> None:
        self._producer = producer
        self._manager = producer._transaction_manager
        self._partitions: dict[str, list[KafkaTopicPartition]] = {}
        self._entered: set[KafkaTopicPartition] = set()

    def begin(self) -> None:
        """A write begins: partitions may have been added, and none is in the new transaction yet."""
        self._partitions.clear()
        self._entered.clear()

    def append(self, message: Message, timestamp_ms: int | None) -> Any:
        """The client's future of a message that its topic is known to take.

        Raises:
            KafkaError: the producer is of no more use, or the topic's partitions are not to be found out.
        """
        partitions = self._partitions.get(message.topic) or self._look_up(message.topic)
        if message.partition is not None:
            number = message.partition
        elif message.key is not None:
            # As the Java client does it, so that keys stay where other producers put them.
            number = murmur2(message.key) & 0x7FFFFFFF
        else:
            number = random.randrange(len(partitions))  # noqa: S311
        tp = partitions[number % len(partitions)]
        if tp not in self._entered:
            if self._manager.is_transactional():
                self._manager.maybe_add_partition_to_transaction(tp)
            self._entered.add(tp)
        # The client cannot write a null header value.
        headers = [header if header[1] is not None else (header[0], b"") for header in message.headers]
        future, _, begun, _ = self._producer._accumulator.append(tp, timestamp_ms, message.key, message.value, headers)
        if begun:
            self._producer._sender.wakeup()
        return future

    def _look_up(self, topic: str) -> list[KafkaTopicPartition]:
        producer = self._producer
        if producer._metadata.partitions_for_topic(topic) is None:
            producer._wait_on_metadata(topic, producer.config["max_block_ms"])
        found = [
            KafkaTopicPartition(topic, number) for number in sorted(producer._metadata.partitions_for_topic(topic))
        ]
        self._partitions[topic] = found
        return found
