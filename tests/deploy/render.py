"""The chart rendered: values in, Kubernetes objects out, by helm."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.deploy import tools
from tests.deploy.values_schema import CHART

EXAMPLES = {file.stem: file for file in sorted((CHART / "examples").glob("*.yaml"))}
STREAMS = sorted(name for name, file in EXAMPLES.items() if yaml.safe_load(file.read_text()).get("kind") != "batch")
RELEASE, NAMESPACE = "books", "embedding"


class Refused(Exception):
    """Helm refuses something, such as the values, and says why."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """What a release would make."""

    objects: list[dict[str, Any]]

    def of(self, kind: str) -> list[dict[str, Any]]:
        """All objects of a kind."""
        return [found for found in self.objects if found["kind"] == kind]

    @property
    def service(self) -> dict[str, Any]:
        """The RayService's spec."""
        (service,) = self.of("RayService")
        return dict(service["spec"])

    @property
    def cluster(self) -> dict[str, Any]:
        """The spec of the Ray cluster, of the RayService or the RayJob."""
        for job in self.of("RayJob"):
            return dict(job["spec"]["rayClusterSpec"])
        return dict(self.service["rayClusterConfig"])

    @property
    def pods(self) -> dict[str, dict[str, Any]]:
        """Its pod templates: ``head``, and the worker groups by name."""
        groups = {group["groupName"]: group["template"] for group in self.cluster["workerGroupSpecs"]}
        return {"head": self.cluster["headGroupSpec"]["template"], **groups}

    @property
    def pipeline(self) -> str:
        """The settings that every pod finds as its file, which are the same everywhere."""
        (text,) = {pod["metadata"]["annotations"]["stream-embedder/pipeline.yaml"] for pod in self.pods.values()}
        return str(text)


def render(*files: Path, release: str = RELEASE, **values: Any) -> Rendered:
    """Render the chart with values files, and values over them.

    Raises:
        Refused: by the schema, or by the chart.
    """
    # One that Go has built takes clusters for ancient unless told otherwise.
    version = tools.KUBERNETES[1]
    command: list[str] = ["template", release, str(CHART), "--namespace", NAMESPACE, "--kube-version", version]
    for file in files:
        command += ["-f", str(file)]
    for key, value in values.items():
        command += ["--set-json", f"{key.replace('__', '.')}={json.dumps(value)}"]
    return Rendered([found for found in yaml.safe_load_all(helm(*command)) if found])


def lint(file: Path) -> str:
    """What helm's linter says of the chart with a values file."""
    return helm("lint", "--strict", str(CHART), "-f", str(file))


def helm(*arguments: str) -> str:
    """What helm says.

    Raises:
        Refused: it fails.
    """
    done = subprocess.run([tools.helm(), *arguments], capture_output=True, text=True, timeout=300, check=False)
    if done.returncode != 0:
        raise Refused(done.stderr + done.stdout)
    return done.stdout


def env(container: Mapping[str, Any]) -> dict[str, Any]:
    """A container's variables: their value, or where it comes from."""
    return {item["name"]: item.get("value", item.get("valueFrom")) for item in container.get("env", ())}


def seconds(pod: Mapping[str, Any]) -> tuple[int, int]:
    """How long a pod's node drains, and how long its grace is."""
    spec = pod["spec"]
    return int(env(spec["containers"][0])["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"]), spec[
        "terminationGracePeriodSeconds"
    ]
