"""kill -9 everything in turn while records flow: each outcome is there once, in order, whatever dies."""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq
import pytest

from tests.conftest import RunningBroker
from tests.integration.pipeline import Pipeline, Reader, reading, value_of, wait_until
from tests.lab.documents import BAD, WORDS
from tests.tiny_model import make_tiny_bert
from workers import kafka_client
from workers.settings import KafkaSettings

pytestmark = pytest.mark.timeout(600)

TINY_DIM = 32


@dataclass(frozen=True)
class Sent:
    """A record as it was produced."""

    key: bytes
    value: bytes
    headers: tuple[tuple[str, bytes], ...]
    good: bool


def records(count: int, seed: int) -> Iterator[Sent]:
    """Documents of mixed lengths, 1 % of them bad in every way that a record can be bad; keys repeat."""
    rng = random.Random(seed)
    for number in range(count):
        key = f"key-{rng.randrange(count // 10)}".encode()
        headers = (("trace", f"t-{number}".encode()),)
        if rng.random() < 0.01:
            yield Sent(key, rng.choice(BAD)[1](number), headers, good=False)
        else:
            length = int(rng.paretovariate(1.2) * 4) % 300 + 1
            text = " ".join(rng.choices(WORDS, k=length))
            yield Sent(key, json.dumps({"id": str(number), "text": text}).encode(), headers, good=True)


class Feeder(threading.Thread):
    """Produces the records at a steady rate, so that the faults fall among them."""

    def __init__(self, kafka: KafkaSettings, topic: str, sent: list[Sent], per_second: float) -> None:
        super().__init__(daemon=True)
        self.kafka, self.topic, self.sent, self.per_second = kafka, topic, sent, per_second
        self.failure: BaseException | None = None

    def run(self) -> None:
        producer = kafka_client.bare_producer(self.kafka, linger_ms=5)
        try:
            began = time.monotonic()
            futures = []
            for number, record in enumerate(self.sent):
                ahead = number / self.per_second - (time.monotonic() - began)
                if ahead > 0:
                    time.sleep(ahead)
                headers = list(record.headers)
                futures.append(producer.send(self.topic, key=record.key, value=record.value, headers=headers))
            producer.flush(timeout=30)
            for future in futures:
                future.get(timeout=30)
        except BaseException as error:
            self.failure = error
        finally:
            producer.close(timeout=5)


def pipeline_settings(broker: str, names: dict[str, str], model: Path, lake: str) -> dict[str, Any]:
    """Two readers and two encoder replicas whose shares fit two cores; a topic, and files below ``lake``."""
    return {
        "model": {"name": str(model)},
        "source": {"topics": [names["in"]], "group": names["group"], "text": "text", "id": "id"},
        "outputs": [
            {"kind": "kafka", "topic": names["out"]},
            {"kind": "parquet", "uri": lake, "precision": "float16", "rotate": {"rows": 700, "seconds": 3}},
        ],
        "dead_letter": {"topic": names["dead"]},
        "kafka": {"bootstrap_servers": broker},
        "readers": {"count": 2, "cpus": 0.25},
        "pool": {"min": 2, "max": 2, "cpus_per_replica": 0.5},
        "limits": {"records": 3000},
        "delivery": {"commit_interval_s": 0.3},
    }


def check_outcomes(sent: list[Sent], out: Reader, dead: Reader) -> None:
    """Every good record once with its vector, every bad one once and byte for byte, and keys in their order."""
    good = {value_of(record)["id"] for record in out.records}
    expected = {json.loads(record.value)["id"] for record in sent if record.good}
    counts = Counter(value_of(record)["id"] for record in out.records)
    assert good == expected
    assert [name for name, count in counts.items() if count > 1] == []
    wanted = Counter((record.key, record.value, record.headers) for record in sent if not record.good)
    found = Counter(
        (
            record.key,
            record.value,
            tuple((name, value) for name, value in record.headers if not name.startswith("embedding-error-")),
        )
        for record in dead.records
    )
    assert found == wanted
    keys: dict[bytes, list[int]] = defaultdict(list)
    for record in sorted(out.records, key=lambda record: (record.partition, record.offset)):
        keys[record.key].append(int(value_of(record)["id"]))
    assert all(numbers == sorted(numbers) for numbers in keys.values())


def check_files(sent: list[Sent], files: Path) -> None:
    """A plain glob sees every good record once, in the order of its key, whichever engine looks."""
    glob = f"{files}/**/*.parquet"
    query = f"select id, key, partition, \"offset\", len(embedding) from read_parquet('{glob}')"
    found = duckdb.sql(query).fetchall()
    assert sorted(row[0] for row in found) == sorted(json.loads(each.value)["id"] for each in sent if each.good)
    assert {row[4] for row in found} == {TINY_DIM}
    keys: dict[bytes, list[int]] = defaultdict(list)
    for number, key, *_ in sorted(found, key=lambda row: (row[2], row[3])):
        keys[key].append(int(number))
    assert all(numbers == sorted(numbers) for numbers in keys.values())
    assert sorted(pq.read_table(files, columns=["id"])["id"].to_pylist()) == sorted(row[0] for row in found)


def chaos(
    broker: RunningBroker,
    make_topic: Callable[..., str],
    unique_name: Callable[[], str],
    tmp_path: Path,
    *,
    seed: int,
    count: int,
) -> None:
    """Feed, kill in turn, start again, and compare."""
    rng = random.Random(seed)
    model = make_tiny_bert(tmp_path / "model")
    names = {
        "in": make_topic(6),
        "out": make_topic(6),
        "dead": make_topic(3, max_message_bytes=2_000_000),
        "group": unique_name(),
    }
    sent = list(records(count, seed))
    feeder = Feeder(broker.settings, names["in"], sent, per_second=count / 60)
    files = tmp_path / "lake"
    pipeline = Pipeline(tmp_path, pipeline_settings(broker.bootstrap_servers, names, model, files.as_uri()))
    expected_good = sum(record.good for record in sent)
    with reading(broker.settings, names["out"]) as out, reading(broker.settings, names["dead"]) as dead, pipeline:
        feeder.start()
        wait_until(lambda: out.poll() > 100, 120, lambda: f"first vectors\n{pipeline.tail()}")

        def flows_on() -> None:
            at = out.poll()
            wait_until(
                lambda: out.poll() > at + 50 or (not feeder.is_alive() and out.poll() >= expected_good),
                90,
                lambda: f"vectors after a fault\n{pipeline.tail()}",
            )

        for title in ("ServeReplica:stream-embedder:Encoder", "ServeReplica:stream-embedder:Reader", "ServeController"):
            time.sleep(rng.random() * 2)
            pipeline.kill(title)
            flows_on()
        time.sleep(rng.random() * 2)
        pipeline.kill_everything()
        pipeline.start()
        flows_on()
        feeder.join(180)
        assert feeder.failure is None and not feeder.is_alive()
        wait_until(
            lambda: out.poll() >= expected_good and dead.poll() >= len(sent) - expected_good,
            180,
            lambda: f"the rest: {len(out.records)} of {expected_good}, {len(dead.records)}\n{pipeline.tail()}",
        )
        assert pipeline.terminate() == 0, pipeline.tail()
        for _ in range(10):
            out.poll()
            dead.poll()
    check_outcomes(sent, out, dead)
    check_files(sent, files)


def test_every_part_killed_in_turn(
    broker: RunningBroker, make_topic: Callable[..., str], unique_name: Callable[[], str], tmp_path: Path
) -> None:
    """20,000 records, 1 % bad, 6 partitions, 2 readers, 2 encoders; encoder, reader, controller and driver are killed."""
    chaos(broker, make_topic, unique_name, tmp_path, seed=20_000, count=20_000)
