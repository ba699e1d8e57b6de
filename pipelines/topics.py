"""The command ``topics create``: the topics that a pipeline's settings name, with what it needs of them.

Comes in: settings. Goes out: topics that were not there. Never here: a change to one that is.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.check_sizes import DEAD_LETTER_BYTES, OTHER_BYTES, record_size
from pipelines.model import Model
from pipelines.table import plain
from workers import kafka_client, kafka_topics
from workers.kafka_topics import BROKERS_CHOICE, DEFAULT_MAX_MESSAGE_BYTES, Topic
from workers.settings import KafkaOutput, Settings


@dataclass(frozen=True, slots=True)
class Wanted:
    """A topic as it should be: ``BROKERS_CHOICE`` partitions leave their number to the broker."""

    name: str
    what: str
    partitions: int
    configs: dict[str, str]


def run_create(
    settings: Settings, *, partitions: int | None, replication: int | None, keyless: bool, dry_run: bool
) -> int:
    """Create the source's, the outputs', the dead letters' and the state's topics where they are not there.

    Outputs have as many ``partitions`` as the source unless they are given, and are compacted: they keep the latest vector of
    each key. ``keyless``: they delete by age instead, for records without keys, which a compacted topic refuses.

    Raises:
        EnvironmentFault: no broker answers, or it refuses.
        RetryableError: anything that may pass.
    """
    model = Model.open(settings)
    with kafka_client.admin(settings.kafka) as client:
        sources = kafka_topics.source_topics(client, settings.source)
        written = settings.written_topics
        there = kafka_topics.describe_topics(client, dict.fromkeys([*sources, *written]))
        wanted = plan(settings, model, sources, there, partitions=partitions, keyless=keyless)
        rows = []
        for topic in wanted:
            if (found := there.get(topic.name)) is not None:
                rows.append((topic.name, topic.what, f"{found.partitions}", "was there, stays as it is"))
                continue
            if not dry_run:
                kafka_topics.create_topic(
                    client, settings.kafka, topic.name, topic.partitions, replication or BROKERS_CHOICE, topic.configs
                )
            count = "the broker's" if topic.partitions == BROKERS_CHOICE else str(topic.partitions)
            configs = ", ".join(f"{name}={value}" for name, value in topic.configs.items())
            rows.append((topic.name, topic.what, count, f"{'would be created' if dry_run else 'created'} {configs}"))
        if not dry_run:
            client.wait_for_topics([topic.name for topic in wanted])
    print(plain(("topic", "for", "partitions", ""), rows))
    return 0


def plan(
    settings: Settings,
    model: Model,
    sources: list[str],
    there: dict[str, Topic],
    *,
    partitions: int | None,
    keyless: bool,
) -> list[Wanted]:
    """The topics in the order in which they are created. ``there``: those that exist."""
    source_partitions = partitions or max(
        (there[name].partitions for name in sources if name in there), default=BROKERS_CHOICE
    )
    # What a source record may take; one that is not there yet will have Kafka's default.
    largest = max(
        (there[name].max_message_bytes for name in sources if name in there), default=DEFAULT_MAX_MESSAGE_BYTES
    )
    found = {name: Wanted(name, "source", source_partitions, {}) for name in sources}
    for output in settings.outputs:
        if not isinstance(output, KafkaOutput):
            continue
        most = record_size(model, output) + OTHER_BYTES + (largest if output.include else 0)
        configs = {"cleanup.policy": "delete" if keyless else "compact"}
        if most > DEFAULT_MAX_MESSAGE_BYTES:
            configs["max.message.bytes"] = str(most)
        found.setdefault(output.topic, Wanted(output.topic, "vectors", source_partitions, configs))
    dead = settings.dead_letter.topic
    # A dead letter keeps its source record's time: by age it would be gone at once when old records are read again.
    configs = {
        "cleanup.policy": "delete",
        "retention.ms": "-1",
        "max.message.bytes": str(largest + DEAD_LETTER_BYTES),
    }
    found.setdefault(dead, Wanted(dead, "dead letters", partitions or 1, configs))
    if (state := settings.state.topic) is not None:
        # What a partition has written is kept under its own number.
        found.setdefault(state, Wanted(state, "state", source_partitions, {"cleanup.policy": "compact"}))
    return list(found.values())
