"""Records of producers of which some are traced, and what a collector has of the pipeline that has embedded them.

Comes in: a topic; later what came out, and the collector. Goes out: a failure. Never here: the pipeline.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from tests.collector import CollectedSpan, Collector
from workers import kafka_client
from workers.settings import KafkaSettings

SECRET = "xylophone"
PHASES = {"prepare", "pack", "encode"}


def parent_of(number: int) -> bytes:
    """The header of a record whose producer is traced."""
    return b"00-%032x-%016x-01" % (number + 1, number + 1)


def produce(kafka: KafkaSettings, topic: str, count: int, partitions: int) -> None:
    """Records with a word that is in no span; every other one comes from somebody who is traced."""
    producer = kafka_client.bare_producer(kafka, linger_ms=5)
    for n in range(count):
        headers = [("traceparent", parent_of(n)), ("tenant", b"a")] if n % 2 else [("tenant", b"a")]
        value = json.dumps({"id": str(n), "text": f"{SECRET} {n}"}).encode()
        key = f"{SECRET}-{n}".encode()
        producer.send(topic, key=key, value=value, headers=headers, partition=n // 2 % partitions)
    producer.flush(timeout=60)
    producer.close(timeout=5)


def encoded(found: Collector) -> int:
    """Texts that a replica has told of."""
    return sum(span.attributes["stream_embedder.texts"] for span in found.spans("encoder"))


def assert_followed(found: Collector, topic: str, count: int, partitions: int, made: Iterable[Any]) -> None:
    """Every batch has a whole trace, both sides of each call are in it, and outputs go on from their producer or their batch."""
    roots = found.spans(f"process {topic}")
    assert sum(root.attributes["messaging.batch.message_count"] for root in roots) == count
    links = {link for root in roots for link in root.links}
    assert links == {(f"{n + 1:032x}", f"{n + 1:016x}") for n in range(1, count, 2)}
    spans = {span.id: span for span in found.spans()}

    def below(span: CollectedSpan) -> dict[str, CollectedSpan]:
        return {child.name: child for child in spans.values() if child.parent == span.id}

    for root in roots:
        assert root.parent == ""
        assert {*PHASES, f"commit {topic}"} <= set(below(root))
    calls = found.spans("call encoder")
    served = {span.parent: span for span in found.spans("encoder")}
    assert calls and {call.id for call in calls} == set(served), "each call is seen on both sides"
    for call in calls:
        replica = served[call.id]
        actors = call.resource["stream_embedder.actor"], replica.resource["stream_embedder.actor"]
        assert actors == ("reader", "encoder")
        assert replica.trace == call.trace and replica.attributes == call.attributes
        assert set(below(replica)) == {"queue", "compute"}
    steps = {name for commit in found.spans(f"commit {topic}") for name in below(commit)}
    assert steps == {"render", "send", "membership", "offsets"}
    puts = found.spans("put file")
    assert puts and {put.trace for put in puts} <= {root.trace for root in roots}
    assert {span.resource["service.name"] for span in spans.values()} == {"stream-embedder"}
    assert SECRET.encode() not in found.raw

    ids = {f"00-{root.trace}-{root.id}-01".encode(): root for root in roots}
    for record in made:
        n = int(record.key.rpartition(b"-")[2])
        (parent,) = (value for name, value in record.headers if name == "traceparent")
        if n % 2:
            assert parent == parent_of(n)
        else:
            partition = ids[parent].attributes["messaging.destination.partition.id"]
            assert partition == str(n // 2 % partitions)
