"""The moment when a transaction is open in a topic.

Comes in: a broker and a topic. Goes out: whether one is open now. Never here: whose it is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from kafka import TopicPartition

from workers import kafka_client
from workers.settings import KafkaSettings


@contextlib.contextmanager
def watched(kafka: KafkaSettings, topic: str) -> Iterator[Callable[[], bool]]:
    """What says whether a transaction is open in the topic, or not yet marked as ended: readers of committed records do not
    see the topic's end."""
    everything = kafka_client.bare_consumer(kafka, isolation_level="read_uncommitted")
    committed = kafka_client.bare_consumer(kafka)
    try:
        partitions = [TopicPartition(topic, number) for number in sorted(committed.partitions_for_topic(topic))]

        def is_open() -> bool:
            # In this order: what the first call saw and the second does not lies in a transaction that is open now.
            ends = everything.end_offsets(partitions)
            stable = committed.end_offsets(partitions)
            return any(stable[partition] < end for partition, end in ends.items())

        yield is_open
    finally:
        everything.close()
        committed.close()
