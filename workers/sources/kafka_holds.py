"""Partitions that wait, because the client cannot parse what comes next in them.

Comes in: what the client's fetcher raises while it parses. Goes out: which partitions to pause now, a line that names the
place, a count. Never here: skipping. What cannot be read is tried again until it can, or until somebody moves the group on.

The client itself leaves such a batch in its hands, broken: every later poll spins on it and never returns, and no other
partition is read any more.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from kafka import errors as kafka_errors

from workers import kafka_client, log, metrics
from workers.records import TopicPartition

LOG = log.get(__name__)

FIRST_WAIT_S = 1.0
LONGEST_WAIT_S = 30.0
LOG_EVERY_S = 30.0
# These say where we stand with the partition, not that its bytes are broken: the caller knows what to do.
_PLACES = (
    kafka_errors.OffsetOutOfRangeError,
    kafka_errors.NoOffsetForPartitionError,
    kafka_errors.AuthorizationError,
)


@dataclass(slots=True)
class _Hold:
    offset: int
    attempts: int
    until: float
    logged: float


class Holds:
    """The partitions of one consumer that are held back. Belongs to the thread that polls."""

    def __init__(self, consumer: Any, meter: metrics.Metrics) -> None:
        """Take the place of the two steps of ``consumer`` that parse."""
        self._meter = meter
        self._holds: dict[Any, _Hold] = {}
        self._fetcher = consumer._fetcher
        self._subscriptions = consumer._subscription
        self._parse, self._take = self._fetcher._parse_fetched_data, self._fetcher._append
        self._fetcher._parse_fetched_data = self._parse_or_hold
        self._fetcher._append = self._take_or_hold

    def now(self) -> set[Any]:
        """Those that still wait (kafka-python's partitions)."""
        moment = time.monotonic()
        return {tp for tp, hold in self._holds.items() if hold.until > moment}

    def known(self) -> set[Any]:
        """Those whose next batch could not be read when it was tried last."""
        return set(self._holds)

    def _parse_or_hold(self, fetch: Any) -> Any:
        try:
            return self._parse(fetch)
        except _PLACES:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a codec or a struct may raise
            self._hold(fetch.topic_partition, fetch.fetched_offset, error)
            return None

    def _take_or_hold(self, drained: Any, part: Any, most: int, update: bool) -> int:
        tp = part.topic_partition
        try:
            count: int = self._take(drained, part, most, update)
        except Exception as error:  # noqa: BLE001 - whatever a codec or a struct may raise
            offset = part.next_fetch_offset
            part.drain()
            self._hold(tp, offset, error)
            return 0
        if count:
            self._holds.pop(tp, None)
        return count

    def _hold(self, tp: Any, offset: int, error: Exception) -> None:
        if not self._subscriptions.is_assigned(tp):
            return  # revoked meanwhile
        now, partition = time.monotonic(), TopicPartition(*tp)
        hold = self._holds.get(tp)
        if hold is None or hold.offset != offset:
            hold = self._holds[tp] = _Hold(offset, 0, now, now - LOG_EVERY_S)
        hold.attempts += 1
        hold.until = now + min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** min(hold.attempts - 1, 10))
        self._meter.add(metrics.BATCHES_UNREADABLE, topic=partition.topic)
        if now - hold.logged >= LOG_EVERY_S:
            hold.logged = now
            LOG.error(
                "batch cannot be read, its partition waits %s",
                log.fields(partition=partition, offset=offset, attempts=hold.attempts, error=_what(error)),
            )
        # This poll goes on with the others, and must not ask for the batch again at once.
        self._subscriptions.pause(tp)


def _what(error: Exception) -> str:
    """The client's errors are sentences about codecs and checksums; others may quote what they could not read."""
    name = type(error).__name__
    return f"{name}: {kafka_client.sentence(error)}" if isinstance(error, kafka_errors.KafkaError) else name
