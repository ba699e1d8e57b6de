"""The part of ``check`` that looks at what chunks need of topics.

Comes in: settings, and the topics that there are. Goes out: findings. Never here: a connection.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from pipelines.finding import Finding
from workers.kafka_topics import Topic
from workers.settings import KafkaOutput, Settings


def examine_chunks(settings: Settings, sources: Sequence[str], topics: Mapping[str, Topic]) -> Iterator[Finding]:
    """Whether outputs have a partition for each of the source's, which a document's chunks go to, all to the same."""
    if not settings.has_chunk_keys:
        return
    there = [topics[name] for name in sources if name in topics]
    largest = max(there, key=lambda topic: topic.partitions, default=None)
    spread = [each.topic for each in settings.outputs if isinstance(each, KafkaOutput) and not each.together]
    for output in dict.fromkeys(spread):
        if largest is not None and output in topics and topics[output].partitions < largest.partitions:
            yield Finding(
                output,
                f"topic {output} has {topics[output].partitions} partitions and {largest.name} {largest.partitions}: chunks go to "
                f"the partition number that their document has, so give {output} as many (kafka-topics.sh --alter --topic "
                f"{output} --partitions {largest.partitions})",
            )
