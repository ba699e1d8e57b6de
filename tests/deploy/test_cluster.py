"""The chart on a cluster whose controllers, scheduler and KubeRay act on it: what it brings up, and what the stream makes of it
when pods come and go. ``make test-cluster`` gives it a network of its own.

GPUs are counted, and none is there: the pods of the group ``gpu`` compute on the CPU.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipelines.broker import Broker
from pipelines.loopback import free_port
from tests.deploy import image, tools
from tests.deploy import render as chart
from tests.deploy.api_server import NotTaken
from tests.deploy.cluster import Cluster
from tests.deploy.network import GATEWAY, is_apart
from tests.deploy.programs import Programs
from tests.deploy.prometheus import Prometheus, expressions, scraping, targets_of
from tests.deploy.values_schema import CHART
from tests.integration.pipeline import Reader, reading, value_of, wait_until
from tests.s3 import S3Server
from workers import kafka_client, kafka_topics
from workers.settings import SourceSettings

pytestmark = [
    pytest.mark.deploy,
    pytest.mark.skipif(not is_apart(), reason="takes a network of its own: make test-cluster"),
]

NAMESPACE, RELEASE, GROUP = "embedding", "books", "books-embedder"
IN, OUT, DEAD = "books", "books.vectors", "books.dead"
ROOT = CHART.parents[2]
DEVICE = "workers/encoder/device.py"
NO_GPU = """

def device_of(name: str) -> torch.device:  # this node's GPUs are counted, and none is there
    return torch.device("cpu")
"""
UP_S, CHANGE_S = 300, 240
# One in so many is no document.
BROKEN = 50
# Metrics of what need not happen in a run without trouble, or cannot without a GPU: who asks for one is answered, with nothing.
MAY_BE_MISSING = (
    "node_gpus_utilization",
    "node_gram_used",
    "calls_retried_total",
    "commits_failed_total",
    "outcomes_dropped_total",
    "model_loads_failed_total",
    "file_puts_failed_total",
    "files_lost_total",
)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with (
        image.mounted(image.build()) as built,
        Cluster(tmp_path_factory.mktemp("cluster"), built) as running,
    ):
        running.server.add_namespace(NAMESPACE)
        yield running


@pytest.fixture(scope="module")
def kafka(cluster: Cluster) -> Iterator[Broker]:
    """A broker that pods reach too."""
    with Broker(listeners={"PODS": "PLAINTEXT"}, host=GATEWAY) as broker:
        kafka_topics.create_topics(broker.settings, {IN: 4, OUT: 4, DEAD: 1})
        yield broker


@pytest.fixture(scope="module")
def redis(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where the head keeps its state."""
    programs, port = Programs(tmp_path_factory.mktemp("redis")), free_port()
    program, libraries = tools.redis()
    programs.start(
        program, "--bind", GATEWAY, "--port", str(port), "--requirepass", "opensesame", "--save", "", "--protected-mode",
        "no", environ={"LD_LIBRARY_PATH": str(libraries)},
    )  # fmt: skip
    secret = {"metadata": {"name": "redis"}, "stringData": {"password": "opensesame"}}
    cluster.server.create({"apiVersion": "v1", "kind": "Secret", **secret}, NAMESPACE)
    yield f"redis://{GATEWAY}:{port}"
    programs.end()


@pytest.fixture(scope="module")
def store(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """An S3 server that pods reach, and its keys in a Secret."""
    with S3Server(tmp_path_factory.mktemp("s3"), GATEWAY) as server:
        secret = {"metadata": {"name": "s3"}, "stringData": {"id": server.access_key, "key": server.secret_key}}
        cluster.server.create({"apiVersion": "v1", "kind": "Secret", **secret}, NAMESPACE)
        yield server


class Feeder:
    """Appends documents, numbered, so many a second; some are none."""

    def __init__(self, broker: Broker) -> None:
        self._producer = kafka_client.bare_producer(broker.settings, linger_ms=5)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.count = self.broken = 0

    @property
    def expected(self) -> int:
        """How many have a vector in the end."""
        return self.count - self.broken

    def send(self, count: int) -> None:
        """So many at once."""
        for number in range(self.count, self.count + count):
            text = json.dumps({"text": f"number {number} of the documents that are in this topic"}).encode()
            broken = number % BROKEN == BROKEN - 1
            self._producer.send(IN, key=b"%d" % number, value=b"{" if broken else text)
            self.broken += broken
            self.count += 1
        self._producer.flush(timeout=60)

    def begin(self, a_second: int) -> None:
        """Go on until :meth:`end`."""

        def run() -> None:
            while not self._stop.wait(0.1):
                self.send(max(1, a_second // 10))

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()

    def end(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(60)
        self._producer.close(timeout=5)


class Story:
    """What happened when, and what of the stream was seen meanwhile."""

    def __init__(self, cluster: Cluster, out: Reader, targets: Path) -> None:
        """``targets``: where Prometheus finds the pods."""
        self._cluster = cluster
        self._out = out
        self._targets = targets
        self._began = time.monotonic()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._gap = 0.0
        self._last = time.monotonic()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    @property
    def seen(self) -> int:
        """How many vectors there are."""
        return len(self._out.records)

    def tell(self, what: str) -> None:
        """A line of it."""
        print(f"{time.monotonic() - self._began:6.1f} s  {what}", flush=True)

    def wait(self, condition: Callable[[], bool], what: str, seconds: float = CHANGE_S) -> None:
        """Until something is so."""
        wait_until(condition, seconds, lambda: f"{what}; {self.seen} vectors\n{self._cluster.said()}")
        self.tell(what)

    def silence(self) -> float:
        """The longest time without a new vector since this was asked last, in seconds."""
        with self._lock:
            gap, self._gap = max(self._gap, time.monotonic() - self._last), 0.0
        return gap

    def catch_up(self, feeder: Feeder) -> None:
        """Until all that has been appended by now is read."""
        mark = feeder.expected
        wait_until(lambda: self.seen >= mark, CHANGE_S, lambda: f"{self.seen} of {mark}\n{self._cluster.said()}")

    def settle(self, what: str, settled: Callable[[], bool], feeder: Feeder) -> None:
        """Something has been done to the cluster; until it has settled, and all is read that came meanwhile."""
        self.silence()
        self.tell(what)
        wait_until(settled, CHANGE_S, lambda: f"{what}: not settled\n{self._cluster.said()}")
        self.tell("… and the cluster has settled")
        self.catch_up(feeder)
        self.tell(f"… and the stream has: {self.silence():.0f} s without a vector at most")

    def close(self) -> None:
        self._stop.set()
        self._thread.join(30)

    def _watch(self) -> None:
        while not self._stop.is_set():
            before = self.seen
            if self._out.poll() > before:
                with self._lock:
                    now = time.monotonic()
                    self._gap, self._last = max(self._gap, now - self._last), now
            with contextlib.suppress(NotTaken, OSError):
                written = json.dumps(targets_of(self._cluster.remaining_pods(NAMESPACE)))
                self._targets.with_suffix(".new").write_text(written)
                self._targets.with_suffix(".new").replace(self._targets)


def values(kafka: Broker, redis: str, store: S3Server, bucket: str, **pipeline: Any) -> dict[str, Any]:
    """The chart's, for a cluster this small."""
    small = {"requests": {"cpu": "1", "memory": "2Gi"}, "limits": {"memory": "8Gi"}}
    device = {"name": "device", "configMap": {"name": "device"}}
    mounted = {"name": "device", "mountPath": f"/opt/stream-embedder/{DEVICE}", "subPath": "device.py"}
    keys = {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "key"}
    environ = {name: store.environ[name] for name in ("AWS_ENDPOINT_URL", "AWS_REGION")}
    return {
        "image": {"repository": "stream-embedder", "tag": "test"},
        "pipeline": {
            "source": {"topics": [IN], "group": GROUP, "text": "{text}"},
            "outputs": [
                {"topic": OUT, "dim": 64},
                {"kind": "parquet", "uri": f"s3://{bucket}/books", "dim": 32, "rotate": {"seconds": 10}},
            ],
            "dead_letter": {"topic": DEAD},
            "kafka": {"bootstrap_servers": kafka.address("PODS")},
            "pool": {"min": 0, "max": 1},
            "scaling": {"idle_s": 15, "start_s": 60},
            "delivery": {"drain_timeout_s": 5},
            "queries": {"enabled": True},
            **pipeline,
        },
        "secretEnv": [{"name": name, "secret": "s3", "key": key} for name, key in keys.items()],
        "extraEnv": [{"name": name, "value": value} for name, value in environ.items()],
        "head": {"resources": small},
        "readers": {"resources": small},
        "gpu": {
            "enabled": True,
            "idleTimeoutSeconds": 10,
            "drainSeconds": 40,
            "resources": small,
            "extraVolumes": [device],
            "extraVolumeMounts": [mounted],
        },
        "rayClusterDeletionDelaySeconds": 5,
        "gcsFaultTolerance": {
            "enabled": True,
            "redisAddress": redis,
            "passwordSecret": {"name": "redis", "key": "password"},
        },
        "monitoring": {"podMonitor": {"enabled": True, "interval": "5s"}},
    }


class Release:
    """The chart, installed, and what the cluster says of it."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self._cluster = cluster
        self._values = folder / "values.yaml"

    def helm(self, action: str, made: dict[str, Any]) -> None:
        """Install or upgrade it with these values."""
        self._values.write_text(json.dumps(made))
        self._cluster.helm(action, RELEASE, str(CHART), "--namespace", NAMESPACE, "-f", str(self._values))

    def uninstall(self) -> None:
        self._cluster.helm("uninstall", RELEASE, "--namespace", NAMESPACE)

    @property
    def _status(self) -> dict[str, Any]:
        (found,) = self._cluster.server.all("ray.io/v1", "RayService", NAMESPACE)
        return dict(found.get("status") or {})

    def healthy(self) -> bool:
        """Whether KubeRay says so."""
        return any(said["type"] == "Ready" and said["status"] == "True" for said in self._status.get("conditions", ()))

    def active_ray_cluster(self) -> str:
        """The name of the Ray cluster that is the active one."""
        return str(self._status.get("activeServiceStatus", {}).get("rayClusterName", ""))

    def pods(self, group: str | None = None) -> list[str]:
        """Pods of a group, or all, without those that are on their way out."""
        return [pod["metadata"]["name"] for pod in self._cluster.remaining_pods(NAMESPACE, group)]

    def ready(self, group: str, count: int = 1) -> bool:
        """Whether so many pods of a group are there, or more, each ready."""
        found = self._cluster.remaining_pods(NAMESPACE, group)
        said = [said for pod in found for said in pod["status"].get("conditions", ()) if said["type"] == "Ready"]
        return count <= len(found) == len(said) and all(one["status"] == "True" for one in said)

    def there(self, name: str = "") -> bool:
        """Whether pods are that have a name, or one that begins so, be they on their way out."""
        return any(one["metadata"]["name"].startswith(name) for one in self._cluster.server.all("v1", "Pod", NAMESPACE))

    def gone(self) -> bool:
        """Whether nothing of it is left, and KubeRay has cleaned up behind it, in Redis too."""
        return not self.there() and not self._cluster.server.all("ray.io/v1", "RayCluster", NAMESPACE)

    def delete(self, pod: str) -> None:
        """As ``kubectl delete pod``."""
        self._cluster.server.delete("v1", "Pod", NAMESPACE, pod)

    def ask(self, text: str) -> int:
        """A query for a vector, to the head's port; the vector's length."""
        (head,) = self._cluster.remaining_pods(NAMESPACE, "headgroup")
        body = json.dumps({"model": "all-MiniLM-L6-v2", "input": text}).encode()
        url = f"http://{head['status']['podIP']}:8000/v1/embeddings"
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            return len(json.loads(answer.read())["data"][0]["embedding"])


@pytest.mark.timeout(3600)
def test_the_stream_on_a_cluster_that_changes(
    cluster: Cluster, kafka: Broker, redis: str, store: S3Server, tmp_path: Path
) -> None:
    device = {"metadata": {"name": "device"}, "data": {"device.py": (ROOT / DEVICE).read_text() + NO_GPU}}
    cluster.server.create({"apiVersion": "v1", "kind": "ConfigMap", **device}, NAMESPACE)
    bucket = store.add_bucket()
    release, feeder = Release(cluster, tmp_path), Feeder(kafka)
    made = values(kafka, redis, store, bucket)
    (monitor,) = chart.render(release=RELEASE, **made).of("PodMonitor")
    config = scraping(monitor, NAMESPACE, tmp_path / "targets.json")
    with (
        reading(kafka.settings, OUT) as out,
        Prometheus(tmp_path, config) as prometheus,
        contextlib.closing(Story(cluster, out, tmp_path / "targets.json")) as story,
    ):
        release.helm("install", made)
        story.tell("helm install")
        story.wait(release.healthy, "the RayService is healthy", UP_S)
        story.wait(lambda: release.ready("readers", 2), "a reader's pod is ready, and one that answers queries")
        assert not release.pods("gpu"), "nobody has anything to compute"

        feeder.send(1000)
        story.tell("1000 documents arrive")
        story.wait(lambda: len(release.pods("gpu")) == 1, "a GPU pod comes")
        story.wait(lambda: story.seen == feeder.expected, "all have their vectors", UP_S)
        story.wait(lambda: release.pods("gpu") == [], "nothing is left to do, and the GPU pod goes")

        feeder.begin(20)
        story.tell("20 documents a second from here on")
        story.wait(lambda: release.ready("gpu"), "a GPU pod comes", UP_S)
        story.catch_up(feeder)
        for group in ("readers", "gpu", "headgroup"):
            victims = release.pods(group)
            assert victims, group
            for victim in victims:
                count = len(release.pods(group))

                def replaced(victim: str = victim, group: str = group, count: int = count) -> bool:
                    return release.ready(group, count) and not release.there(victim) and release.healthy()

                release.delete(victim)
                story.settle(f"kubectl delete pod {victim}", replaced, feeder)
        first = release.active_ray_cluster()

        def upgraded() -> bool:
            return release.active_ray_cluster() not in (first, "") and release.healthy() and not release.there(first)

        release.helm("upgrade", values(kafka, redis, store, bucket, limits={"records": 5000, "bytes": "32MiB"}))
        story.settle("helm upgrade, with other limits", upgraded, feeder)
        assert release.ask("what is a document?") == 384
        wait_until(lambda: not without_data(prometheus), CHANGE_S, lambda: f"no data in {without_data(prometheus)}")
        story.tell("the dashboard has data in every panel that does not show trouble or a GPU")
        feeder.end()
        story.wait(lambda: story.seen >= feeder.expected, "all that was appended has a vector")
        said = said_by_status(cluster)
        assert said["health"] == "healthy", said
        story.tell("stream-embedder status on the head: healthy")
        release.uninstall()
        story.tell("helm uninstall")
        story.wait(release.gone, "nothing is left", UP_S)
    for end in cluster.ends():
        print(f"{end.pod} ended in {end.seconds:.0f} s of its {end.grace:.0f}" + (", killed" if end.killed else ""))
    once(feeder.expected, [record.key.decode() for record in out.records])
    once(feeder.expected, [key for file in (store.data / bucket).rglob("*.parquet") for key in keys_in(file)])
    assert all(len(value_of(record)["embedding"]) == 64 for record in out.records[:10])
    with reading(kafka.settings, DEAD) as dead:
        wait_until(lambda: dead.poll() >= feeder.broken, 30, lambda: f"{len(dead.records)} of {feeder.broken}")
        assert dead.poll() == feeder.broken
        once(feeder.broken, [record.key.decode() for record in dead.records])
    with kafka_client.admin(kafka.settings) as client:
        assert kafka_topics.lag(client, SourceSettings(topics=(IN,), group=GROUP)) == 0
        assert client.describe_groups([GROUP])[GROUP]["members"] == []


def once(count: int, keys: list[str]) -> None:
    """So many keys, none of them twice."""
    found = Counter(keys)
    twice = [key for key, times in found.items() if times > 1]
    assert len(found) == count and not twice, f"{len(found)} of {count}, and twice: {twice[:10]}"


def keys_in(file: Path) -> list[str]:
    return [str(key) for key in pq.read_table(file, columns=["id"], partitioning=None)["id"].to_pylist()]


def without_data(prometheus: Prometheus) -> list[str]:
    """Queries of the dashboard that have never had a number as an answer since the beginning."""
    found = []
    for title, queries in expressions(NAMESPACE, RELEASE).items():
        for query in queries:
            answers = prometheus.ask(f"max_over_time(({query})[1h:15s])")
            number = any(float(answer["value"][1]) == float(answer["value"][1]) for answer in answers)
            if not number and not any(metric in query for metric in MAY_BE_MISSING):
                found.append(f"{title}: {query}")
    return found


def said_by_status(cluster: Cluster) -> dict[str, Any]:
    """``kubectl exec`` on the head."""
    (head,) = cluster.remaining_pods(NAMESPACE, "headgroup")
    command = [
        "stream-embedder",
        "status",
        "-c",
        "/etc/stream-embedder/pipeline.yaml",
        "--ray.address",
        "auto",
        "--json",
    ]
    done: subprocess.CompletedProcess[str] = cluster.running(head["metadata"]["name"]).run("ray-head", command, 90)
    assert done.stdout, done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    return said
