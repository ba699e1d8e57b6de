"""``run`` as an operator meets it: started, stopped, joined to a cluster, and left alone when its driver dies."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml

from pipelines.loopback import free_port, listens
from tests.collector import collector
from tests.conftest import RunningBroker
from tests.integration import traces
from tests.integration.pipeline import MARK, Pipeline, reading, value_of, wait_until
from tests.tiny_model import make_tiny_bert
from workers import kafka_client, kafka_topics
from workers.settings import KafkaSettings

pytestmark = pytest.mark.timeout(400)

RAY = Path(sys.executable).parent / "ray"
SERVE = Path(sys.executable).parent / "serve"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_bert(tmp_path_factory.mktemp("model"))


def produce(kafka: KafkaSettings, topic: str, records: list[tuple[bytes | None, bytes | None]]) -> None:
    producer = kafka_client.bare_producer(kafka, linger_ms=5)
    for key, value in records:
        producer.send(topic, key=key, value=kafka_client.NULL if value is None else value)
    producer.flush(timeout=60)
    producer.close(timeout=5)


def members(kafka: KafkaSettings, group: str) -> int:
    with kafka_client.admin(kafka) as client:
        return len(client.describe_groups([group])[group]["members"])


def committed(kafka: KafkaSettings, group: str) -> int:
    with kafka_client.admin(kafka) as client:
        return sum(kafka_topics.committed_offsets(client, group).values())


def base(broker: RunningBroker, names: dict[str, str], model: Path) -> dict[str, Any]:
    return {
        "model": {"name": str(model)},
        "source": {"topics": [names["in"]], "group": names["group"]},
        "outputs": [{"topic": names["out"]}],
        "dead_letter": {"topic": names["dead"]},
        "kafka": {"bootstrap_servers": broker.bootstrap_servers},
        "readers": {"cpus": 0.25},
        "pool": {"cpus_per_replica": 0.5, "gpus_per_replica": 0},
        "delivery": {"commit_interval_s": 0.3},
    }


@pytest.fixture
def names(make_topic: Callable[..., str], unique_name: Callable[[], str]) -> dict[str, str]:
    return {"in": make_topic(4), "out": make_topic(4), "dead": make_topic(1), "group": unique_name()}


def test_sigterm_under_load(broker: RunningBroker, names: dict[str, str], model: Path, tmp_path: Path) -> None:
    """Exit 0 within ten seconds, what was finished is committed and nothing else, and the group is left at once."""
    words = " ".join(["stream"] * 60)
    values = (json.dumps({"text": f"{n} {words}"}).encode() for n in range(60_000))  # equal ones would be encoded once
    produce(broker.settings, names["in"], [(b"k%d" % (n % 97), value) for n, value in enumerate(values)])
    pipeline = Pipeline(tmp_path, base(broker, names, model))
    with reading(broker.settings, names["out"]) as out, pipeline:
        wait_until(lambda: out.poll() > 500, 120, pipeline.tail)
        began = time.monotonic()
        code = pipeline.terminate()
        took = time.monotonic() - began
        assert members(broker.settings, names["group"]) == 0
        assert code == 0, pipeline.tail()
        assert took < 10, f"{took:.1f} s\n{pipeline.tail()}"
        assert "records are not committed: they are read again at the next start" in pipeline.tail()
        assert not pipeline.parts()
        done = committed(broker.settings, names["group"])
        wait_until(lambda: out.poll() >= done, 30, lambda: f"{len(out.records)} of {done}")
        for _ in range(5):
            out.poll()
        assert len(out.records) == done < 60_000


def test_a_terminal_that_closes_drains_and_every_record_can_be_followed(
    broker: RunningBroker, names: dict[str, str], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGHUP goes to every process of the session, and the terminal takes no more output. A collector has the traces."""
    traces.produce(broker.settings, names["in"], 100, 4)
    lake = {"kind": "parquet", "uri": (tmp_path / "lake").as_uri()}
    settings = base(broker, names, model) | {"telemetry": {"traces": True}}
    settings["outputs"] = [{"topic": names["out"], "format": "binary"}, lake]
    pipeline = Pipeline(tmp_path, settings)
    screen, terminal = os.openpty()
    in_terminal = (
        "import os, signal, sys; signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"  # ignored where tests run under nohup
        "os.login_tty(0); os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    )
    with collector() as (found, endpoint), reading(broker.settings, names["out"]) as out:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "200")
        pipeline.process = subprocess.Popen(
            [sys.executable, "-c", in_terminal, "-m", *pipeline.module.split(), "-c", str(pipeline.config)],
            env=os.environ | {MARK: pipeline.mark},
            stdin=terminal,
        )
        os.close(terminal)
        seen = bytearray()

        def watched() -> bool:
            while select.select([screen], [], [], 0)[0]:
                seen.extend(os.read(screen, 65_536))
            return out.poll() >= 100 and traces.encoded(found) >= 100

        try:
            wait_until(watched, 120, lambda: seen[-2000:].decode(errors="replace"))
            os.close(screen)
            assert pipeline.process.wait(60) == 0
            assert members(broker.settings, names["group"]) == 0, "who does not drain does not leave"
            assert committed(broker.settings, names["group"]) == 100
            wait_until(lambda: not pipeline.parts(), 20, lambda: str(pipeline.parts()))
            traces.assert_followed(found, names["in"], 100, 4, out.records)
        finally:
            pipeline.kill_everything()


def blocks_sigterm(status: str) -> bool:
    """Whether a thread, of which this is /proc's status, blocks SIGTERM."""
    mask = next(line.split()[1] for line in status.splitlines() if line.startswith("SigBlk:"))
    return bool(int(mask, 16) >> (signal.SIGTERM - 1) & 1)


@pytest.mark.parametrize("after_s", [0.5, pytest.param(4.0, marks=pytest.mark.soak)])
def test_sigterm_while_ray_starts(
    broker: RunningBroker, names: dict[str, str], model: Path, tmp_path: Path, after_s: float
) -> None:
    """Ray has handlers of its own while it starts, which would end the process: no thread may run them."""
    pipeline = Pipeline(tmp_path, base(broker, names, model))
    with pipeline:
        wait_until(lambda: "starting Ray" in pipeline.tail(), 60, pipeline.tail)
        time.sleep(after_s)
        open_to_it = [status for status in pipeline.driver_threads() if not blocks_sigterm(status)]
        assert len(open_to_it) <= 1, "none but the one that waits for it, in which no handler runs either"
        assert pipeline.terminate() == 0, pipeline.tail()
        assert "Traceback" not in pipeline.tail(200)
        wait_until(lambda: not pipeline.parts(), 10, lambda: str(pipeline.parts()))


def test_every_choice_that_is_not_the_default(
    broker: RunningBroker,
    names: dict[str, str],
    make_topic: Callable[..., str],
    model: Path,
    tmp_path: Path,
) -> None:
    """At least once, static members, plain text, vectors of fewer dimensions and bits, tombstones, limits."""
    small, ranged = make_topic(4), make_topic(4)
    low, high = np.full(16, -1, np.float32), np.full(16, 1, np.float32)
    np.save(tmp_path / "ranges.npy", np.stack((low, high)))
    # A relative path, as a shell has it: replicas start where the command does.
    ours = {"dim": 16, "precision": "int8_ranges", "ranges": os.path.relpath(tmp_path / "ranges.npy")}
    settings = base(broker, names, model) | {
        "source": {"pattern": names["in"], "group": names["group"], "format": "text", "static_membership": True},
        "outputs": [
            {"topic": names["out"], "format": "binary", "dim": 16, "precision": "float16"},
            {"topic": small, "format": "binary", "precision": "int8"},
            {"topic": ranged, "format": "json", **ours},
        ],
        "delivery": {"guarantee": "at_least_once", "on_dead_letter": "tombstone", "cluster": "blue"},
        "model": {"name": str(model), "overflow": "reject", "max_tokens": 32},
        "limits": {"records": 50, "bytes": "64KiB"},
    }
    records: list[tuple[bytes | None, bytes | None]] = [(b"k%d" % n, b"token " * (n % 5 + 1)) for n in range(400)]
    records += [(b"gone", None), (None, None), (b"long", b"token " * 100), (b"blank", b"  "), (b"bytes", b"\xff\xff")]
    produce(broker.settings, names["in"], records)
    pipeline = Pipeline(tmp_path, settings)
    with contextlib.ExitStack() as opened:
        out, others, coded, dead = (
            opened.enter_context(reading(broker.settings, topic))
            for topic in (names["out"], small, ranged, names["dead"])
        )
        opened.enter_context(pipeline)
        # 400 vectors, one tombstone passed through, and one for each dead letter with a key.
        wait_until(lambda: out.poll() >= 404 and dead.poll() >= 4, 120, pipeline.tail)
        wait_until(lambda: others.poll() >= 404 and coded.poll() >= 404, 30, pipeline.tail)
        assert pipeline.terminate() == 0, pipeline.tail()
    assert members(broker.settings, names["group"]) == 0, "a drain removes a static member"
    by_key = {record.key: record for record in out.records}
    assert {key for key, record in by_key.items() if record.value is None} == {b"gone", b"long", b"blank", b"bytes"}
    vectors = [np.frombuffer(by_key[b"k%d" % n].value, "<f2") for n in range(400)]
    assert all(len(vector) == 16 and abs(np.linalg.norm(vector.astype(float)) - 1) < 1e-2 for vector in vectors)
    assert dict(by_key[b"k7"].headers)["embedding-dim"] == b"16"
    in_full = {record.key: scaled(record) for record in others.records if record.value is not None}
    in_codes = {record.key: value_of(record) for record in coded.records if record.value is not None}
    for n, vector in enumerate(vectors):
        cut = in_full[b"k%d" % n][:16]
        assert np.abs(cut / np.linalg.norm(cut) - vector).max() < 0.02, "the int8 vector is the same vector"
        found = in_codes[b"k%d" % n]
        assert (found["dim"], found["precision"]) == (16, "int8_ranges")
        decoded = low + (np.array(found["embedding"]) + 128.5) * (high - low) / 255
        assert np.abs(decoded - vector).max() < 0.005
    classes = sorted(dict(record.headers)["embedding-error-class"].decode() for record in dead.records)
    assert classes == ["empty", "invalid_utf8", "tombstone_without_key", "too_long"]
    assert committed(broker.settings, names["group"]) == len(records)


def scaled(record: Any) -> np.ndarray:
    """A binary int8 record's vector."""
    headers = dict(record.headers)
    assert headers["embedding-precision"] == b"int8"
    return np.frombuffer(record.value, "i1") * np.float32(headers["embedding-scale"].decode())


@pytest.fixture
def ray_cluster(tmp_path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """A Ray cluster that somebody else runs: its address, and the environment to reach it in."""
    port = free_port()
    environment = os.environ | {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", MARK: "cluster"}
    environment["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"] = "1"  # nothing runs there any more when it ends
    head = [
        str(RAY), "start", "--head", "--block", f"--port={port}", "--include-dashboard=false", "--num-cpus=2",
        "--min-worker-port=0", "--max-worker-port=0",
    ]  # fmt: skip
    with (tmp_path / "ray.log").open("ab") as log:
        process = subprocess.Popen(head, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            wait_until(lambda: listens(port), 60, (tmp_path / "ray.log").read_text)
            yield f"127.0.0.1:{port}", environment
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


def test_a_cluster_goes_on_without_its_driver(
    broker: RunningBroker,
    names: dict[str, str],
    model: Path,
    tmp_path: Path,
    ray_cluster: tuple[str, dict[str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Deployed by ``serve run`` from the importable application; its driver is killed; ``run`` takes over and drains it.

    Meanwhile ``batch`` embeds the same topic on the same cluster: its vectors are those of ``run``.
    """
    address, environment = ray_cluster
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    chosen = base(broker, names, model) | {
        "model": {"name": str(model), "dtype": "float32"},
        "ray": {"address": address},
    }
    pipeline = Pipeline(tmp_path, chosen)
    words = [(b"k%d" % n, json.dumps({"text": f"token {n} stream " * (n % 9 + 1)}).encode()) for n in range(100)]
    produce(broker.settings, names["in"], words)
    command = [
        str(SERVE), "run", "pipelines.stream:app", f"config={pipeline.config}", "--name=stream-embedder",
        "--route-prefix=/", f"--address={address}",
    ]  # fmt: skip
    (tmp_path / "batch.yaml").write_text(
        yaml.safe_dump(chosen | {"outputs": [{"kind": "parquet", "uri": f"file://{tmp_path}/batch"}]})
    )
    batch = [sys.executable, "-m", "pipelines", "batch", "-c", str(tmp_path / "batch.yaml")]
    with reading(broker.settings, names["out"]) as out, (tmp_path / "serve.log").open("ab") as log:
        driver = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=tmp_path)
        try:
            wait_until(lambda: out.poll() >= 100, 120, lambda: (tmp_path / "serve.log").read_text()[-3000:])
        finally:
            driver.kill()
            driver.wait(10)
        produce(broker.settings, names["in"], words)
        wait_until(lambda: out.poll() >= 200, 60, lambda: (tmp_path / "serve.log").read_text()[-3000:])
        with pipeline, subprocess.Popen(batch, stdout=log, stderr=log) as job:
            try:
                wait_until(lambda: "running" in pipeline.tail(), 120, pipeline.tail)
                produce(broker.settings, names["in"], words)
                wait_until(lambda: out.poll() >= 300, 60, pipeline.tail)
                assert pipeline.terminate() == 0, pipeline.tail()
                assert job.wait(120) == 0, (tmp_path / "serve.log").read_text()[-3000:]
            finally:
                job.kill()
        assert members(broker.settings, names["group"]) == 0
        assert len({value_of(record)["id"] for record in out.records}) == 100
        for _ in range(5):
            out.poll()
        assert len(out.records) == 300
    streamed = {record.key: value_of(record) for record in out.records}
    rows = pl.read_parquet(tmp_path / "batch/**/*.parquet").to_dicts()
    assert len(rows) >= 200 and {row["key"] for row in rows} == set(streamed)
    assert {row["fingerprint"] for row in rows} == {value["fingerprint"] for value in streamed.values()}
    of_batch = np.array([row["embedding"] for row in rows])
    of_run = np.array([streamed[row["key"]]["embedding"] for row in rows])
    assert np.abs(of_batch - of_run).max() <= 5e-6
    assert len(np.unique(of_run.round(3), axis=0)) == 100, "texts whose vectors are told apart"


def test_a_temporary_folder_too_long_for_rays_sockets_is_one_sentence(
    broker: RunningBroker, names: dict[str, str], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / ("long" * 25)))
    with Pipeline(tmp_path, base(broker, names, model)) as pipeline:
        assert pipeline.process is not None
        assert pipeline.process.wait(90) == 1
        assert "set RAY_TMPDIR to a short, writable folder" in pipeline.tail()
        assert "Traceback" not in pipeline.tail()
