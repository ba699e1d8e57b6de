"""Encoders come and go on real Kafka and Ray: none, then many, then none, while the consumer group notices nothing."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import RunningBroker
from tests.integration.pipeline import Pipeline, produce_texts, reading, value_of, wait_until
from tests.tiny_model import make_tiny_bert
from workers import kafka_client
from workers.settings import KafkaSettings

pytestmark = pytest.mark.timeout(400)

ENCODER = "ServeReplica:stream-embedder:Encoder"


def generations(kafka: KafkaSettings, group: str) -> list[int]:
    """Every generation that the broker has written down for a group, from its own log: one for each rebalance that ended."""
    consumer = kafka_client.bare_consumer(kafka)
    found = []
    try:
        from kafka import TopicPartition

        partitions = [
            TopicPartition("__consumer_offsets", n) for n in consumer.partitions_for_topic("__consumer_offsets")
        ]
        consumer.assign(partitions)
        consumer.seek_to_beginning(*partitions)
        ends = consumer.end_offsets(partitions)
        while any(consumer.position(partition) < end for partition, end in ends.items()):
            for records in consumer.poll(500).values():
                found += [generation_of(record.value) for record in records if is_group(record.key, group)]
    finally:
        consumer.close()
    return [generation for generation in found if generation is not None]


def is_group(key: bytes, group: str) -> bool:
    """Whether a key of Kafka's GroupMetadataKey (version 2) names the group."""
    return key[:2] == b"\x00\x02" and key[4:].decode() == group


def generation_of(value: bytes | None) -> int | None:
    """The generation in Kafka's GroupMetadataValue: version, protocol type, generation."""
    if value is None:
        return None
    (length,) = struct.unpack_from(">h", value, 2)
    (generation,) = struct.unpack_from(">i", value, 4 + length)
    return int(generation)


def test_encoders_come_and_go_and_the_group_notices_nothing(
    broker: RunningBroker, make_topic: Callable[..., str], unique_name: Callable[[], str], tmp_path: Path
) -> None:
    """0 → 3 → 0 → 1 → 0: no rebalance, no duplicate, nothing lost; each step says its figures and its reason."""
    names = {"in": make_topic(4), "out": make_topic(4), "dead": make_topic(1), "group": unique_name()}
    settings = {
        "model": {"name": str(make_tiny_bert(tmp_path / "model"))},
        "source": {"topics": [names["in"]], "group": names["group"], "id": "{id}"},
        "outputs": [{"topic": names["out"]}],
        "dead_letter": {"topic": names["dead"]},
        "kafka": {"bootstrap_servers": broker.bootstrap_servers},
        "readers": {"cpus": 0.25},
        "pool": {"min": 0, "max": 3, "cpus_per_replica": 0.1, "gpus_per_replica": 0},
        "scaling": {"idle_s": 6, "tokens_per_s": 2000, "start_s": 10, "settle_s": 30},
        "delivery": {"commit_interval_s": 0.3},
    }
    many, few = 6_000, 50
    pipeline = Pipeline(tmp_path, settings, "pipelines.stand_in tests.slow_encoder:SlowEncoder")
    seen: set[int] = set()

    def encoders() -> int:
        count = len(pipeline.parts(ENCODER))
        seen.add(count)
        return count

    with reading(broker.settings, names["out"]) as out, pipeline:
        wait_until(lambda: "running; SIGTERM" in pipeline.tail(200), 120, pipeline.tail)
        wait_until(lambda: len(generations(broker.settings, names["group"])) > 0, 30, pipeline.tail)
        assert encoders() == 0, "there is nothing to do"
        before = generations(broker.settings, names["group"])

        produce_texts(broker.settings, names["in"], range(many))
        wait_until(lambda: encoders() > 0 and out.poll() > 0, 90, pipeline.tail)
        wait_until(lambda: (encoders(), out.poll())[1] >= many, 150, pipeline.tail)
        wait_until(lambda: encoders() == 0, 90, pipeline.tail)
        assert max(seen) == 3, seen

        produce_texts(broker.settings, names["in"], range(many, many + few))
        wait_until(lambda: out.poll() >= many + few, 90, pipeline.tail)
        wait_until(lambda: encoders() == 0, 90, pipeline.tail)

        assert generations(broker.settings, names["group"]) == before
        assert pipeline.terminate() == 0, pipeline.tail()
        for _ in range(5):
            out.poll()
    assert len(out.records) == many + few
    assert {value_of(record)["id"] for record in out.records} == {str(n) for n in range(many + few)}
    told = pipeline.log.read_text(errors="replace")
    assert told.count("assigned partition=") == 4
    assert "Traceback" not in told
    for target, reason in ((0, "idle"), (3, "most")):
        assert f"target={target} " in told
        assert f"reason={reason} " in told
