"""The demo, as a newcomer starts it: it answers, and it leaves nothing behind, however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import RunningBroker
from workers import kafka_client

pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def folder() -> Iterator[Path]:
    """Where the demo's temporary files go. Its path is short: Ray keeps sockets in there, whose paths have 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="d") as name:
        yield Path(name)


@contextmanager
def started(broker: RunningBroker, rows: int, folder: Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    """The demo on the shared broker, in a process group of its own, with temporary files in ``folder``."""
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "pipelines", "demo", "--rows", str(rows), *words],
            env={**os.environ, "KAFKA_BOOTSTRAP_SERVERS": broker.bootstrap_servers, "TMPDIR": str(folder)},
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def demo_topics(broker: RunningBroker) -> list[str]:
    with kafka_client.admin(broker.settings) as client:
        return [name for name in client.list_topics() if name.startswith("demo-")]


def processes_of(session: int) -> list[str]:
    """Command lines of a session's processes, those that are ending left out."""
    listed = subprocess.run(
        ["ps", "-s", str(session), "-o", "stat=,args="], capture_output=True, text=True, check=False
    ).stdout
    return [line for line in listed.splitlines() if not line.startswith("Z")]


def assert_nothing_is_left(broker: RunningBroker, session: int, folder: Path) -> None:
    deadline = time.monotonic() + 20
    while (found := processes_of(session)) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert not found
    assert demo_topics(broker) == []
    assert list(folder.glob("stream-embedder-demo-*")) == []


def test_it_embeds_answers_and_cleans_up(broker: RunningBroker, folder: Path):
    with started(broker, 60, folder, "how are threads listed?") as process:
        out, _ = process.communicate()
        assert process.returncode == 0, out + (folder / "log").read_text()
    assert "60 vectors and 0 dead letters" in out
    assert "every document has one outcome" in out
    assert "function threading.enumerate" in out.partition("how are threads listed?")[2].splitlines()[1]
    assert_nothing_is_left(broker, process.pid, folder)


@pytest.mark.soak
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_cleans_up_too(broker: RunningBroker, folder: Path, number: signal.Signals):
    with started(broker, 60, folder) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "topic: demo-" in line:
                break
        time.sleep(5)  # into the start of Ray
        if number == signal.SIGINT:
            os.killpg(process.pid, number)  # as a terminal does
        else:
            process.send_signal(number)
        process.communicate(timeout=120)
        assert process.returncode != 0
    assert_nothing_is_left(broker, process.pid, folder)
