"""kill -9 everything in turn while records flow: each outcome is there once, in order, and the right one, whatever dies."""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest

from pipelines.embedder import Embedder
from pipelines.model import Model
from pipelines.texts import Text
from tests.conftest import RunningBroker
from tests.integration.pipeline import Pipeline, Reader, reading, value_of, wait_until
from tests.lab.documents import BAD, WORDS
from tests.tiny_model import make_tiny_bert
from workers import kafka_client
from workers.records import Embedding
from workers.settings import KafkaSettings, Settings

pytestmark = pytest.mark.timeout(600)

TINY_DIM = 32
OTHER_BATCH = 5e-6  # float32: how much a vector may differ from what another batch makes of its text


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
        self.placed: list[Any] = []  # where each record lies in the source, and its timestamp; once all are sent
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
            self.placed = [future.get(timeout=30) for future in futures]
        except BaseException as error:
            self.failure = error
        finally:
            producer.close(timeout=5)


def pipeline_settings(broker: str, names: dict[str, str], model: Path, lake: str) -> dict[str, Any]:
    """Two readers and two encoder replicas whose shares fit two cores; a topic, and files below ``lake``."""
    return {
        "model": {"name": str(model), "dtype": "float32"},
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


def embeddings(model: Path, sent: Sequence[Sent]) -> dict[str, Embedding]:
    """What ``stream-embedder encode`` makes of the good records' texts, by the text."""
    made = Embedder(Model.open(Settings(model={"name": str(model), "dtype": "float32"})))
    texts = sorted({json.loads(record.value)["text"] for record in sent if record.good})
    found: dict[str, Embedding] = {}
    for at in range(0, len(texts), 1000):
        window = texts[at : at + 1000]
        for text, outcome in zip(window, made.embed([Text("", text) for text in window], TINY_DIM), strict=True):
            assert isinstance(outcome, Embedding)
            found[text] = outcome
    return found


def number_of(record: Any) -> int:
    """The number of the record that a header names, of an outcome with one such header."""
    (number,) = (int(value.removeprefix(b"t-")) for name, value in record.headers if name == "trace")
    return number


def in_key_order(keys: Iterable[tuple[bytes, int]]) -> bool:
    """Whether the records of each key, given as their outcomes lie, are in the order of their numbers."""
    last: dict[bytes, int] = {}
    for key, number in keys:
        if last.get(key, -1) >= number:
            return False
        last[key] = number
    return True


def check_outcomes(
    sent: Sequence[Sent], placed: Sequence[Any], expected: Mapping[str, Embedding], out: Reader, dead: Reader
) -> None:
    """Every good record once with its vector, every bad one once and byte for byte, and keys in their order.

    ``placed``: where each record lies in the source; ``expected``: the embeddings of texts.
    """
    good = [number for number, record in enumerate(sent) if record.good]
    assert Counter(map(number_of, out.records)) == Counter(good)
    vectors = np.empty((2, len(out.records), TINY_DIM), np.float32)
    spaces = set()
    for row, record in enumerate(out.records):
        number = number_of(record)
        was, value = sent[number], value_of(record)
        assert (record.key, tuple(record.headers), record.timestamp) == (was.key, was.headers, placed[number].timestamp)
        document = json.loads(was.value)
        wanted = expected[document["text"]]
        vectors[:, row] = value.pop("embedding"), wanted.vector
        spaces.add((value.pop("model"), value.pop("fingerprint")))
        assert value == {
            "id": document["id"],
            "dim": TINY_DIM,
            "precision": "float32",
            "tokens": wanted.tokens,
            "truncated": wanted.truncated,
        }
    assert np.abs(vectors[0] - vectors[1]).max() <= OTHER_BATCH
    assert len(spaces) == 1

    assert Counter(map(number_of, dead.records)) == Counter(set(range(len(sent))) - set(good))
    for record in dead.records:
        number = number_of(record)
        was, place = sent[number], placed[number]
        kept = tuple((name, value) for name, value in record.headers if not name.startswith("embedding-error-"))
        assert (record.key, record.value, kept, record.timestamp) == (was.key, was.value, was.headers, place.timestamp)
        why = {name.removeprefix("embedding-error-"): value.decode() for name, value in record.headers}
        assert (why["topic"], why["partition"], why["offset"]) == (place.topic, str(place.partition), str(place.offset))
        assert why["stage"] in ("decode", "text")

    ordered = sorted(out.records, key=lambda record: (record.partition, record.offset))
    assert in_key_order((record.key, number_of(record)) for record in ordered)


def check_files(sent: Sequence[Sent], placed: Sequence[Any], expected: Mapping[str, Embedding], files: Path) -> None:
    """A plain glob sees every good record once with its vector, in the order of its key, whichever engine looks."""
    glob = f"{files}/**/*.parquet"
    columns = 'topic, partition, "offset", epoch_ms("timestamp"), key, id, tokens, truncated, deleted, embedding'
    found = duckdb.sql(f"select {columns} from read_parquet('{glob}') order by partition, \"offset\"").fetchall()
    assert sorted(int(row[5]) for row in found) == [number for number, record in enumerate(sent) if record.good]
    for row in found:
        number = int(row[5])
        wanted, place = expected[json.loads(sent[number].value)["text"]], placed[number]
        assert row[:4] == (place.topic, place.partition, place.offset, place.timestamp)
        assert row[4:9] == (sent[number].key, str(number), wanted.tokens, wanted.truncated, False)
    vectors = np.array([row[9] for row in found], np.float32)
    wanted = np.stack([expected[json.loads(sent[int(row[5])].value)["text"]].vector for row in found])
    # Rounded to float16, whose step is 2⁻¹⁰ of a number's power of two.
    assert (np.abs(vectors - wanted) <= OTHER_BATCH + np.abs(wanted) * 2.0**-11).all()
    assert in_key_order((row[4], int(row[5])) for row in found)

    table = pq.read_table(files, columns=["partition", "offset", "id", "embedding"])
    table = table.sort_by([("partition", "ascending"), ("offset", "ascending")])
    assert table["id"].to_pylist() == [row[5] for row in found]
    flat = np.concatenate([chunk.flatten().to_numpy() for chunk in table["embedding"].chunks])
    assert np.array_equal(flat.reshape(-1, TINY_DIM).astype(np.float32), vectors)


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
    # However long the start takes, most are sent while the faults fall.
    parts = sent[: count // 10], sent[count // 10 :]
    first, feeder = (Feeder(broker.settings, names["in"], part, per_second=count / 60) for part in parts)
    files = tmp_path / "lake"
    pipeline = Pipeline(tmp_path, pipeline_settings(broker.bootstrap_servers, names, model, files.as_uri()))
    expected_good = sum(record.good for record in sent)
    with reading(broker.settings, names["out"]) as out, reading(broker.settings, names["dead"]) as dead, pipeline:
        first.start()
        wait_until(lambda: out.poll() > 100, 120, lambda: f"first vectors\n{pipeline.tail()}")
        first.join(60)
        feeder.start()

        def flows_on() -> None:
            at = out.poll()
            wait_until(
                lambda: out.poll() > at + 50 or (not feeder.is_alive() and out.poll() >= expected_good),
                180,
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
        assert [each.failure for each in (first, feeder) if each.failure or each.is_alive()] == []
        wait_until(
            lambda: out.poll() >= expected_good and dead.poll() >= len(sent) - expected_good,
            180,
            lambda: f"the rest: {len(out.records)} of {expected_good}, {len(dead.records)}\n{pipeline.tail()}",
        )
        assert pipeline.terminate() == 0, pipeline.tail()
        for _ in range(10):
            out.poll()
            dead.poll()
    expected = embeddings(model, sent)
    placed = first.placed + feeder.placed
    check_outcomes(sent, placed, expected, out, dead)
    check_files(sent, placed, expected, files)


def test_every_part_killed_in_turn(
    broker: RunningBroker, make_topic: Callable[..., str], unique_name: Callable[[], str], tmp_path: Path
) -> None:
    """20,000 records, 1 % bad, 6 partitions, 2 readers, 2 encoders; encoder, reader, controller and driver are killed."""
    chaos(broker, make_topic, unique_name, tmp_path, seed=20_000, count=20_000)
