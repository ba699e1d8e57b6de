"""``status`` beside a real pipeline, as a user runs it: never started, running, standing still, and on a broker that is dead."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.cli import main
from tests.conftest import RunningBroker
from tests.integration.pipeline import Pipeline, reading, wait_until
from tests.tiny_model import make_tiny_bert
from workers import kafka_client

pytestmark = pytest.mark.timeout(300)

ENCODER = "ServeReplica:stream-embedder:Encoder"


def produce(broker: RunningBroker, topic: str, ids: range) -> None:
    """In a transaction, whose mark at each partition's end is an offset and no record."""
    producer = kafka_client.bare_producer(broker.settings, transactional_id=f"{topic}-{ids}")
    producer.init_transactions()
    producer.begin_transaction()
    for n in ids:
        producer.send(topic, key=b"%d" % n, value=json.dumps({"text": f"text {n}"}).encode())
    producer.commit_transaction()
    producer.close(timeout=5)


@contextlib.contextmanager
def watching(config: Path, *words: str) -> Iterator[Callable[[Callable[[dict[str, Any]], bool]], dict[str, Any]]]:
    """``status --watch --json``; gives a way to read its lines until one is as a test wants it."""
    command = [sys.executable, "-m", "pipelines", "status", "-c", str(config), "--watch", "--json", *words]
    environ = os.environ | {
        "RAY_AUTH_MODE": "token"
    }  # Ray sends its token to an address that is given only if it is told to
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ, start_new_session=True) as running:
        assert running.stdout is not None
        lines = map(json.loads, running.stdout)
        try:
            yield lambda wanted: next(made for made in lines if wanted(made))
        finally:
            running.terminate()
            assert running.wait(30) == -signal.SIGTERM


def test_status_of_a_pipeline_through_its_life(
    broker: RunningBroker,
    make_topic: Callable[..., str],
    unique_name: Callable[[], str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = {"in": make_topic(2), "out": make_topic(2), "dead": make_topic(1), "group": unique_name()}
    settings = {
        "model": {"name": str(make_tiny_bert(tmp_path / "model"))},
        "source": {"topics": [names["in"]], "group": names["group"], "text": "{text}"},
        "outputs": [{"topic": names["out"]}],
        "dead_letter": {"topic": names["dead"]},
        "kafka": {"bootstrap_servers": broker.bootstrap_servers},
        "readers": {"cpus": 0.25},
        "pool": {"min": 0, "max": 1, "cpus_per_replica": 0.1, "gpus_per_replica": 0},
        "delivery": {"commit_interval_s": 0.1},
    }
    pipeline = Pipeline(tmp_path, settings, "pipelines.stand_in pipelines.stub:StubEncoder")

    def status(*words: str) -> tuple[int, str]:
        code = main(["status", "-c", str(pipeline.config), *words])
        return code, capsys.readouterr().out

    produce(broker, names["in"], range(30))
    code, text = status("--wait", "0.1")
    assert code == 1 and text.startswith("stalled\n  nobody is in group"), text
    assert "32 records wait" in text and "none was ever committed: start the pipeline" in " ".join(text.split())
    assert re.search(rf"kafka:{names['out']} +[0-9a-f]{{16}} +none\n", text), "its output is empty"
    with reading(broker.settings, names["out"]) as out, pipeline:
        code, text = status("--json", "--timeout", "0.5", "--kafka.bootstrap_servers", "127.0.0.1:9")
        assert (code, json.loads(text)["health"]) == (1, "unreachable")
        wait_until(lambda: out.poll() >= 30, 120, pipeline.tail)

        gcs = re.search(r"--gcs-address=(\S+)", " ".join(pipeline.parts("raylet").values()))
        assert gcs is not None
        with watching(pipeline.config, "--ray.address", gcs[1], "--wait", "1") as until:
            well = until(lambda made: made["replicas"] is not None and made["replicas"]["scaling"] is not None)
            assert (well["health"], well["lag"], well["group"]["state"]) == ("healthy", 0, "Stable")
            assert [place["lag_seconds"] for place in well["partitions"]] == [0.0, 0.0]
            assert sum(place["committed"] for place in well["partitions"]) == 30
            assert sum(place["end"] for place in well["partitions"]) == 32, "the transaction's marks"
            (member,) = well["group"]["members"]
            assert {place["member"] for place in well["partitions"]} == {member["client"]}
            assert all(place["last_commit_age_seconds"] is not None for place in well["partitions"])
            assert well["replicas"]["readers"] == {"wanted": 1, "ready": 1, "starting": 0}
            assert well["replicas"]["encoders"]["wanted"] == well["replicas"]["scaling"]["target"] >= 1
            assert well["replicas"]["scaling"]["reason"]
            marks = until(lambda made: made["fingerprints"] is not None)["fingerprints"]
            assert [mark["latest"] for mark in marks] == [[marks[0]["settings"]]]

            encoders = pipeline.wait_for(ENCODER)
            for encoder in encoders:
                os.kill(encoder, signal.SIGSTOP)
            produce(broker, names["in"], range(30, 50))
            stalled = until(lambda made: made["health"] == "stalled")
            assert stalled["lag"] == 24 and stalled["lag_seconds"] > 0
            assert "of 24 records that wait" in stalled["wrong"][0]
            for encoder in encoders:
                os.kill(encoder, signal.SIGCONT)
            assert until(lambda made: made["lag"] == 0)["health"] == "healthy"
        code, text = status("--no-fingerprints")
        assert code == 0 and "note: without ray.address nothing is known of replicas" in text
        assert text.startswith("healthy")
