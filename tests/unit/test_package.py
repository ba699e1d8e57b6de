"""The wheel holds our two packages and nothing else; one lock pins what it needs."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import pipelines
import workers

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as opened:
        yield opened


def test_the_wheel_holds_exactly_our_packages(wheel: zipfile.ZipFile) -> None:
    names = [name for name in wheel.namelist() if ".dist-info/" not in name]
    assert {name.split("/")[0] for name in names} == {"workers", "pipelines"}
    assert {"workers/py.typed", "pipelines/py.typed", "pipelines/broker-pom.xml"} <= set(names)
    sources = {
        str(path.relative_to(ROOT)) for folder in ("workers", "pipelines") for path in (ROOT / folder).rglob("*.py")
    }
    assert {name for name in names if name.endswith(".py")} == sources


def test_the_wheel_is_found_by_its_command_and_cannot_be_uploaded(wheel: zipfile.ZipFile) -> None:
    def read(name: str) -> str:
        (path,) = (path for path in wheel.namelist() if path.endswith(f".dist-info/{name}"))
        return wheel.read(path).decode()

    assert "stream-embedder = pipelines.cli:main" in read("entry_points.txt")
    assert "Classifier: Private :: Do Not Upload" in read("METADATA")  # both import names are taken by others
    assert "Apache License" in read("licenses/LICENSE")


def test_our_packages_are_these_and_not_others_of_that_name() -> None:
    assert Path(workers.__file__).parent == ROOT / "workers"
    assert Path(pipelines.__file__).parent == ROOT / "pipelines"


def test_the_lock_pins_every_dependency_and_names_no_index() -> None:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.match(r"[a-z0-9.-]+==[^ ;/@]+( ; |$)", line) for line in pins)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = project["project"]["dependencies"] + project["dependency-groups"]["dev"]
    names = {re.split(r"[^A-Za-z0-9._-]", item)[0].lower() for item in wanted}
    assert names <= {line.split("==")[0] for line in pins}, "make lock"
