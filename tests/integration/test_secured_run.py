"""``run`` on secured brokers, from end to end: each record once, and what opens the broker is nowhere to be read."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
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
from tests.integration.pipeline import MARK, Pipeline, Reader, leaks, ray_parts, reading, value_of, wait_until
from tests.secure_broker import APP, REAUTH_MS, TOKEN_LIFE_S, SecureBroker
from tests.tiny_model import make_tiny_bert
from tests.token_endpoint import TokenEndpoint, unsigned_token
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
        "kafka": {name: value if isinstance(value, dict) else str(value) for name, value in kafka.items()},
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
        except urllib.error.HTTPError as error:  # an error page is looked at all the same
            with error:
                found[path] = error.read()
    return found


@contextlib.contextmanager
def way_in(
    mechanism: str, secured: SecureBroker, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[dict[str, Any], list[str]]]:
    """Settings for a way in by SASL, whose secret is in the environment; and what must be nowhere to be read."""
    if mechanism != "OAUTHBEARER":
        monkeypatch.setenv(f"{ENV}SASL_PASSWORD", secured.password)
        yield secured.sasl(mechanism), [secured.password]
        return
    secret = f"canary-{secrets.token_hex(12)}"
    monkeypatch.setenv(f"{ENV}OAUTH__CLIENT_SECRET", secret)
    with TokenEndpoint(folder, secured.authority, client=APP, secret=secret, life_s=TOKEN_LIFE_S) as endpoint:
        oauth = {"token_url": endpoint.url, "client_id": APP, "cafile": str(secured.cafile)}
        # Every token begins in the same way.
        yield secured.sasl(mechanism, oauth=oauth), [secret, unsigned_token(APP, 1).partition(".")[0]]


@pytest.mark.parametrize("mechanism", ["SCRAM-SHA-512", pytest.param("OAUTHBEARER", marks=pytest.mark.soak)])
def test_sasl_over_tls_on_a_cluster(
    secured: SecureBroker,
    model: Path,
    tmp_path: Path,
    ray_folder: Path,
    cluster: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    mechanism: str,
) -> None:
    """Through several sessions; what opens broker and queries is in no log, answer, argument or file."""
    address, dashboard = cluster
    stem = mechanism.lower()
    make_topics(secured.plain, stem)
    api_key = f"canary-{secrets.token_hex(12)}"
    monkeypatch.setenv("STREAM_EMBEDDER_QUERIES__API_KEY", api_key)
    more = {
        "ray": {"address": address},
        "queries": {"enabled": True, "port": free_port()},
    }
    with way_in(mechanism, secured, tmp_path, monkeypatch) as (kafka, opens):
        canaries = [*opens, api_key]
        pipeline = Pipeline(tmp_path, settings(kafka, model, stem) | more)
        with reading(secured.plain, f"{stem}-out") as out, pipeline:
            produce(secured.plain, f"{stem}-in", 0, 50)
            wait_until(lambda: out.poll() >= 50, 120, pipeline.tail)
            asked = urllib.request.Request(
                f"http://127.0.0.1:{more['queries']['port']}/v1/models",
                headers={"Authorization": f"Bearer {api_key}"},
            )
            with urllib.request.urlopen(asked, timeout=30) as answer:
                assert b"dimensions" in answer.read(), "the key is the one that is in force"
            for wave in range(1, 3):
                produce(secured.plain, f"{stem}-in", 50 * wave, 50)
                time.sleep(REAUTH_MS / 1000)
            wait_until(lambda: out.poll() >= 150, 60, pipeline.tail)
            shown = shown_by_ray(dashboard)
            arguments = command_lines()
            assert pipeline.terminate() == 0, pipeline.tail()
            require_each_once(out, 150)
        log = pipeline.log.read_text()
        assert not re.search(r"(WARNING|ERROR) stream_embedder|Traceback", log), log
        for what in (b"Reader", b"Encoder", b"Queries"):
            assert what in shown["/api/v0/actors?detail=1"], "the API shows what it is asked for"
        assert b"stream-embedder" in shown["/api/serve/applications/"]
        assert str(pipeline.config).encode() in arguments
        assert ray_parts(ray_folder, "ServeReplica:stream-embedder:Reader"), "Ray's logs are where they are looked for"
        assert main(["config", "-c", str(pipeline.config)]) == 0
        said = capsys.readouterr()
        assert said.out.count("'**********'") == 2
        places = {**shown, "arguments": arguments, "log": log.encode(), "config": (said.out + said.err).encode()}
        assert [place for place, text in places.items() for canary in canaries if canary.encode() in text] == []
        assert leaks([canary.encode() for canary in canaries], ray_folder) == []


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
        assert pipeline.terminate() == 0, pipeline.tail()
        require_each_once(out, 100)
    assert "Traceback" not in pipeline.log.read_text()
    assert not any(canary in arguments for canary in canaries)
    assert leaks(canaries, ray_folder) == []
    assert leaks(canaries, tmp_path) == []


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of the caller's own environment reaches a run."""
    for name in os.environ:
        if name.startswith("STREAM_EMBEDDER_"):
            monkeypatch.delenv(name)
