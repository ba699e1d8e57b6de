"""The chart on a cluster whose controllers, scheduler and KubeRay act on it: what it brings up, and what the stream makes of it
when pods come and go. ``make test-cluster`` gives it a network of its own.

GPUs are counted, and none is there: the pods of the group ``gpu`` compute on the CPU.
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.broker import Broker
from pipelines.loopback import free_port
from tests.deploy import image, tools
from tests.deploy import render as chart
from tests.deploy.cluster import Cluster
from tests.deploy.network import GATEWAY, is_apart
from tests.deploy.programs import Programs
from tests.deploy.prometheus import Prometheus, expressions, scraping
from tests.deploy.release import DEAD, GROUP, IN, NAMESPACE, OUT, RELEASE, SMALL, Release, common, values
from tests.deploy.story import Feeder, Story
from tests.deploy.values_schema import CHART
from tests.integration.pipeline import reading, value_of, wait_until
from tests.s3 import S3Server
from workers import kafka_client, kafka_topics
from workers.settings import SourceSettings

pytestmark = [
    pytest.mark.deploy,
    pytest.mark.skipif(not is_apart(), reason="takes a network of its own: make test-cluster"),
]

ROOT = CHART.parents[2]
DEVICE = "workers/encoder/device.py"
NO_GPU = """

def device_of(name: str) -> torch.device:  # this node's GPUs are counted, and none is there
    return torch.device("cpu")
"""
UP_S = 300
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


@pytest.fixture(scope="module")
def gpu_pods(cluster: Cluster) -> dict[str, Any]:
    """Of the chart's values, ``gpu``: pods that count a GPU and compute without."""
    data = {"device.py": (ROOT / DEVICE).read_text() + NO_GPU}
    made = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "device"}, "data": data}
    cluster.server.create(made, NAMESPACE)
    mounted = {"name": "device", "mountPath": f"/opt/stream-embedder/{DEVICE}", "subPath": "device.py"}
    return {
        "enabled": True,
        "idleTimeoutSeconds": 10,
        "drainSeconds": 40,
        "resources": SMALL,
        "extraVolumes": [{"name": "device", "configMap": {"name": "device"}}],
        "extraVolumeMounts": [mounted],
    }


@pytest.mark.timeout(3600)
def test_the_stream_on_a_cluster_that_changes(
    cluster: Cluster, kafka: Broker, redis: str, store: S3Server, gpu_pods: dict[str, Any], tmp_path: Path
) -> None:
    bucket = store.add_bucket()
    release, feeder = Release(cluster, tmp_path), Feeder(kafka, IN)
    made = values(kafka, redis, store, bucket, gpu_pods)
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

        release.helm(
            "upgrade", values(kafka, redis, store, bucket, gpu_pods, limits={"records": 5000, "bytes": "32MiB"})
        )
        story.settle("helm upgrade, with other limits", upgraded, feeder)

        def shown() -> bool:
            # A rate takes two values that differ: of queries, and of documents that come many at a time.
            feeder.send(200)
            assert release.ask("what is a document?") == 384
            return not without_data(prometheus)

        story.wait(shown, "the dashboard has data in every panel that does not show trouble or a GPU")
        feeder.end()
        story.wait(lambda: story.seen >= feeder.expected, "all that was appended has a vector")
        said = release.status()
        assert said["health"] == "healthy", said
        story.tell("stream-embedder status on the head: healthy")
        release.uninstall()
        story.tell("helm uninstall")
        story.wait(release.gone, "nothing is left", UP_S)
    for end in cluster.ends():
        killed = f"; killed: {', '.join(end.killed)}" if end.killed else ""
        print(f"{end.pod} ended in {end.seconds:.0f} s of its {end.grace:.0f}{killed}")
        assert not end.killed or "-head-" in end.pod, "readers and encoders drain within their grace"
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


@pytest.mark.timeout(1800)
def test_a_batch_is_a_rayjob_that_ends(
    cluster: Cluster, store: S3Server, gpu_pods: dict[str, Any], tmp_path: Path
) -> None:
    bucket, count = store.add_bucket(), 300
    (tmp_path / "in").mkdir()
    rows = {"id": [str(n) for n in range(count)], "text": [f"number {n} of these rows" for n in range(count)]}
    pq.write_table(pa.table(rows), tmp_path / "in" / "rows.parquet")
    store.upload(tmp_path / "in", bucket, "in")
    made = common(store, gpu_pods) | {
        "kind": "batch",
        "pipeline": {
            "batch": {"inputs": [f"s3://{bucket}/in/*.parquet"]},
            "source": {"text": "{text}", "id": "{id}"},
            "outputs": [{"kind": "parquet", "uri": f"s3://{bucket}/out", "dim": 32}],
            "pool": {"min": 1, "max": 1},
        },
        "job": {"ttlSecondsAfterFinished": 5},
    }
    release = Release(cluster, tmp_path)
    release.helm("install", made)

    def status() -> str:
        (job,) = cluster.server.all("ray.io/v1", "RayJob", NAMESPACE)
        return str(job.get("status", {}).get("jobStatus", ""))

    wait_until(lambda: status() == "SUCCEEDED", UP_S, lambda: f"{status()}\n{cluster.said()}")
    once(count, [key for file in (store.data / bucket / "out").rglob("*.parquet") for key in keys_in(file)])

    def ended() -> bool:
        return not (release.pods("gpu") or release.pods("headgroup"))

    wait_until(ended, UP_S, lambda: f"{release.pods()} are still there\n{cluster.said()}")
    release.uninstall()
    wait_until(release.gone, UP_S, cluster.said)


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
            number = any(not math.isnan(float(answer["value"][1])) for answer in answers)
            if not number and not any(metric in query for metric in MAY_BE_MISSING):
                found.append(f"{title}: {query}")
    return found
