"""How long a query takes, alone and while a stream's backlog keeps every encoder busy: ``python -m tests.query_latency``.

A Kafka broker, ``stream-embedder run`` and the official client, all on this machine, with the packaged model. One caller asks
questions of a dozen tokens, each some moment after the answer to the one before; percentiles are of what the caller sees. Takes
four minutes.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openai

from pipelines.broker import local_broker
from pipelines.demo_corpus import documents
from pipelines.loopback import free_port
from tests.batch_kill import WORDS
from tests.integration.pipeline import Pipeline, Reader, reading, wait_until
from workers import kafka_client, kafka_topics
from workers.settings import KafkaSettings

# How long the stream is watched for its rate without queries.
WATCHED_S = 15.0
# At most so long after an answer comes the next question, at random: else each would come as a call of the stream begins.
PAUSE_S = 0.3


def produce(kafka: KafkaSettings, topic: str, count: int) -> None:
    """Records of some 100 tokens, no two of them equal."""
    texts = [document.body for document in documents()]
    producer = kafka_client.bare_producer(kafka, linger_ms=20)
    for n in range(count):
        text = f"{n} {texts[n % len(texts)]}"[:450]
        producer.send(topic, key=b"k%d" % n, value=json.dumps({"text": text}).encode())
    producer.flush(timeout=120)
    producer.close(timeout=5)


def asked(client: openai.OpenAI, count: int, out: Reader | None = None) -> list[float]:
    """Seconds that each of so many queries took; ``out`` is read between them."""
    draw, found = random.Random(count), []
    for _ in range(count):
        question = "what is the " + " of the ".join(draw.choices(WORDS, k=3))
        began = time.monotonic()
        client.embeddings.create(model="all-MiniLM-L6-v2", input=question)
        found.append(time.monotonic() - began)
        next_at = time.monotonic() + PAUSE_S * draw.random()
        if out is not None:
            out.poll()
        time.sleep(max(0.0, next_at - time.monotonic()))
    return found


def said(name: str, seconds: Sequence[float]) -> str:
    """A line of the table."""
    p50, p90, p99, most = (1000 * each for each in np.quantile(seconds, [0.5, 0.9, 0.99, 1.0]))
    return f"| {name} | {len(seconds)} | {p50:.0f} | {p90:.0f} | {p99:.0f} | {most:.0f} |"


def rate(out: Reader, seconds: float) -> float:
    """Records a second that come out."""
    began, before = time.monotonic(), out.poll()
    while time.monotonic() - began < seconds:
        out.poll()
    return (len(out.records) - before) / (time.monotonic() - began)


def measured(folder: Path, kafka: str, count: int, records: int, budget: int | str) -> None:
    """Print the table."""
    settings: dict[str, Any] = {
        "source": {"topics": ["in"]},
        "outputs": [{"topic": "out"}],
        "dead_letter": {"topic": "dead"},
        "kafka": {"bootstrap_servers": kafka},
        "pool": {"gpus_per_replica": 0, "max_batch_tokens": budget},
        "queries": {"enabled": True, "port": free_port(), "timeout_s": 60},
    }
    pipeline = Pipeline(folder, settings)
    connection = KafkaSettings(bootstrap_servers=kafka)
    kafka_topics.create_topics(connection, {"in": 2, "out": 2, "dead": 1}, **{"max.message.bytes": "2000000"})
    url = f"http://127.0.0.1:{settings['queries']['port']}/v1"
    asking = openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=60)
    with reading(connection, "out") as out, pipeline, asking as client:
        wait_until(lambda: "running; SIGTERM" in pipeline.tail(200), 180, pipeline.tail)
        asked(client, 20)
        print("| | queries | p50 ms | p90 ms | p99 ms | most ms |\n|---|---:|---:|---:|---:|---:|")
        print(said("alone", asked(client, count)), flush=True)
        produce(connection, "in", records)
        wait_until(lambda: out.poll() > 1000, 180, pipeline.tail)
        without = rate(out, WATCHED_S)
        began, before = time.monotonic(), out.poll()
        found = asked(client, count, out)
        beside = (out.poll() - before) / (time.monotonic() - began)
        print(said("before a full backlog", found))
        if len(out.records) >= records:
            raise SystemExit("the backlog was gone before the queries were: give more --records")
        print(f"\nrecords/s {without:.0f} without queries, {beside:.0f} beside them; {records - len(out.records)} left")
        pipeline.terminate()


def main() -> None:
    """Parse the words, and measure."""
    parser = argparse.ArgumentParser(prog="python -m tests.query_latency")
    parser.add_argument("--queries", type=int, default=300)
    parser.add_argument("--records", type=int, default=60_000)
    parser.add_argument("--max-batch-tokens", default="auto")
    words = parser.parse_args()
    budget = words.max_batch_tokens if words.max_batch_tokens == "auto" else int(words.max_batch_tokens)
    with tempfile.TemporaryDirectory() as folder, local_broker(None) as kafka:
        measured(Path(folder), kafka, words.queries, words.records, budget)


if __name__ == "__main__":
    main()
