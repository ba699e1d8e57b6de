"""The part of ``check`` that looks at the state topic, and at what a state asks of the outputs.

Comes in: settings, and the topics that there are. Goes out: findings. Never here: a connection.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from pipelines.finding import Finding
from workers.kafka_topics import Topic
from workers.settings import Settings


def examine_state(settings: Settings, sources: Sequence[str], topics: Mapping[str, Topic]) -> Iterator[Finding]:
    """Whether the state topic keeps what it is given, in the partitions of the source's numbers."""
    state = None if settings.state.topic is None else topics.get(settings.state.topic)
    if state is None:
        return
    if state.configs_known and (not state.compacted or state.retention_ms >= 0):
        yield Finding(
            state.name,
            f"state topic {state.name} loses what it is given: set its cleanup.policy to compact, and to nothing else",
        )
    for name in settings.output_topics:
        if name in topics and topics[name].retention_ms >= 0 and settings.state.unchanged == "skip":
            yield Finding(
                name,
                f"topic {name} deletes by age (retention.ms), and records that did not change are not written to it again: set its "
                "cleanup.policy to compact alone, or state.unchanged: embed",
                may_never_happen=True,
            )
    if len(sources) > 1:
        yield Finding(
            state.name,
            f"the state knows the keys of {sources[0]} and {len(sources) - 1} more topics apart, and the outputs do not: no two of "
            "them may use the same key",
            may_never_happen=True,
        )
    largest = max(
        (topics[name] for name in sources if name in topics), key=lambda topic: topic.partitions, default=None
    )
    if largest is not None and largest.partitions > state.partitions:
        yield Finding(
            state.name,
            f"state topic {state.name} has {state.partitions} partitions and topic {largest.name} {largest.partitions}: add "
            f"partitions (kafka-topics.sh --alter --topic {state.name} --partitions {largest.partitions})",
        )
    elif largest is not None:
        yield Finding(f"state topic {state.name}: a partition for each of the source's")
