"""The image of deploy/Dockerfile, built, and its demo run as a pod of the profile ``restricted`` would run it.

make test-image starts it in a network that leads nowhere but to a Kafka on loopback.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.conftest import RunningBroker
from tests.deploy import image
from tests.deploy.container import Container, Identity, Mount
from tests.deploy.image import Image
from tests.deploy.network import is_apart

pytestmark = [
    pytest.mark.deploy,
    pytest.mark.skipif(not is_apart(), reason="takes a network of its own: make test-image"),
]

WRITABLE = ("/tmp", "/cache", "/dev/shm")
DEMO_S = 240


@pytest.fixture(scope="module")
def built() -> Iterator[Image]:
    with image.mounted(image.build()) as mounted:
        yield mounted


def run(built: Image, folder: Path, command: Sequence[str], **env: str) -> tuple[int, str]:
    """Exit code and output of a command in the image, with what a pod may write to and nothing else."""
    mounts = []
    for target in WRITABLE:
        place = folder / target.strip("/").replace("/", "-")
        place.mkdir()
        place.chmod(0o1777)
        mounts.append(Mount(place, target))
    started = Container(
        built, folder / "container", command, env, mounts, Identity(*built.user), read_only=True, files={}, sandbox=None,
        log=folder / "log",
    )  # fmt: skip
    try:
        started.process.wait(DEMO_S)
    finally:
        started.kill()
    return started.exit_code or 0, (folder / "log").read_text()


def test_it_runs_as_nobody_in_particular_and_writes_nowhere_else(built: Image, tmp_path: Path) -> None:
    assert built.user == (10001, 10001)
    script = (
        "id -u; id -g; pwd; for at in / /empty /opt/venv /opt/stream-embedder /models /home /tmp /cache /dev/shm; do "
    )
    script += "touch $at/x 2>/dev/null && echo $at; done; grep -E '^(CapEff|CapBnd|NoNewPrivs)' /proc/self/status"
    code, said = run(built, tmp_path, ["bash", "-c", script])
    assert said.split() == [
        *("10001", "10001", built.folder, "/tmp", "/cache", "/dev/shm"),
        *("CapEff:", "0" * 16, "CapBnd:", "0" * 16, "NoNewPrivs:", "1"),
    ]
    assert code == 0


def test_the_demo_runs_read_only_and_without_root(built: Image, broker: RunningBroker, tmp_path: Path) -> None:
    command = [*built.entrypoint, "demo", "--rows", "100"]
    code, said = run(built, tmp_path, command, KAFKA_BOOTSTRAP_SERVERS=broker.bootstrap_servers)
    assert code == 0, said
    assert "every document has one outcome, none is missing, none is there twice" in said
    vectors = re.search(r"(\d+) vectors and 0 dead letters", said)
    assert vectors is not None and int(vectors[1]) == 100, said
