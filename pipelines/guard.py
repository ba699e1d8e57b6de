"""Vectors of two spaces never meet in one topic: the worker refuses an output that another fingerprint has written.

Comes in: outputs and their fingerprints. Goes out: nothing, or a refusal. Never here: what a fingerprint is made of.
"""

from __future__ import annotations

from collections.abc import Mapping

from workers import kafka_client, kafka_records, kafka_topics
from workers.codecs import fingerprint_of
from workers.errors import EnvironmentFault
from workers.settings import Settings


def refuse_other_fingerprints(settings: Settings, wanted: Mapping[str, str]) -> None:
    """Look at the latest record of every partition of each topic in ``wanted`` (topic → our fingerprint).

    Raises:
        EnvironmentFault: one carries another fingerprint, and the settings do not allow that.
    """
    if settings.delivery.allow_fingerprint_change:
        return
    with kafka_client.admin(settings.kafka) as client:
        topics = kafka_topics.describe_topics(client, wanted)
    for name, topic in topics.items():
        for partition, found in latest_fingerprints(settings, topic).items():
            if found != wanted[name]:
                raise EnvironmentFault(
                    f"topic {name}, partition {partition} holds vectors with fingerprint {found}, ours is {wanted[name]}: "
                    "another model, prompt, template, dim, precision or ranges wrote them, and the two do not compare; "
                    "choose another topic, or set delivery.allow_fingerprint_change: true"
                )


def latest_fingerprints(settings: Settings, topic: kafka_topics.Topic) -> dict[int, str]:
    """Partition → fingerprint of its latest record that has one; a partition without any is left out."""
    found: dict[int, str] = {}
    for latest in kafka_records.latest_records(settings.kafka, topic):
        for partition, records in latest.items():
            for record in reversed(records):
                fingerprint = fingerprint_of(record.value, tuple(record.headers or ()))
                if fingerprint is not None:
                    found[partition.partition] = fingerprint
                    break
        if len(found) == topic.partitions or not any(latest.values()):
            break
    return found
