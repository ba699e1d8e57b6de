"""What is done to a stream in the test's cluster, and what is seen of it meanwhile."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

from pipelines.broker import Broker
from tests.deploy.api_server import NotTaken
from tests.deploy.cluster import Cluster
from tests.deploy.prometheus import targets_of
from tests.deploy.release import NAMESPACE
from tests.integration.pipeline import Reader, wait_until
from workers import kafka_client

CHANGE_S = 240
# One in so many is no document.
BROKEN = 50


class Feeder:
    """Appends documents, numbered, so many a second; some are none."""

    def __init__(self, broker: Broker, topic: str) -> None:
        self._topic = topic
        self._producer = kafka_client.bare_producer(broker.settings, linger_ms=5)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self.count = self.broken = 0

    @property
    def expected(self) -> int:
        """How many have a vector in the end."""
        return self.count - self.broken

    def send(self, count: int) -> None:
        """So many at once."""
        with self._lock:
            for number in range(self.count, self.count + count):
                text = json.dumps({"text": f"number {number} of the documents that are in this topic"}).encode()
                broken = number % BROKEN == BROKEN - 1
                self._producer.send(self._topic, key=b"%d" % number, value=b"{" if broken else text)
                self.broken += broken
                self.count += 1
            self._producer.flush(timeout=60)

    def begin(self, a_second: int) -> None:
        """Go on until :meth:`end`."""

        def run() -> None:
            while not self._stop.wait(0.1):
                self.send(max(1, a_second // 10))

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()

    def end(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(60)
        self._producer.close(timeout=5)


class Story:
    """What happened when, and what of the stream was seen meanwhile."""

    def __init__(self, cluster: Cluster, out: Reader, targets: Path) -> None:
        """``targets``: where Prometheus finds the pods."""
        self._cluster = cluster
        self._out = out
        self._targets = targets
        self._began = time.monotonic()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._gap = 0.0
        self._last = time.monotonic()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    @property
    def seen(self) -> int:
        """How many vectors there are."""
        return len(self._out.records)

    def tell(self, what: str) -> None:
        """A line of it."""
        print(f"{time.monotonic() - self._began:6.1f} s  {what}", flush=True)

    def wait(self, condition: Callable[[], bool], what: str, seconds: float = CHANGE_S) -> None:
        """Until something is so."""
        wait_until(condition, seconds, lambda: f"{what}; {self.seen} vectors\n{self._cluster.said()}")
        self.tell(what)

    def silence(self) -> float:
        """The longest time without a new vector since this was asked last, in seconds."""
        with self._lock:
            gap, self._gap = max(self._gap, time.monotonic() - self._last), 0.0
        return gap

    def catch_up(self, feeder: Feeder) -> None:
        """Until all that has been appended by now is read."""
        mark = feeder.expected
        wait_until(lambda: self.seen >= mark, CHANGE_S, lambda: f"{self.seen} of {mark}\n{self._cluster.said()}")

    def settle(self, what: str, settled: Callable[[], bool], feeder: Feeder) -> None:
        """Something has been done to the cluster; until it has settled, and all is read that came meanwhile."""
        self.silence()
        self.tell(what)
        wait_until(settled, CHANGE_S, lambda: f"{what}: not settled\n{self._cluster.said()}")
        self.tell("… and the cluster has settled")
        self.catch_up(feeder)
        self.tell(f"… and the stream has: {self.silence():.0f} s without a vector at most")

    def close(self) -> None:
        self._stop.set()
        self._thread.join(30)

    def _watch(self) -> None:
        while not self._stop.is_set():
            before = self.seen
            if self._out.poll() > before:
                with self._lock:
                    now = time.monotonic()
                    self._gap, self._last = max(self._gap, now - self._last), now
            with contextlib.suppress(NotTaken, OSError):
                written = json.dumps(targets_of(self._cluster.remaining_pods(NAMESPACE)))
                self._targets.with_suffix(".new").write_text(written)
                self._targets.with_suffix(".new").replace(self._targets)
