"""The chart, installed on the test's cluster: its values, and what the cluster says of it."""

from __future__ import annotations

import json
import subprocess
import urllib.request
from pathlib import Path
from typing import Any

from pipelines.broker import Broker
from tests.deploy import render as chart
from tests.deploy.cluster import Cluster
from tests.deploy.values_schema import CHART
from tests.s3 import S3Server

NAMESPACE, RELEASE, GROUP = "embedding", "books", "books-embedder"
IN, OUT, DEAD = "books", "books.vectors", "books.dead"
SMALL = {"requests": {"cpu": "1", "memory": "2Gi"}, "limits": {"memory": "8Gi"}}


def common(store: S3Server, gpu_pods: dict[str, Any]) -> dict[str, Any]:
    """The chart's values, for a cluster this small and a store that all may use."""
    keys = {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "key"}
    environ = {name: store.environ[name] for name in ("AWS_ENDPOINT_URL", "AWS_REGION")}
    return {
        "image": {"repository": "stream-embedder", "tag": "test"},
        "secretEnv": [{"name": name, "secret": "s3", "key": key, "encoders": True} for name, key in keys.items()],
        "extraEnv": [{"name": name, "value": value} for name, value in environ.items()],
        "head": {"resources": SMALL},
        "gpu": gpu_pods,
    }


def values(
    kafka: Broker, redis: str, store: S3Server, bucket: str, gpu_pods: dict[str, Any], **pipeline: Any
) -> dict[str, Any]:
    """A stream with two outputs, queries, and all that keeps it up."""
    return common(store, gpu_pods) | {
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
        "readers": {"resources": SMALL},
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
        self._helm(action, RELEASE, str(CHART), "-f", str(self._values))

    def uninstall(self) -> None:
        self._helm("uninstall", RELEASE)

    def _helm(self, *words: str) -> None:
        chart.helm(*words, "--namespace", NAMESPACE, "--kubeconfig", str(self._cluster.kubeconfig))

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

    def status(self) -> dict[str, Any]:
        """``kubectl exec`` on the head: what ``stream-embedder status`` says there."""
        (head,) = self._cluster.remaining_pods(NAMESPACE, "headgroup")
        command = [
            "stream-embedder",
            "status",
            "-c",
            "/etc/stream-embedder/pipeline.yaml",
            "--ray.address",
            "auto",
            "--json",
        ]
        pod = self._cluster.running(head["metadata"]["name"])
        done: subprocess.CompletedProcess[str] = pod.run("ray-head", command, 90)
        assert done.stdout, done.stderr
        said: dict[str, Any] = json.loads(done.stdout)
        return said
