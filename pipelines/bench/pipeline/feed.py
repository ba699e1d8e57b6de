"""Records at a steady rate into a topic, and when their vectors can be read.

Comes in: a stage, topics. Goes out: what was sent, what arrived and when. Never here: what that means.
"""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from typing import Any, NamedTuple

from pipelines.bench.pipeline.stage import PARTITIONS, Stage
from workers import kafka_client
from workers.errors import EnvironmentFault

STANDS_STILL_S = 120.0


class Feed:
    """A thread that produces ``rate`` records a second, from 0 on; their keys are their numbers. A context manager."""

    def __init__(self, stage: Stage, topic: str, rate: float) -> None:
        self._stage = stage
        self._topic = topic
        self._rate = rate
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="feed", daemon=True)
        self._failure: Exception | None = None
        self.sent = 0

    def __enter__(self) -> Feed:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(60)

    def stop(self) -> None:
        """Send no more; what was sent is with the broker.

        Raises:
            EnvironmentFault: it is not.
        """
        self._stop.set()
        self._thread.join(60)
        if self._thread.is_alive() or self._failure is not None:
            raise EnvironmentFault(f"records cannot be produced: {self._failure or 'the broker does not take them'}")

    def _run(self) -> None:
        try:
            self._produce()
        except Exception as error:  # noqa: BLE001 - said by stop(): records that never came in are nobody's loss
            self._failure = error

    def _produce(self) -> None:
        texts = self._stage.distinct()
        producer = kafka_client.bare_producer(self._stage.kafka, linger_ms=0)
        sent: deque[Any] = deque()
        begin = time.monotonic()
        while not self._stop.wait(0.005):
            while self.sent < (time.monotonic() - begin) * self._rate:
                number = self.sent
                value = json.dumps({"id": str(number), "text": next(texts)}).encode()
                sent.append(producer.send(self._topic, value, key=b"%d" % number, partition=number % PARTITIONS))
                self.sent += 1
            while sent and sent[0].is_done:
                sent.popleft().get()
        producer.flush(timeout=30)
        for future in sent:
            future.get(timeout=1)
        producer.close(timeout=10)


class Arrival(NamedTuple):
    """When a reader of committed records had it, and when it was produced: seconds since 1970; and its key."""

    at: float
    produced: float
    key: bytes


class Arrivals:
    """A thread that reads a topic from its end, committed records only. A context manager."""

    def __init__(self, stage: Stage, topic: str) -> None:
        self._consumer: Any = kafka_client.bare_consumer(stage.kafka, auto_offset_reset="latest")
        self._consumer.subscribe([topic])
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="arrivals", daemon=True)
        self.found: list[Arrival] = []

    def __enter__(self) -> Arrivals:
        while not self._consumer.assignment():
            self._consumer.poll(100)
        for tp in self._consumer.assignment():
            self._consumer.position(tp)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(15)
        self._consumer.close()

    def reach(self, goal: int) -> bool:
        """Wait until so many keys have come; False when for :data:`STANDS_STILL_S` no other one came."""
        since = time.monotonic()
        keys: set[bytes] = set()
        looked_at = 0
        while len(keys) < goal:
            before, found = len(keys), self.found[looked_at:]
            looked_at += len(found)
            keys.update(each.key for each in found)
            if len(keys) > before:
                since = time.monotonic()
            elif time.monotonic() - since > STANDS_STILL_S:
                return False
            time.sleep(0.02)
        return True

    def _run(self) -> None:
        while not self._stop.is_set():
            for records in self._consumer.poll(50, max_records=5_000).values():
                now = time.time()
                # An output record keeps its source's time, which is when the producer made it.
                self.found += [Arrival(now, record.timestamp / 1000, record.key) for record in records]
