"""A real Prometheus, and what the dashboard asks of it."""

from __future__ import annotations

import contextlib
import json
import time
import urllib.parse
import urllib.request
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from pipelines.loopback import free_port
from tests.deploy import tools
from tests.deploy.programs import Programs
from tests.deploy.values_schema import CHART

DASHBOARD = CHART / "files" / "dashboard.json"


def expressions(namespace: str, pipeline: str, interval: str = "5m") -> dict[str, list[str]]:
    """By panel of the dashboard: its queries, with its variables filled in."""
    values = {"$namespace": namespace, "$pipeline": pipeline, "$__rate_interval": interval}
    found: dict[str, list[str]] = {}
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for expression in (target["expr"] for target in panel.get("targets", ())):
            for name, value in values.items():
                expression = expression.replace(name, value)  # noqa: PLW2901
            found.setdefault(panel["title"], []).append(expression)
    return found


class Prometheus:
    """One over ``folder/data``, scraping what ``config`` says."""

    def __init__(self, folder: Path, config: Mapping[str, Any] | None = None) -> None:
        self._folder = folder
        self._config = dict(config or {})
        self._programs = Programs(folder)
        self._port = free_port()

    def __enter__(self) -> Prometheus:
        file = self._folder / "prometheus.yml"
        file.write_text(yaml.safe_dump(self._config))
        where = f"--web.listen-address=127.0.0.1:{self._port}"
        self._programs.start(
            tools.prometheus(), f"--config.file={file}", f"--storage.tsdb.path={self._folder / 'data'}", where
        )
        deadline = time.monotonic() + 60
        while not self._answers():
            if self._programs.one_has_ended or time.monotonic() > deadline:
                said = self._programs.said()
                self._programs.end()
                raise RuntimeError(f"Prometheus did not start: {said}")
            time.sleep(0.1)
        return self

    def __exit__(self, *_: object) -> None:
        self._programs.end()

    def ask(self, expression: str, at: float | None = None) -> list[Any]:
        """A query's result, now or at a time in seconds; urllib.error.HTTPError where Prometheus does not take it."""
        asked = {"query": expression} if at is None else {"query": expression, "time": str(at)}
        url = f"http://127.0.0.1:{self._port}/api/v1/query?{urllib.parse.urlencode(asked)}"
        with urllib.request.urlopen(url, timeout=30) as answer:
            return list(json.loads(answer.read())["data"]["result"])

    def _answers(self) -> bool:
        with (
            contextlib.suppress(OSError),
            urllib.request.urlopen(f"http://127.0.0.1:{self._port}/-/ready", timeout=5) as answer,
        ):
            return bool(answer.status == 200)
        return False


def scraping(monitor: Mapping[str, Any], namespace: str, targets: Path) -> dict[str, Any]:
    """The configuration that the Prometheus operator makes of a PodMonitor: which pods, and under which labels.

    Debian's Prometheus cannot ask Kubernetes: it finds the pods in a file, as :func:`targets_of` has them.
    """
    spec = monitor["spec"]
    jobs = []
    for number, endpoint in enumerate(spec["podMetricsEndpoints"]):
        chosen = [
            {"source_labels": [_meta("label", name)], "regex": value, "action": "keep"}
            for name, value in spec["selector"]["matchLabels"].items()
        ]
        port = {"source_labels": [_meta("container", "port_name")], "regex": endpoint["port"], "action": "keep"}
        named = [
            {"source_labels": [f"__meta_kubernetes_{source}"], "target_label": label}
            for source, label in (("namespace", "namespace"), ("pod_name", "pod"), ("pod_container_name", "container"))
        ]
        jobs.append(
            {
                "job_name": f"podMonitor/{namespace}/{monitor['metadata']['name']}/{number}",
                "scrape_interval": endpoint["interval"],
                "scrape_timeout": endpoint["interval"],
                "file_sd_configs": [{"files": [str(targets)], "refresh_interval": "5s"}],
                "relabel_configs": [*chosen, port, *named, *map(_snake, endpoint["relabelings"])],
                "metric_relabel_configs": [*map(_snake, endpoint["metricRelabelings"])],
            }
        )
    return {"scrape_configs": jobs}


def targets_of(pods: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each port of each pod, with the labels that Prometheus gives it where it asks Kubernetes."""
    found = []
    for pod in pods:
        metadata, address = pod["metadata"], pod.get("status", {}).get("podIP")
        labels = {_meta("label", name): value for name, value in metadata.get("labels", {}).items()}
        labels |= {"__meta_kubernetes_namespace": metadata["namespace"], _meta("name"): metadata["name"]}
        for container in pod["spec"]["containers"] if address else ():
            for port in container.get("ports", ()):
                named = {_meta("container", "name"): container["name"], _meta("container", "port_name"): port["name"]}
                found.append({"targets": [f"{address}:{port['containerPort']}"], "labels": {**labels, **named}})
    return found


def _meta(*names: str) -> str:
    """A label of service discovery's."""
    return "__meta_kubernetes_pod_" + "_".join(_label(name) for name in names)


def _label(name: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in name)


def _snake(rule: Mapping[str, Any]) -> dict[str, Any]:
    names = {"sourceLabels": "source_labels", "targetLabel": "target_label"}
    return {names.get(name, name): value for name, value in rule.items()}
