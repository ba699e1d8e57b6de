"""``batch`` and ``plan`` over a real topic: transactions, deletions by retention, a job that is stopped and goes on."""

from __future__ import annotations

import contextlib
import io
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import psutil
import pytest
import yaml
from kafka import KafkaProducer, codec
from kafka import TopicPartition as KafkaTopicPartition

from pipelines import cluster
from pipelines.batch import command
from pipelines.batch.command import run_batch
from pipelines.batch.replica import Loaded
from pipelines.cli import main
from pipelines.topic_ranges import batch_ranges
from tests.batch_job import FakeReplica
from tests.conftest import RunningBroker
from tests.integration.pipeline import wait_until
from workers import kafka_client, kafka_groups, kafka_topics
from workers.errors import EnvironmentFault, RetryableError
from workers.kafka_client import NULL
from workers.kafka_ranges import RangeReader
from workers.records import Batch, TopicPartition
from workers.settings import KafkaSettings, Settings

pytestmark = [pytest.mark.timeout(300), pytest.mark.filterwarnings("ignore::ResourceWarning")]

ROOT = Path(__file__).parents[2]
HEADERS = [("trace", b"\x00\xff")]
type_make_topic = Callable[..., str]


class SlowReplica(FakeReplica):
    """One that is still at work when it is stopped; ``slow`` beside the output has its process id."""

    def load(self) -> Loaded:
        Path(self._settings.outputs[0].uri.removeprefix("file://")).with_name("slow").write_text(str(os.getpid()))
        return super().load()

    def _call(self, batch: Batch) -> np.ndarray:
        time.sleep(0.3)
        return super()._call(batch)


class Producer:
    """Writes documents in transactions, each of which ends with a marker that takes an offset."""

    def __init__(self, kafka: KafkaSettings, topic: str, transactional_id: str) -> None:
        self._producer = kafka_client.bare_producer(
            kafka, transactional_id=transactional_id, acks="all", retry_backoff_ms=10
        )
        self._producer.init_transactions()
        self._topic = topic

    def write(self, partition: int, names: range, *, commit: bool = True, filler: str = "") -> None:
        self._producer.begin_transaction()
        for n in names:
            value = json.dumps({"id": f"p{partition}-{n}", "text": f"{partition} text {n}{filler}", "title": f"t{n}"})
            self._producer.send(self._topic, value.encode(), key=b"k%d" % n, partition=partition)
        self._end(commit)

    def write_odd(self, partition: int, *, keyless: bool) -> None:
        """A deletion, bytes that are no JSON, and a null under no key."""
        self._producer.begin_transaction()
        self._producer.send(self._topic, NULL, key=b"k1", partition=partition)
        self._producer.send(self._topic, b"{broken", key=b"bad", partition=partition, headers=HEADERS)
        if keyless:
            self._producer.send(self._topic, NULL, key=None, partition=partition)
        self._end(commit=True)

    def _end(self, commit: bool) -> None:
        self._producer.flush(timeout=20)
        (self._producer.commit_transaction if commit else self._producer.abort_transaction)()

    def close(self) -> None:
        self._producer.close(timeout=5)


@pytest.fixture
def producer_of(broker: RunningBroker, unique_name: Callable[[], str]) -> Iterator[Callable[[str], Producer]]:
    with contextlib.ExitStack() as stack:

        def make(topic: str) -> Producer:
            made = Producer(broker.settings, topic, unique_name())
            stack.callback(made.close)
            return made

        yield make


def delete_before(kafka: KafkaSettings, topic: str, partition: int, offset: int) -> None:
    with kafka_client.admin(kafka) as client:
        client.delete_records({KafkaTopicPartition(topic, partition): offset})


def test_a_range_is_read_whole_past_markers_and_what_was_aborted_and_deleted(
    broker: RunningBroker,
    make_topic: type_make_topic,
    producer_of: Callable[[str], Producer],
    monkeypatch: pytest.MonkeyPatch,
):
    topic = make_topic(2)
    producer, zero = producer_of(topic), TopicPartition(topic, 0)
    producer.write(0, range(5))  # 0-4, and a marker
    producer.write(0, range(5, 8), commit=False)  # 6-8, and a marker
    producer.write(0, range(8, 10))  # 10 and 11, and a marker
    producer.write(1, range(3))
    with contextlib.closing(RangeReader(broker.settings, patience_s=20)) as reader:

        def offsets(start: int, stop: int, partition: TopicPartition = zero) -> list[int]:
            return [each.origin.offset for found in reader.read(partition, start, stop) for each in found]

        assert offsets(0, 13) == [0, 1, 2, 3, 4, 10, 11]
        assert offsets(5, 10) == []
        assert offsets(2, 4) == [2, 3] and offsets(4, 11) == [4, 10], "on from there, and back again"
        assert offsets(0, 4, TopicPartition(topic, 1)) == [0, 1, 2]
        assert offsets(1, 3) == [1, 2] and reader.gone == 0
        with pytest.raises(RetryableError, match=f"{topic}/0 ends at offset 13, and offset 50 is asked for"):
            offsets(50, 60)
        reader.close()
        delete_before(broker.settings, topic, 0, 3)
        assert offsets(1, 5) == [3, 4] and reader.gone == 2
        assert offsets(0, 2) == [] and reader.gone == 2
        assert offsets(3, 5) == [3, 4] and reader.gone == 0
        packed = kafka_client.connect(KafkaProducer, broker.settings, compression_type="gzip")
        packed.send(topic, b"long enough to be sent compressed" * 99, partition=1).get(10)  # 4, after a marker
        packed.close(timeout=5)
        monkeypatch.setattr(codec, "has_gzip", lambda: False)
        with pytest.raises(EnvironmentFault, match=f"{topic}/1 cannot be read from offset [34] on"):
            offsets(2, 5, TopicPartition(topic, 1))
        reader.close()
        monkeypatch.setattr(codec, "has_gzip", lambda: True)
        assert offsets(2, 5, TopicPartition(topic, 1)) == [2, 4]


def test_bounds_are_found_in_the_log(
    broker: RunningBroker, make_topic: type_make_topic, producer_of: Callable[[str], Producer]
):
    topic = make_topic(2)
    producer_of(topic).write(0, range(5))

    def ranges(**batch: str) -> list[tuple[int, int]]:
        settings = Settings(source={"topics": [topic]}, kafka=broker.settings.model_dump(), batch=batch)
        return [(each.start, each.stop) for each in batch_ranges(settings).partitions]

    assert ranges() == [(0, 6), (0, 0)]
    assert ranges(start=f"{topic}/0=2", end=f"{topic}/0=4") == [(2, 4)]
    assert ranges(end="2020-01-01") == [(0, 0), (0, 0)]
    assert ranges(start="2020-01-01", end="2100-01-01") == [(0, 6), (0, 0)]
    with pytest.raises(EnvironmentFault, match=r"has the offsets 0 to 6 now, and 9 is none of them"):
        ranges(end=f"{topic}/0=9")
    with pytest.raises(EnvironmentFault, match="which is no partition of the source's topics"):
        ranges(end=f"{topic}/7=9")


def test_a_plan_says_what_waits_and_what_would_be_written(
    broker: RunningBroker,
    make_topic: type_make_topic,
    producer_of: Callable[[str], Producer],
    unique_name: Callable[[], str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    topic, group = make_topic(2, cleanup_policy="compact,delete"), unique_name()
    producer = producer_of(topic)
    for start in range(0, 1500, 150):
        producer.write(0, range(start, start + 150), filler=" and more" * (start // 100))
        producer.write(1, range(start, start + 75))
    producer.write(1, range(500), commit=False)
    producer.write_odd(0, keyless=False)
    settings = {
        "source": {"topics": [topic], "group": group, "text": "text", "id": "id"},
        "outputs": [
            {"topic": f"{topic}.json", "dim": 64, "include": ["title"]},
            {"topic": f"{topic}.binary", "dim": 64, "format": "binary", "precision": "float16"},
            {"kind": "parquet", "uri": f"file://{tmp_path}/vectors", "dim": 64},
        ],
        "kafka": broker.settings.model_dump(mode="json", exclude_unset=True),
    }
    config = tmp_path / "pipeline.yaml"
    config.write_text(yaml.safe_dump(settings))

    def plan(*arguments: str) -> dict[str, Any]:
        assert main(["plan", "-c", str(config), "--json", *arguments]) == 0
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    said, exact = plan("--records", "400"), plan("--records", "100000")
    assert said["job"] == "run" and not said["sample"]["whole"] and exact["sample"]["whole"]
    assert exact["records"] == {"value": 10 * 225 + 2, "error": 0}
    assert (exact["embedded"]["value"], exact["tombstones"]["value"], exact["refused"]["value"]) == (2250, 1, 1)
    assert exact["sample"]["refused"] == {"decode/invalid_json": 1}
    assert exact["input"][0]["parts"] == 2 and exact["input"][0]["compacted"]
    for name in ("records", "tokens", "bytes"):
        assert 0 < said[name]["error"] < 0.4 * exact[name]["value"]
        assert abs(said[name]["value"] - exact[name]["value"]) <= 1.5 * said[name]["error"]
    whole, binary, parquet = (output["bytes_each"] for output in exact["outputs"])
    assert 64 * 9 < whole < 64 * 13 + 200 and 128 < binary < 128 + 300 and 0.85 * 256 < parquet < 256 + 60
    with kafka_client.admin(broker.settings) as client:
        topics = kafka_topics.describe_topics(client, [topic])
        kafka_groups.commit_for(client, group, kafka_topics.end_offsets(client, topics))
    read = plan("--records", "400", "--tokens-per-s", "100")
    assert not read["waiting"] and read["records"]["value"] == 0 and read["sample"]["records"] >= 400
    assert read["encoders"]["hours"]["value"] == 0 and read["tokens_of_a_text"]["mean"] > 0


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    with cluster.connected(Settings()):
        yield


@pytest.mark.usefixtures("ray")
def test_a_job_over_a_topic_is_stopped_and_goes_on_with_the_same_offsets(
    broker: RunningBroker,
    make_topic: type_make_topic,
    producer_of: Callable[[str], Producer],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setattr(command.cluster, "connected", lambda _: contextlib.nullcontext())  # both runs on one Ray
    topic = make_topic(2)
    producer = producer_of(topic)
    producer.write(0, range(30))  # 0-29, and a marker
    producer.write(0, range(30, 40), commit=False)  # 31-40, and a marker
    producer.write(0, range(40, 70))  # 42-71, and a marker
    producer.write(1, range(40))  # 0-39, and a marker
    producer.write_odd(1, keyless=True)  # 41-43, and a marker
    chosen = {
        "source": {"topics": [topic], "text": "text", "id": "id"},
        "batch": {"rows": 10},
        "outputs": [{"kind": "parquet", "uri": f"file://{tmp_path}/vectors", "include": ["title"]}],
        "pool": {"cpus_per_replica": 0.1, "gpus_per_replica": 0},
        "kafka": broker.settings.model_dump(mode="json", exclude_unset=True),
    }
    settings, stop = Settings.model_validate(chosen), threading.Event()

    def parts() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in (tmp_path / "vectors").rglob("*.parquet")}

    def stop_at_three() -> None:
        with contextlib.suppress(AssertionError):
            wait_until(lambda: len(parts()) >= 3, 60, lambda: "three parts")
        stop.set()

    watcher = threading.Thread(target=stop_at_three)
    watcher.start()
    out = io.StringIO()
    assert run_batch(settings, stop, out, as_json=True, replica_class=SlowReplica) == 130
    watcher.join()
    # One that is killed may have a part under way still.
    slow = int((tmp_path / "slow").read_text())
    wait_until(lambda: not psutil.pid_exists(slow), 60, lambda: "the end of the replica")
    before, first = parts(), json.loads(out.getvalue())
    assert not first["complete"] and 3 <= len(before) < 13 and first["partitions"] == 2

    delete_before(broker.settings, topic, 1, 25)
    producer.write(0, range(100, 120))
    producer.write(1, range(100, 120))
    out = io.StringIO()
    assert run_batch(settings, threading.Event(), out, as_json=True, replica_class=FakeReplica) == 0
    said = json.loads(out.getvalue())
    assert said["complete"] and said["found"]["parts"] == len(before) and said["parts"] == len(parts()) == 13
    assert before.items() <= parts().items(), "a part that was there was written again"

    rows = pl.read_parquet(f"{tmp_path}/vectors/**/*.parquet").sort("partition", "offset").to_dicts()
    found = {n: [row["offset"] for row in rows if row["partition"] == n] for n in (0, 1)}
    assert found[0] == [*range(30), *range(42, 72)]
    # What was deleted before it was read is missing, and counted; what had been read before is there.
    early = [offset for offset in found[1] if offset < 25]
    assert found[1] == [*early, *range(25, 40), 41] and said["offsets_gone"] == 25 - len(early)
    assert len(rows) == said["rows"] + said["deletions"] and said["deletions"] == 1
    assert (
        said["reasons"].keys() <= {"decode/invalid_json", "decode/tombstone_without_key"} and said["dead_letters"] == 2
    )
    (gone,) = [row for row in rows if row["deleted"]]
    assert (gone["key"], gone["embedding"], gone["offset"]) == (b"k1", None, 41)
    dead = pl.read_parquet(f"{tmp_path}/vectors-dead-letters/**/*.parquet").sort("offset").to_dicts()
    assert [(row["topic"], row["partition"], row["offset"], row["value"]) for row in dead] == [
        (topic, 1, 42, b"{broken"),
        (topic, 1, 43, None),
    ]
    assert dead[0]["headers"] == [{"name": b"trace", "value": b"\x00\xff"}] and dead[0]["key"] == b"bad"

    (tmp_path / "job.yaml").write_text(yaml.safe_dump(chosen))
    assert main(["batch", "-c", str(tmp_path / "job.yaml"), "--json"]) == 0  # done: no Ray is started
    again = json.loads(capsys.readouterr().out)
    assert again["made"]["parts"] == 0 and (again["rows"], again["offsets_gone"]) == (
        said["rows"],
        said["offsets_gone"],
    )
    assert main(["batch", "-c", str(tmp_path / "job.yaml"), "--batch.end", f"{topic}/0=5"]) == 1
    assert "read with batch.end latest, and it is" in capsys.readouterr().err

    # A stream of the same settings goes on where the job ends, whatever has come since.
    reset = ["offsets", "reset", "-c", str(tmp_path / "job.yaml"), "--to", "batch", "--source.group", topic]
    assert main(reset) == 0
    with kafka_client.admin(broker.settings) as client:
        assert kafka_topics.committed_offsets(client, topic) == {(topic, 0): 73, (topic, 1): 45}
    assert main([*reset, "--outputs.0.dim", "128"]) == 1
    assert "holds nothing of a batch of these settings over topic" in capsys.readouterr().err
