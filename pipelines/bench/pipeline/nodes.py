"""A Ray cluster of several nodes on this machine, of which one can be lost.

Comes in: a folder. Goes out: an address, and nodes that end by SIGTERM or at once. Never here: what runs on them.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import psutil

from pipelines.bench.pipeline.children import last_words
from pipelines.bench.process import ROOT
from pipelines.cluster import marked
from pipelines.loopback import end, end_with_us, free_port
from workers.errors import EnvironmentFault

HEAD = "head"
# What Serve calls the processes of its replicas.
ENCODER, READER = "ServeReplica:stream-embedder:Encoder", "ServeReplica:stream-embedder:Reader"
MARK = "RAY_NODE_OF_BENCH"
START_S = 90.0
ATTEMPTS = 3
# How long a node that gets SIGTERM may take to move what it runs: Ray's own default.
DRAIN_S = 30


class Nodes:
    """A head that keeps its state on disk, as fault tolerance asks, and runs no replicas; and nodes of ``cpus`` each.

    To be used as a context manager, which ends whatever is left.
    """

    def __init__(self, folder: Path, cpus: int, **environ: str) -> None:
        """Logs, sockets and the head's state go into ``folder``; ``environ`` is what all nodes have beside ours."""
        self._folder = folder
        self._cpus = cpus
        self._watchdogs: dict[str, subprocess.Popen[bytes]] = {}
        self._marks: dict[str, str] = {}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._port = free_port()
        self.address = f"127.0.0.1:{self._port}"
        self.environ = {
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_AUTH_MODE": "disabled",
            "RAY_gcs_storage": "rocksdb",
            "RAY_gcs_storage_path": str(folder / "gcs"),
            "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": str(DRAIN_S),
            "RAY_SERVE_LOG_TO_STDERR": "1",
            **environ,
        }

    def __enter__(self) -> Nodes:
        (self._folder / "gcs").mkdir()
        return self

    def __exit__(self, *_: object) -> None:
        for name in list(self._processes):
            self.kill(name)

    def start(self, name: str) -> None:
        """Start a node, and wait until it runs.

        Raises:
            EnvironmentFault: it does not.
        """
        for attempt in range(1, ATTEMPTS + 1):
            try:
                self._start(name)
                return
            except EnvironmentFault:
                if attempt == ATTEMPTS:
                    raise
                self.kill(name)  # on a busy machine Ray gives up on its own processes too early

    def _start(self, name: str) -> None:
        mark = self._marks[name] = uuid.uuid4().hex
        # Ray's own autoscaler, and what passes replicas' logs on to drivers, are processes that start with a node; on a busy
        # machine the raylet does not wait long enough for those that it needs.
        lean = ["--include-log-monitor=false"]
        if name == HEAD:
            lean.append("--no-monitor")
            # A raylet of the old head's cluster lives on here, so Ray would take the head for running.
            (self._folder / "ray/ray_current_cluster").unlink(missing_ok=True)
            kind = ["--head", f"--port={self._port}", "--include-dashboard=false", "--num-cpus=0"]
            kind.append(f"--temp-dir={self._folder / 'ray'}")
        else:
            kind = [f"--address={self.address}", f"--num-cpus={self._cpus}"]
        command = [
            str(Path(sys.executable).with_name("ray")),
            "start",
            *kind,
            *lean,
            "--block",
            "--disable-usage-stats",
        ]
        log = self._folder / f"{name}.log"
        before = log.stat().st_size if log.exists() else 0
        with log.open("ab") as out:
            process = self._processes[name] = subprocess.Popen(  # noqa: S603
                [*command, "--min-worker-port=0", "--max-worker-port=0"],
                env=os.environ | self.environ | {MARK: mark, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        self._watchdogs[name] = end_with_us(-process.pid)
        deadline = time.monotonic() + START_S
        while b"Ray runtime started" not in log.read_bytes()[before:]:
            if process.poll() is not None or time.monotonic() > deadline:
                words = last_words(log.read_text(encoding="utf-8", errors="replace"))
                raise EnvironmentFault(f"a Ray node did not start; its last words are: {words}")
            time.sleep(0.1)

    def of(self, title: str) -> dict[str, int]:
        """How many processes whose title contains ``title`` each node runs."""
        return {name: len(found) for name, found in self._titled(title).items()}

    def pids(self, title: str) -> list[int]:
        """These processes, of all nodes."""
        return [pid for found in self._titled(title).values() for pid in found]

    def _titled(self, title: str) -> dict[str, list[int]]:
        return {
            name: [process.pid for process in marked(MARK, mark) if title in _title(process)]
            for name, mark in self._marks.items()
        }

    def end(self, name: str) -> float:
        """SIGTERM, as a machine that is taken away gets; the seconds until the node has gone.

        Raises:
            EnvironmentFault: it stays.
        """
        begin = time.monotonic()
        process = self._processes[name]
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(DRAIN_S + START_S)
        except subprocess.TimeoutExpired:
            raise EnvironmentFault(f"the node {name} did not end within {DRAIN_S + START_S:.0f} s of SIGTERM") from None
        self.kill(name)
        return time.monotonic() - begin

    def kill(self, name: str) -> None:
        """SIGKILL to everything that the node runs, as if its machine were gone."""
        process, mark = self._processes.pop(name), self._marks.pop(name)
        for _ in range(3):  # what one started while the others were killed
            for found in marked(MARK, mark):
                with contextlib.suppress(psutil.NoSuchProcess):  # its parent has ended it
                    found.kill()
            process.kill()
        end(process, self._watchdogs.pop(name))


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
