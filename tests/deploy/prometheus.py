"""A real Prometheus, and what the dashboard asks of it."""

from __future__ import annotations

import contextlib
import json
import time
import urllib.parse
import urllib.request
from collections.abc import Mapping
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


def scraping(monitor: Mapping[str, Any], namespace: str, kubeconfig: Path) -> dict[str, Any]:
    """The configuration that the Prometheus operator makes of a PodMonitor: which pods, and under which labels."""
    spec = monitor["spec"]
    pods = {"role": "pod", "kubeconfig_file": str(kubeconfig), "namespaces": {"names": [namespace]}}
    jobs = []
    for number, endpoint in enumerate(spec["podMetricsEndpoints"]):
        chosen = [
            {"source_labels": [f"__meta_kubernetes_pod_label_{_label(name)}"], "regex": value, "action": "keep"}
            for name, value in spec["selector"]["matchLabels"].items()
        ]
        port = {"source_labels": ["__meta_kubernetes_pod_container_port_name"], "regex": endpoint["port"]}
        named = [
            {"source_labels": [f"__meta_kubernetes_{source}"], "target_label": label}
            for source, label in (("namespace", "namespace"), ("pod_name", "pod"), ("pod_container_name", "container"))
        ]
        jobs.append(
            {
                "job_name": f"podMonitor/{namespace}/{monitor['metadata']['name']}/{number}",
                "scrape_interval": endpoint["interval"],
                "scrape_timeout": endpoint["interval"],
                "kubernetes_sd_configs": [pods],
                "relabel_configs": [*chosen, {**port, "action": "keep"}, *named, *map(_snake, endpoint["relabelings"])],
                "metric_relabel_configs": [*map(_snake, endpoint["metricRelabelings"])],
            }
        )
    return {"scrape_configs": jobs}


def _label(name: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in name)


def _snake(rule: Mapping[str, Any]) -> dict[str, Any]:
    names = {"sourceLabels": "source_labels", "targetLabel": "target_label"}
    return {names.get(name, name): value for name, value in rule.items()}
