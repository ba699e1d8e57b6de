"""A model that cannot be loaded while the stream runs: waited for, said aloud, and nothing is lost, refused or read twice."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import RunningBroker
from tests.integration.pipeline import Pipeline, reading, value_of, wait_until
from tests.tiny_model import make_tiny_bert
from workers import kafka_client

pytestmark = pytest.mark.timeout(400)


def test_the_stream_waits_for_a_model_that_is_gone(
    broker: RunningBroker, make_topic: Callable[..., str], unique_name: Callable[[], str], tmp_path: Path
) -> None:
    names = {"in": make_topic(2), "out": make_topic(2), "dead": make_topic(1), "group": unique_name()}
    model, aside = make_tiny_bert(tmp_path / "model"), tmp_path / "aside"
    pipeline = Pipeline(
        tmp_path,
        {
            "model": {"name": str(model)},
            "source": {"topics": [names["in"]], "group": names["group"], "id": "id"},
            "outputs": [{"topic": names["out"], "dim": 16}],
            "dead_letter": {"topic": names["dead"]},
            "kafka": {"bootstrap_servers": broker.bootstrap_servers},
            "readers": {"cpus": 0.25},
            "pool": {"cpus_per_replica": 0.5, "gpus_per_replica": 0},
            "limits": {"records": 100},
            "delivery": {"commit_interval_s": 0.2},
        },
    )

    def feed(count: int) -> None:
        producer = kafka_client.bare_producer(broker.settings)
        for number in range(count):
            text = json.dumps({"id": str(fed + number), "text": f"text {number} of a stream"}).encode()
            producer.send(names["in"], key=b"%d" % (number % 7), value=text)
        producer.flush(timeout=30)
        producer.close()

    def said(words: str) -> bool:
        return words in pipeline.tail(500)

    with reading(broker.settings, names["out"]) as out, reading(broker.settings, names["dead"]) as dead, pipeline:
        fed = 0
        feed(200)
        fed = 200
        wait_until(lambda: out.poll() >= 200, 120, pipeline.tail)
        (reader,) = pipeline.wait_for("ServeReplica:stream-embedder:Reader")
        model.rename(aside)
        pipeline.kill("ServeReplica:stream-embedder:Encoder")
        feed(300)
        wait_until(lambda: said("model not loaded") and said("no encoder runs"), 90, pipeline.tail)
        assert said(f"model {model}: there is no such folder"), pipeline.tail()
        wait_until(lambda: pipeline.scrape().get("encoders_unavailable_seconds", 0) > 5, 60, pipeline.tail)
        wait_until(lambda: pipeline.scrape().get("model_loads_failed_total", 0) >= 2, 60, pipeline.tail)
        wait_until(lambda: pipeline.scrape().get("encoders_running") == 0, 30, pipeline.tail)
        wait_until(lambda: said("no_encoder_s="), 30, pipeline.tail)  # the driver, too, goes on and says so
        # Reading has paused at the limit, and the reader is in its group with all that it had.
        wait_until(lambda: pipeline.scrape().get("partitions_paused") == 2, 30, pipeline.tail)
        wait_until(lambda: pipeline.scrape().get("in_flight_records") == 100, 30, pipeline.tail)
        assert out.poll() == 200
        aside.rename(model)
        wait_until(lambda: out.poll() >= 500, 120, pipeline.tail)
        wait_until(lambda: said("encoders are back"), 30, pipeline.tail)
        wait_until(lambda: pipeline.scrape().get("encoders_unavailable_seconds") == 0, 30, pipeline.tail)
        assert pipeline.wait_for("ServeReplica:stream-embedder:Reader") == [reader]
        assert not said("kind=lost") and pipeline.tail(500).count(" assigned partition=") == 2, "no rebalance"
        assert pipeline.terminate() == 0, pipeline.tail()
        for _ in range(5):
            out.poll()
            dead.poll()
    assert Counter(value_of(record)["id"] for record in out.records) == Counter(map(str, range(500)))
    assert dead.records == []
