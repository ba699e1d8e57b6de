"""``run`` on secured brokers, from end to end: each record once, and what opens the broker is nowhere to be read."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.cli import main
from pipelines.loopback import free_port, listens
from tests.integration.pipeline import MARK, Pipeline, Reader, leaks, reading, value_of, wait_until
from tests.secure_broker import REAUTH_MS, SecureBroker
from tests.tiny_model import make_tiny_bert
from workers import kafka_client, kafka_topics
from workers.settings import KafkaSettings

pytestmark = pytest.mark.timeout(300)

RAY = Path(sys.executable).parent / "ray"
ENV = "STREAM_EMBEDDER_KAFKA__"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_bert(tmp_path_factory.mktemp("model"))


def settings(kafka: dict[str, Any], model: Path, stem: str) -> dict[str, Any]:
    return {
        "model": {"name": str(model)},
        "source": {"topics": [f"{stem}-in"], "group": stem},
        "outputs": [{"topic": f"{stem}-out"}],
        "dead_letter": {"topic": f"{stem}-dead"},
        "kafka": {name: str(value) for name, value in kafka.items()},
        "readers": {"cpus": 0.25},
        "pool": {"cpus_per_replica": 0.5, "gpus_per_replica": 0},
        "delivery": {"commit_interval_s": 0.3},
    }


def make_topics(kafka: KafkaSettings, stem: str) -> None:
    kafka_topics.create_topics(kafka, {f"{stem}-in": 2, f"{stem}-out": 2})
    kafka_topics.create_topics(kafka, {f"{stem}-dead": 1}, **{"max.message.bytes": "2000000"})


def produce(kafka: KafkaSettings, topic: str, first: int, count: int) -> None:
    producer = kafka_client.bare_producer(kafka, linger_ms=5)
    for number in range(first, first + count):
        producer.send(topic, key=b"k%d" % number, value=json.dumps({"text": "token stream"}).encode())
    producer.flush(timeout=30)
    producer.close(timeout=5)


def require_each_once(out: Reader, count: int) -> None:
    for _ in range(5):
        out.poll()
    assert sorted(value_of(record)["id"] for record in out.records) == sorted(f"k{n}" for n in range(count))


def command_lines() -> bytes:
    """The arguments of every process that this user may look at."""
    found = b""
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                found += (entry / "cmdline").read_bytes()
            except OSError:
                continue
    return found


@pytest.fixture
def cluster(tmp_path: Path, ray_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, str]]:
    """A Ray cluster with its dashboard: the addresses of both."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S", "1")  # nothing runs there any more when it ends
    port, dashboard = free_port(), free_port()
    head = [
        str(RAY), "start", "--head", "--block", f"--port={port}", "--num-cpus=2", "--include-dashboard=true",
        f"--dashboard-port={dashboard}", "--min-worker-port=0", "--max-worker-port=0",
    ]  # fmt: skip
    log = tmp_path / "ray.log"
    with log.open("ab") as out:
        process = subprocess.Popen(
            head, env=os.environ | {MARK: "cluster"}, stdout=out, stderr=out, start_new_session=True
        )
        try:
            wait_until(lambda: listens(dashboard) and listens(port), 90, log.read_text)
            yield f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}"
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


def shown_by_ray(dashboard: str) -> dict[str, bytes]:
    """What the dashboard's API says of applications, actors, tasks, workers, nodes and jobs."""
    found = {}
    for path in (
        "/api/serve/applications/", "/api/v0/actors?detail=1", "/api/v0/tasks?detail=1", "/api/v0/workers?detail=1",
        "/api/v0/runtime_envs?detail=1", "/api/v0/objects?detail=1", "/nodes?view=details", "/logical/actors", "/api/jobs/",
    ):  # fmt: skip
        try:
            with urllib.request.urlopen(dashboard + path, timeout=30) as answer:
                found[path] = answer.read()
        except (
            urllib.error.HTTPError
        ) as error:  # what an installation does not serve; the answer is looked at all the same
            with error:
                found[path] = error.read()
    return found


def test_scram_over_tls_on_a_cluster(
    secured: SecureBroker,
    model: Path,
    tmp_path: Path,
    ray_folder: Path,
    cluster: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Through several sessions of three seconds; the password is in no log, answer, argument or file of Ray's."""
    address, dashboard = cluster
    make_topics(secured.plain, "scram")
    monkeypatch.setenv(f"{ENV}SASL_PASSWORD", secured.password)
    pipeline = Pipeline(tmp_path, settings(secured.sasl(), model, "scram") | {"ray": {"address": address}})
    with reading(secured.plain, "scram-out") as out, pipeline:
        produce(secured.plain, "scram-in", 0, 50)
        wait_until(lambda: out.poll() >= 50, 120, pipeline.tail)
        for wave in range(1, 5):
            produce(secured.plain, "scram-in", 50 * wave, 50)
            time.sleep(REAUTH_MS / 1000)
        wait_until(lambda: out.poll() >= 250, 60, pipeline.tail)
        shown = shown_by_ray(dashboard)
        arguments = command_lines()
        assert pipeline.terminate(60) == 0, pipeline.tail()
        require_each_once(out, 250)
    log = pipeline.log.read_text()
    assert not re.search(r"(WARNING|ERROR) stream_embedder|Traceback", log), log
    canary = secured.password.encode()
    assert b"stream-embedder" in shown["/api/serve/applications/"]
    assert b"Reader" in shown["/api/v0/actors?detail=1"], "the API shows what it is asked for"
    assert not [path for path, body in shown.items() if canary in body]
    assert str(pipeline.config).encode() in arguments
    assert canary not in arguments
    assert secured.password not in log
    assert any(path.suffix == ".log" for path in ray_folder.rglob("*")), "Ray's logs are where they are looked for"
    assert leaks([canary], ray_folder) == []
    assert main(["config", "-c", str(pipeline.config)]) == 0
    said = capsys.readouterr()
    assert "**********" in said.out
    assert secured.password not in said.out + said.err


def test_mutual_tls_from_the_environment(
    secured: SecureBroker, model: Path, tmp_path: Path, ray_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The key is a variable, and never a file."""
    make_topics(secured.plain, "mtls")
    monkeypatch.setenv(f"{ENV}SSL_CERT_PEM", secured.client.cert)
    monkeypatch.setenv(f"{ENV}SSL_KEY_PEM", secured.client.key)
    canaries = [line.encode() for line in secured.client.key.splitlines()[1:-1]]
    pipeline = Pipeline(tmp_path, settings(secured.tls(), model, "mtls"))
    with reading(secured.plain, "mtls-out") as out, pipeline:
        produce(secured.plain, "mtls-in", 0, 100)
        wait_until(lambda: out.poll() >= 100, 120, pipeline.tail)
        arguments = command_lines()
        assert pipeline.terminate(60) == 0, pipeline.tail()
        require_each_once(out, 100)
    assert "Traceback" not in pipeline.log.read_text()
    assert not any(canary in arguments for canary in canaries)
    assert leaks(canaries, ray_folder) == []
    assert leaks(canaries, tmp_path) == []


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of the caller's own environment reaches a run."""
    for name in os.environ:
        if name.startswith(ENV):
            monkeypatch.delenv(name)
