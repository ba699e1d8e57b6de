"""Two Ray nodes started as the chart's pods start them, and its application deployed as KubeRay deploys it: through the
dashboard, with Ray's token, over TLS with the certificates that the chart makes. It runs, is ready, logs, says how it is, and
drains."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from pipelines.cluster import marked
from pipelines.loopback import free_port
from tests.conftest import RunningBroker
from tests.deploy import render as chart
from tests.deploy.render import EXAMPLES, Rendered, env, seconds
from tests.deploy.test_names import series
from tests.deploy.values_schema import CHART
from tests.integration.pipeline import reading, wait_until
from workers import kafka_client, kafka_topics
from workers.settings import SourceSettings

pytestmark = [pytest.mark.deploy, pytest.mark.usefixtures("helm")]

RAY = Path(sys.executable).parent / "ray"
ROOT = CHART.parents[2]
MARK = "NODE_UNDER_TEST"


def node_ip() -> str:
    """The address that Ray gives this machine, and that its certificates have to carry."""
    from ray.util import get_node_ip_address

    return str(get_node_ip_address())


class Node:
    """A Ray node with the environment of one of the chart's pods."""

    def __init__(self, folder: Path, part: str, pod: dict[str, Any], shared: dict[str, str], *arguments: str) -> None:
        self.metrics, self.agent = free_port(), free_port()
        self.log = folder / f"{part}.log"
        certificates = folder / part
        certificates.mkdir()
        own = {name: value for name, value in env(pod["spec"]["containers"][0]).items() if isinstance(value, str)}
        own = {name: value.replace("/etc/ray/tls", str(certificates)) for name, value in own.items()}
        own |= {"HOME": str(folder), "XDG_CACHE_HOME": str(folder / "cache")}  # a pod's /tmp and /cache
        self.environ = os.environ | shared | own
        made = ["bash", CHART / "files" / "certificate.sh", folder / "ca", certificates, "2", part]
        ip = node_ip()
        subprocess.run(made, env={"PATH": os.environ["PATH"], "POD_IP": ip}, check=True, capture_output=True)
        command = [RAY, "start", "--block", f"--metrics-export-port={self.metrics}", "--object-store-memory=100000000"]
        command += [f"--dashboard-agent-listen-port={self.agent}", "--min-worker-port=0", "--max-worker-port=0"]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, f"--node-ip-address={ip}", *arguments],
                env=self.environ,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def tail(self) -> str:
        return self.log.read_text(errors="replace")[-3000:]


@pytest.fixture
def folder() -> Iterator[Path]:
    """Short, for Ray's sockets."""
    made = Path(tempfile.mkdtemp(prefix="node-", dir="/tmp"))
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture
def shared(folder: Path) -> Iterator[dict[str, str]]:
    """The environment that the nodes share. What carries its mark is killed in the end."""
    (folder / "ca").mkdir()
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=test"]
    made += ["-keyout", str(folder / "ca" / "ca.key"), "-out", str(folder / "ca" / "ca.crt")]
    subprocess.run(made, check=True, capture_output=True)
    mark = uuid.uuid4().hex
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16)}
    yield token | {MARK: mark, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "RAY_CLUSTER_NAME": "books-1"}
    while left := marked(MARK, mark):
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=5)


@pytest.fixture
def start(folder: Path, shared: dict[str, str]) -> Iterator[Callable[..., Node]]:
    """``start(part, pod, …)`` → a node that runs until the test ends."""
    started: list[Node] = []

    def node(part: str, pod: dict[str, Any], *arguments: str) -> Node:
        started.append(Node(folder, part, pod, shared, *arguments))
        return started[-1]

    yield node
    for each in started:
        each.process.kill()
        each.process.wait(30)


def pipeline(
    broker: RunningBroker, make_topic: Callable[..., str], unique_name: Callable[[], str]
) -> tuple[Rendered, dict[str, str]]:
    """The chart for topics on a real broker, with a short drain; and their names."""
    names = {"in": make_topic(2), "out": make_topic(2), "dead": make_topic(max_message_bytes=2_000_000)}
    names["group"] = unique_name()
    settings = {
        "source": {"topics": [names["in"]], "group": names["group"], "text": "{text}"},
        "outputs": [{"topic": names["out"], "dim": 64}],
        "dead_letter": {"topic": names["dead"]},
        "delivery": {"drain_timeout_s": 3},
        "kafka": {"bootstrap_servers": broker.bootstrap_servers},
    }
    return chart.render(EXAMPLES["small"], pipeline=settings, tls={"enabled": True, "caSecret": "ca"}), names


def test_the_chart_on_two_real_nodes(
    broker: RunningBroker,
    make_topic: Callable[..., str],
    unique_name: Callable[[], str],
    folder: Path,
    shared: dict[str, str],
    start: Callable[..., Node],
) -> None:
    rendered, names = pipeline(broker, make_topic, unique_name)
    (folder / "pipeline.yaml").write_text(rendered.pipeline)
    gcs, dashboard, proxy = free_port(), free_port(), free_port()
    ip = node_ip()

    def ask(port: int, path: str, body: Any = None) -> Any:
        headers = {"Authorization": f"Bearer {shared['RAY_AUTH_TOKEN']}", "Content-Type": "application/json"}
        if port != dashboard:
            headers = {}  # what probes and Prometheus ask, they ask without a token
        data = None if body is None else json.dumps(body).encode()
        method = "GET" if body is None else "PUT"
        request = urllib.request.Request(f"http://{ip}:{port}{path}", data=data, headers=headers, method=method)
        with urllib.request.urlopen(request, timeout=30) as answer:
            text = answer.read().decode()
        return json.loads(text) if text.startswith("{") else text

    def answers(port: int, path: str) -> bool:
        with contextlib.suppress(OSError):
            return "success" in str(ask(port, path))
        return False

    head = start(
        "head", rendered.pods["head"], "--head", f"--port={gcs}", "--num-cpus=0",
        f"--dashboard-port={dashboard}", "--dashboard-host=0.0.0.0", f"--ray-client-server-port={free_port()}",
        f"--temp-dir={folder / 'r'}",
    )  # fmt: skip
    wait_until(lambda: answers(head.agent, "/api/healthz"), 90, head.tail)
    node = start("workers", rendered.pods["workers"], f"--address={ip}:{gcs}", "--num-cpus=2")
    wait_until(lambda: answers(node.agent, "/api/healthz"), 90, node.tail)

    probe = [
        word.replace("127.0.0.1/8080", f"127.0.0.1/{node.metrics}")
        for word in rendered.pods["workers"]["spec"]["containers"][0]["readinessProbe"]["exec"]["command"]
    ]

    def ready() -> bool:
        return subprocess.run(probe, capture_output=True, timeout=10, check=False).returncode == 0

    assert not ready()  # no part of the pipeline lives there yet

    deployed = yaml.safe_load(rendered.service["serveConfigV2"])
    deployed["applications"][0]["args"]["config"] = str(folder / "pipeline.yaml")
    deployed["http_options"] = {"host": "0.0.0.0", "port": proxy}
    ask(dashboard, "/api/serve/applications/", deployed)

    def status() -> str:
        return str(ask(dashboard, "/api/serve/applications/")["applications"].get("stream-embedder", {}).get("status"))

    wait_until(lambda: status() == "RUNNING", 150, lambda: status() + node.tail() + head.tail())
    # KubeRay switches to a cluster whose applications run and whose head's proxy says that it is ready.
    wait_until(lambda: answers(proxy, "/-/healthz"), 30, head.tail)
    wait_until(ready, 60, node.tail)

    producer = kafka_client.bare_producer(broker.settings, linger_ms=5)
    for number in range(200):
        producer.send(names["in"], key=b"%d" % number, value=json.dumps({"text": f"text {number}"}).encode())
    producer.flush(timeout=60)
    producer.close(timeout=5)
    with reading(broker.settings, names["out"]) as out:
        wait_until(lambda: out.poll() >= 200, 90, node.tail)
    # kubectl exec on the head; KubeRay says there where Ray is.
    command = [
        sys.executable,
        "-m",
        "pipelines",
        "status",
        "-c",
        folder / "pipeline.yaml",
        "--ray.address",
        "auto",
        "--json",
    ]
    environ = head.environ | {"RAY_ADDRESS": f"{ip}:{gcs}"}
    said = subprocess.run(command, env=environ, cwd=folder, capture_output=True, text=True, timeout=90, check=False)
    assert said.returncode == 0, said.stdout + said.stderr
    made = json.loads(said.stdout)
    assert made["replicas"]["encoders"] == {"wanted": 1, "ready": 1, "starting": 0}, made
    assert made["last_commit_age_seconds"] is not None

    # Readers and encoders log where kubectl logs looks.
    assert "encoder ready" in node.log.read_text(errors="replace")
    # Prometheus finds our metrics under the names that alerts and dashboard have.
    wait_until(lambda: "ray_stream_embedder_commits_total" in ask(node.metrics, "/metrics"), 30, node.tail)
    shown = set(re.findall(r"^ray_stream_embedder_\w+", ask(node.metrics, "/metrics"), re.MULTILINE))
    assert all(metric is not None for name in shown for _, metric in series(name)), shown
    assert {f"ray_stream_embedder_{name}" for name in ("commit_seconds_bucket", "backlog_records")} <= shown

    # The pod is deleted: its reader commits and leaves the group at once, and the node goes within its grace.
    drain, grace = seconds(rendered.pods["workers"])
    node.process.send_signal(signal.SIGTERM)
    node.process.wait(grace)
    with kafka_client.admin(broker.settings) as client:
        assert client.describe_groups([names["group"]])[names["group"]]["members"] == []
        source = SourceSettings(topics=(names["in"],), group=names["group"])
        assert kafka_topics.lag(client, source) == 0
    assert drain < grace
