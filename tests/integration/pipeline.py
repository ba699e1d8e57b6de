"""The real thing under test: ``stream-embedder run`` as a process of its own, with ways to find and kill its parts.

Every process of a run inherits a mark in its environment; that is how the parts are told from another run's.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml
from kafka import TopicPartition

from workers import kafka_client
from workers.settings import KafkaSettings

MARK = "PIPELINE_UNDER_TEST"


class Pipeline:
    """One ``run``, restartable. ``settings`` is the YAML file's content; ``module``: what python -m runs, with its command.

    ``environment``: what is set for it beside ours, at its next start.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], module: str = "pipelines run") -> None:
        self.module = module
        self.config = folder / "pipeline.yaml"
        self.config.write_text(yaml.safe_dump(dict(settings)), encoding="utf-8")
        self.log = folder / "run.log"
        self.mark = uuid.uuid4().hex
        self.environment: dict[str, str] = {}
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and return at once."""
        environment = os.environ | {MARK: self.mark, "HF_HUB_OFFLINE": "1"} | self.environment
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *self.module.split(), "-c", str(self.config)],
                stdout=out,
                stderr=out,
                stdin=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,
            )

    def driver_threads(self) -> list[str]:
        """What /proc says of the command's own threads."""
        assert self.process is not None
        found = []
        for entry in Path(f"/proc/{self.process.pid}/task").iterdir():
            with contextlib.suppress(OSError):  # one that ended meanwhile
                found.append((entry / "status").read_text(encoding="utf-8"))
        return found

    def parts(self, title: str = "") -> dict[int, str]:
        """Process ids and titles of this run's processes whose title contains ``title``."""
        found = {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdecimal():
                continue
            with contextlib.suppress(OSError):
                if f"{MARK}={self.mark}".encode() in (entry / "environ").read_bytes():
                    line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                    if title in line and line:
                        found[int(entry.name)] = line
        return found

    def wait_for(self, title: str, count: int = 1, timeout: float = 90) -> list[int]:
        """Wait until so many parts of that title run."""
        found: list[int] = []

        def enough() -> bool:
            found[:] = sorted(self.parts(title))
            return len(found) >= count

        wait_until(enough, timeout, lambda: f"{count} × {title}\n{self.tail()}")
        return found

    def scrape(self) -> dict[str, float]:
        """Our metrics as Prometheus finds them, replicas added up, by name without prefix: ``in_flight_records``, … .

        Replicas report every few seconds. Empty while Ray starts.
        """
        lines = " ".join(self.parts("--session-dir=").values())
        found: dict[str, float] = {}
        for folder in set(re.findall(r"--session-dir=(\S+)", lines)):
            for written in Path(folder).glob("metrics_export_port_*"):
                with contextlib.suppress(OSError):
                    port = int(written.read_text())
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
                        text = answer.read().decode()
                    for name, value in re.findall(r"^ray_stream_embedder_(\w+?)(?:\{.*\})? (\S+)$", text, re.MULTILINE):
                        found[name] = found.get(name, 0.0) + float(value)
        return found

    def kill(self, title: str) -> int:
        """kill -9 one part of that title; returns its process id."""
        victim = self.wait_for(title)[0]
        os.kill(victim, signal.SIGKILL)
        return victim

    def kill_everything(self) -> None:
        """kill -9 the driver and its whole Ray."""
        for _ in range(20):
            left = self.parts()
            if not left:
                break
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if self.process is not None:
                self.process.wait(10)
            time.sleep(0.1)
        assert not self.parts()

    def terminate(self, timeout: float = 90) -> int:
        """SIGTERM the driver as an operator would; returns its exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout)

    def tail(self, lines: int = 40) -> str:
        """The end of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:]) if self.log.exists() else ""

    def __enter__(self) -> Pipeline:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill_everything()


def wait_until(condition: Callable[[], bool], timeout: float, what: Callable[[], str]) -> None:
    """Poll a condition; fails with what ``what`` says then, after ``timeout`` seconds."""
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, f"not within {timeout} s: {what()}"
        time.sleep(0.1)


def produce_texts(kafka: KafkaSettings, topic: str, ids: range, partition: int | None = None) -> None:
    """A record with a text of its own for each id, by its key or all in one partition; equal texts would be encoded once."""
    producer = kafka_client.bare_producer(kafka, linger_ms=20)
    for n in ids:
        text = " ".join([str(n), *["stream"] * 60])
        value = json.dumps({"text": text, "id": str(n)}).encode()
        producer.send(topic, key=b"k%d" % n, value=value, partition=partition)
    producer.flush(timeout=60)
    producer.close(timeout=5)


def ends(kafka: KafkaSettings, consumer: Any, partitions: Sequence[Any], *, patience_s: float) -> dict[Any, int]:
    """Where partitions end for a read_committed consumer, which is before the first transaction that is open.

    A commit is answered before its marks are written, and one that died leaves its transaction open for a while: that they end is
    waited for, ``patience_s`` at most.
    """
    with contextlib.closing(kafka_client.bare_consumer(kafka, isolation_level="read_uncommitted")) as all_records:
        deadline = time.monotonic() + patience_s
        while True:
            found: dict[Any, int] = consumer.end_offsets(partitions)
            if found == all_records.end_offsets(partitions) or time.monotonic() > deadline:
                return found
            time.sleep(0.05)


class Reader:
    """Collects what a read_committed reader sees in a topic, in order per partition."""

    def __init__(self, kafka: KafkaSettings, topic: str) -> None:
        self.kafka, self.topic = kafka, topic
        self.consumer = kafka_client.bare_consumer(kafka, auto_offset_reset="earliest", fetch_max_bytes=16 << 20)
        self.consumer.subscribe([topic])
        self.records: list[Any] = []

    def poll(self) -> int:
        """Read on for a moment; returns how many records there are in all."""
        for found in self.consumer.poll(200, max_records=5000).values():
            self.records += found
        return len(self.records)

    def finish(self, patience_s: float = 60) -> None:
        """Read on to where the topic ends now; see :func:`ends`."""
        partitions = [TopicPartition(self.topic, number) for number in self.consumer.partitions_for_topic(self.topic)]
        there = ends(self.kafka, self.consumer, partitions, patience_s=patience_s)
        wait_until(
            lambda: self.poll() >= 0 and all(self.consumer.position(each) >= end for each, end in there.items()),
            60,
            lambda: f"the end of {self.topic}, after {len(self.records)} records",
        )

    def close(self) -> None:
        self.consumer.close()


@contextlib.contextmanager
def reading(kafka: KafkaSettings, topic: str) -> Iterator[Reader]:
    """A reader that is closed afterwards."""
    reader = Reader(kafka, topic)
    try:
        yield reader
    finally:
        reader.close()


def leaks(canaries: Sequence[bytes], folder: Path) -> list[str]:
    """Files below a folder that hold one of the canaries."""
    found = []
    for path in folder.rglob("*"):
        if path.is_file():
            try:
                content = path.read_bytes()
            except OSError:
                continue
            found += [str(path) for canary in canaries if canary in content]
    return found


def ray_parts(folder: Path, title: str) -> set[int]:
    """Process ids of all parts of that title that there have been, dead ones too, by what Ray's logs below a folder say."""
    found = set()
    for path in folder.rglob("worker-*.out"):
        if f":actor_name:{title}" in path.read_text(encoding="utf-8", errors="replace"):
            found.add(int(path.stem.rpartition("-")[2]))
    return found


def value_of(record: Any) -> dict[str, Any]:
    """A JSON record's value."""
    value: dict[str, Any] = json.loads(record.value)
    return value
