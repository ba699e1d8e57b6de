"""The image of deploy/Dockerfile, really built, where no registry is within reach: buildah, on a Debian of debootstrap's.

Comes in: the repository. Goes out: an image in buildah's store, and its files, mounted. The base stands in for the published one;
it brings the certificates that this machine trusts, in case its way out has one of its own. Needs root.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.deploy.tools import FOLDER, NoTool
from tests.deploy.values_schema import CHART

ROOT = CHART.parents[2]
DEBIAN = "bookworm"
BASE = f"localhost/debian-python:{DEBIAN}"
REPOSITORY = "localhost/stream-embedder"
INCLUDED = "python3,python3-venv,ca-certificates"
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
BUILD_S = 3600


@dataclass(frozen=True, slots=True)
class Image:
    """An image's files, and how its containers start. ``user``: uid and gid."""

    name: str
    root: Path
    env: Mapping[str, str]
    entrypoint: tuple[str, ...]
    user: tuple[int, int]
    folder: str


def build() -> str:
    """The name of the image of the repository as it is, built unless it is there: some ten minutes at first, then seconds.

    Raises:
        NoTool: no root, no buildah, no debootstrap, or what the build said.
    """
    if os.geteuid() != 0:
        raise NoTool("an image is built as root here, and this is another user")
    for program in ("buildah", "debootstrap"):
        if shutil.which(program) is None:
            raise NoTool(f"an image takes {program}, which is not on the PATH: apt-get install {program}")
    name = f"{REPOSITORY}:{_sum()}"
    if not _there(name):
        base = _base()
        # Docker's format has SHELL, which the Dockerfile uses; layers are kept, so that a build goes on where it was.
        options = [
            "--format",
            "docker",
            "--layers",
            "--network",
            "host",
            "--target",
            "cpu",
            "--build-arg",
            f"BASE_IMAGE={base}",
        ]
        _buildah("bud", *options, "-f", ROOT / "deploy" / "Dockerfile", "-t", name, ROOT, shown=True)
    return name


@contextlib.contextmanager
def mounted(name: str) -> Iterator[Image]:
    """The image's files, for one at a time; nobody may write there."""
    with _alone(), _container(name) as container:
        yield container


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    FOLDER.mkdir(parents=True, exist_ok=True)
    with (FOLDER / "image.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _container(name: str) -> Iterator[Image]:
    container = "stream-embedder-test"
    with contextlib.suppress(NoTool):
        _buildah("rm", container)  # left by who was killed
    _buildah("from", "--pull-never", "--name", container, name)
    try:
        config = json.loads(_buildah("inspect", "--type", "image", name))["Docker"]["config"]
        user, _, group = config["User"].partition(":")
        yield Image(
            name=name,
            root=Path(_buildah("mount", container)),
            env=dict(line.split("=", 1) for line in config["Env"]),
            entrypoint=tuple(config["Entrypoint"]),
            user=(int(user), int(group)),
            folder=config["WorkingDir"],
        )
    finally:
        _buildah("rm", container)


@cache
def _sum() -> str:
    """Twelve letters that are others when anything that the image is made of is."""
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    listed = [ROOT / line[1:] for line in ignored if line.startswith("!")]
    listed += [ROOT / "deploy" / "Dockerfile", ROOT / ".dockerignore"]
    files = [found for one in listed for found in ([one] if one.is_file() else one.rglob("*")) if found.is_file()]
    made = hashlib.sha256()
    for file in sorted(found for found in files if "__pycache__" not in found.parts):
        made.update(f"{file.relative_to(ROOT)} {hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return made.hexdigest()[:12]


def _base() -> str:
    """A Debian with Python, out of Debian's packages (3 minutes)."""
    if _there(BASE):
        return BASE
    packages = FOLDER / f"debian-{DEBIAN}"
    packages.mkdir(parents=True, exist_ok=True)
    container = _buildah("from", "scratch")
    try:
        root = Path(_buildah("mount", container))
        command = ["debootstrap", "--variant=minbase", f"--include={INCLUDED}", f"--cache-dir={packages}", DEBIAN, root]
        _run(*command, shown=True)
        shutil.rmtree(root / "var" / "cache" / "apt" / "archives", ignore_errors=True)
        (root / "var" / "cache" / "apt" / "archives" / "partial").mkdir(parents=True)
        if CERTIFICATES.is_file():
            shutil.copyfile(CERTIFICATES, root / CERTIFICATES.relative_to("/"))
        environ = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
        environ |= dict.fromkeys(("SSL_CERT_FILE", "PIP_CERT"), str(CERTIFICATES))
        for key, value in environ.items():
            _buildah("config", "--env", f"{key}={value}", container)
        _buildah("commit", "--quiet", "--format", "docker", container, BASE)
    finally:
        _buildah("rm", container)
    return BASE


def _there(name: str) -> bool:
    try:
        _buildah("inspect", "--type", "image", name)
    except NoTool:
        return False
    return True


def _buildah(*arguments: str | Path, shown: bool = False) -> str:
    return _run("buildah", *arguments, shown=shown)


def _run(*command: str | Path, shown: bool = False) -> str:
    """What a command prints; ``shown``: on our own standard error, because it takes its time."""
    environ = {**os.environ, "BUILDAH_ISOLATION": "chroot", "STORAGE_DRIVER": "overlay"}
    output = sys.stderr if shown else subprocess.PIPE
    errors = None if shown else subprocess.PIPE
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=errors,
        text=True,
        timeout=BUILD_S,
        check=False,
        env=environ,
    )
    if done.returncode != 0:
        said = "what it said stands above" if shown else (done.stderr.strip() or "?").splitlines()[-1]
        raise NoTool(f"{command[0]} {command[1]} failed: {said}")
    return (done.stdout or "").strip()
