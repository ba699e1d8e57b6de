"""How much a reader still has to do: the records that it holds, and those behind them in its partitions.

Comes in: how far the reader has read, and where its partitions end, which the brokers are asked. Goes out: metrics. Never here:
another group's lag, or a reader that waits for the answer: this has a thread of its own.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any

from workers import kafka_client, kafka_topics, log, metrics
from workers.errors import EnvironmentFault, RetryableError
from workers.records import TopicPartition
from workers.settings import KafkaSettings

LOG = log.get(__name__)

PERIOD_S = 2.0

# Where each partition goes on, and how many records are held.
type_progress = tuple[Mapping[TopicPartition, int], int]
type_ends = Callable[[Any, Iterable[TopicPartition]], Mapping[TopicPartition, int]]


class Backlog:
    """Keeps ``backlog_records`` and ``records_arrived_total`` up to date."""

    def __init__(
        self,
        kafka: KafkaSettings,
        progress: Callable[[], type_progress],
        meter: metrics.Metrics,
        *,
        connect: Callable[[KafkaSettings], AbstractContextManager[Any]] = kafka_client.admin,
        ends: type_ends = kafka_topics.ends_of,
    ) -> None:
        """``progress`` is quick and may be called from any thread."""
        self._kafka = kafka
        self._progress = progress
        self._meter = meter
        self._connect = connect
        self._ends = ends
        self._seen: dict[TopicPartition, int] = {}
        self._at: float | None = None

    @property
    def age_s(self) -> float:
        """Seconds since the brokers last answered; infinite before they have."""
        return time.monotonic() - self._at if self._at is not None else float("inf")

    def run(self, stop: threading.Event) -> None:
        """Look every other second until ``stop``; brokers that are out of reach are asked again."""
        while not stop.is_set():
            try:
                with self._connect(self._kafka) as client:
                    while not stop.is_set():
                        self.look(client)
                        stop.wait(PERIOD_S)
            except (EnvironmentFault, RetryableError) as error:
                LOG.debug("backlog unknown %s", log.fields(error=error))
            except Exception as error:  # noqa: BLE001 - whatever the client raises, the figures grow old and are asked for again
                LOG.warning("backlog unknown %s", log.fields(error=type(error).__name__))
            stop.wait(PERIOD_S)

    def look(self, client: Any) -> None:
        """Ask once."""
        ends = dict(self._ends(client, list(self._progress()[0])))
        positions, held = self._progress()
        unread = sum(max(0, end - positions[tp]) for tp, end in ends.items() if tp in positions)
        # A partition that has just come brings no arrivals: what is in it counted where it was before.
        arrived = sum(max(0, end - self._seen[tp]) for tp, end in ends.items() if tp in self._seen)
        self._seen, self._at = ends, time.monotonic()
        self._meter.set(metrics.BACKLOG_RECORDS, held + unread)
        self._meter.add(metrics.RECORDS_ARRIVED, arrived)
