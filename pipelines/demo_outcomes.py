"""The demo's two ends in Kafka: documents go in, outcomes are read back and counted.

Comes in: documents, and records of the output and dead-letter topics. Goes out: how many outcomes each document has. Never
here: what lies between, which is the pipeline's.
"""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import orjson

from pipelines.demo_corpus import Doc
from pipelines.demo_settings import Names
from workers import kafka_client, kafka_topics
from workers.errors import EnvironmentFault, StreamEmbedderError
from workers.settings import KafkaSettings

STALLED_S = 180.0


@dataclass(slots=True)
class Outcomes:
    """What has come out: documents by id, and how often anything came."""

    titles: dict[str, str] = field(default_factory=dict)
    vectors: dict[str, list[float]] = field(default_factory=dict)
    dead: set[str] = field(default_factory=set)
    records: int = 0
    tokens: int = 0
    seen: list[tuple[float, int]] = field(default_factory=list)

    def add(self, records: Iterable[Any], dead_topic: str, now: float) -> None:
        """Take in consumer records, read at ``now``."""
        before = self.records
        for record in records:
            self.records += 1
            if record.topic == dead_topic:
                self.dead.add(record.key.decode())
                continue
            value = orjson.loads(record.value)
            self.titles[value["id"]] = value["title"]
            self.vectors[value["id"]] = value["embedding"]
            self.tokens += value["tokens"]
        if self.records > before:
            self.seen.append((now, self.records))

    @property
    def documents(self) -> int:
        """Documents with an outcome."""
        return len(self.vectors) + len(self.dead)

    def rate(self, started: float) -> float:
        """Records/s once it was under way: from the first commit that was seen to the last, or from ``started``."""
        (first, earlier), (last, records) = self.seen[0], self.seen[-1]
        if last - first < 1.0:
            first, earlier = started, 0
        return (records - earlier) / max(last - first, 1e-9)


def produce(kafka: KafkaSettings, topic: str, corpus: Iterable[Doc]) -> None:
    """Put the documents into a topic.

    Raises:
        EnvironmentFault: the broker did not take them all.
    """
    producer = kafka_client.bare_producer(kafka, acks="all", linger_ms=20)
    try:
        sent = [
            producer.send(topic, key=doc.id.encode(), value=orjson.dumps({"title": doc.title, "body": doc.body}))
            for doc in corpus
        ]
        producer.flush(timeout=60)
        if not all(future.is_done and future.exception is None for future in sent):
            raise EnvironmentFault(f"the broker at {kafka.bootstrap_servers} did not take all the documents")
    finally:
        producer.close(timeout=5)


def outcome_reader(kafka: KafkaSettings, names: Names) -> Any:
    """A read_committed reader of what comes out, from the beginning."""
    consumer = kafka_client.bare_consumer(kafka, auto_offset_reset="earliest")
    consumer.subscribe([names.vectors, names.dead])
    return consumer


def _poll(consumer: Any, outcomes: Outcomes, names: Names) -> None:
    polled = [record for records in consumer.poll(500).values() for record in records]
    outcomes.add(polled, names.dead, time.monotonic())


def await_outcomes(process: subprocess.Popen[bytes], consumer: Any, names: Names, wanted: int) -> Outcomes:
    """Read until ``wanted`` documents have an outcome.

    Raises:
        EnvironmentFault: the pipeline has ended, or nothing new came for long.
    """
    outcomes = Outcomes()
    progress, known = time.monotonic(), 0
    while outcomes.documents < wanted:
        _poll(consumer, outcomes, names)
        if outcomes.documents > known:
            progress, known = time.monotonic(), outcomes.documents
        if process.poll() is not None:
            raise EnvironmentFault(
                f"the pipeline ended by itself with exit code {process.returncode} after {known:,} of {wanted:,} documents; "
                "what it said stands above"
            )
        if time.monotonic() - progress > STALLED_S:
            raise EnvironmentFault(
                f"nothing new came out of the pipeline for {STALLED_S:.0f} s, after {known:,} of {wanted:,} documents"
            )
    return outcomes


def read_rest(consumer: Any, outcomes: Outcomes, names: Names) -> None:
    """Read to the topics' ends: what would show a document's second outcome."""
    ends = consumer.end_offsets(consumer.assignment())
    deadline = time.monotonic() + 10
    while any(consumer.position(partition) < end for partition, end in ends.items()) and time.monotonic() < deadline:
        _poll(consumer, outcomes, names)


def require_once(outcomes: Outcomes, wanted: int) -> None:
    """Raise EnvironmentFault unless each of ``wanted`` documents has one outcome, and one only."""
    if outcomes.records != wanted or outcomes.documents != wanted:
        raise EnvironmentFault(
            f"{wanted:,} documents went in, and {outcomes.records:,} outcomes of {outcomes.documents:,} documents came out"
        )


def forget(kafka: KafkaSettings, names: Names) -> None:
    """Take the demo's traces off a broker that stays."""
    with contextlib.suppress(StreamEmbedderError):
        kafka_topics.delete_topics(kafka, names.topics)
    with contextlib.suppress(StreamEmbedderError), kafka_client.admin(kafka) as client:
        client.delete_groups([names.group])
