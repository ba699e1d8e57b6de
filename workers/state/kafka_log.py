"""The state topic, read.

Comes in: a partition of the source. Goes out: the records of its state. Never here: what they mean, or writing: that is the
sink's, in the transaction of the outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from workers import kafka_client, kafka_records, kafka_topics
from workers.errors import EnvironmentFault
from workers.records import TopicPartition
from workers.settings import KafkaSettings
from workers.state.entry import check_record, topic_prefix


def state_log(
    kafka: KafkaSettings, topic: str
) -> Callable[[TopicPartition], Iterator[Sequence[tuple[bytes, bytes | None]]]]:
    """What reads a partition's state: the records under the same partition number, those of other source topics left out.

    It is read up to its end as it is at the start, transactions that are being decided included: the last commit of a partition
    is in the group's offsets before its marker need be in every topic that it wrote to. So a reader that has seen a committed
    offset and then reads to that end has the state that belongs to the offset.

    The iterator raises:
        EnvironmentFault: there is no such partition, we may not read it, or it holds what is not ours.
        RetryableError: a broker does not answer, or somebody's transaction is still open.
    """

    def read(partition: TopicPartition) -> Iterator[Sequence[tuple[bytes, bytes | None]]]:
        at = TopicPartition(topic, partition.partition)
        with kafka_client.admin(kafka) as client:
            known = kafka_topics.describe_topics(client, [topic]).get(topic)
            if known is None or known.partitions <= partition.partition:
                raise EnvironmentFault(
                    f"state topic {topic} has {'no' if known is None else known.partitions} partitions, and {partition} needs "
                    "one of its own number: create it, or add some, and this reader goes on"
                )
            begin, end = kafka_topics.bounds_of(client, at)
        if begin == end:
            return
        prefix = topic_prefix(partition.topic)
        for records in kafka_records.committed_records(kafka, known, starts={at: begin}, ends={at: end}):
            found = []
            for record in records:
                key, value = record.key or b"", record.value
                try:
                    check_record(key, value)
                except ValueError as error:
                    raise EnvironmentFault(
                        f"{record.origin} in the state topic is no state of this version ({error}): it needs a topic of its own"
                    ) from None
                if key.startswith(prefix):
                    found.append((key, value))
            yield found

    return read
