"""Offsets that are committed outside transactions, by the thread that polls: the client lets nobody else.

Comes in: positions, from any thread. Goes out: commits between two polls, and the refusal of an earlier one. Never here:
offsets that a transaction carries (``sinks``).
"""

from __future__ import annotations

import threading
from collections.abc import Container, Iterable, Mapping
from typing import Any

from kafka import OffsetAndMetadata
from kafka import TopicPartition as KafkaTopicPartition
from kafka import errors as kafka_errors

from workers import log
from workers.errors import CommitError
from workers.offsets import write_position
from workers.records import Position, TopicPartition

LOG = log.get(__name__)


class OffsetCommits:
    """Positions on their way. ``soon`` and ``last`` belong to the poll thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[TopicPartition, Position] = {}
        self._failure: BaseException | None = None

    def add(self, positions: Mapping[TopicPartition, Position]) -> None:
        """Have these committed.

        Raises:
            CommitError: an earlier commit was refused.
        """
        with self._lock:
            failure, self._failure = self._failure, None
            self._waiting.update(positions)
        if failure is not None:
            raise CommitError(f"the offset commit was refused: {failure}") from failure

    def drop(self, partitions: Iterable[TopicPartition]) -> None:
        """Partitions are ours no longer."""
        with self._lock:
            for partition in partitions:
                self._waiting.pop(partition, None)

    def soon(self, consumer: Any, owned: Container[TopicPartition]) -> None:
        """Send what waits of partitions that are ours now; the answer comes with a later poll."""
        if offsets := self._take(owned):
            consumer.commit_async(offsets, callback=self._answered)

    def last(self, consumer: Any, owned: Container[TopicPartition]) -> None:
        """Commit what waits of them before the member leaves."""
        if offsets := self._take(owned):
            try:
                consumer.commit(offsets, 3_000)
            except kafka_errors.KafkaError as error:
                LOG.warning("last commit failed %s", log.fields(error=type(error).__name__))

    def _take(self, owned: Container[TopicPartition]) -> dict[Any, Any]:
        with self._lock:
            taken, self._waiting = self._waiting, {}
        return {
            KafkaTopicPartition(*tp): OffsetAndMetadata(at.offset, write_position(at), -1)
            for tp, at in taken.items()
            if tp in owned
        }

    def _answered(self, _offsets: object, response: object) -> None:
        if isinstance(response, Exception):
            with self._lock:
                self._failure = response
