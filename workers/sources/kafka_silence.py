"""Notices a client that delivers nothing although there is something to deliver.

Comes in: how each poll went. Goes out: whether the client is to be replaced, and a line that says what it was at. Never here:
replacing it, or partitions that wait on purpose.

A fetcher that has lost track of a partition raises nothing and stays in its group: lag would grow for ever, in silence.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Container
from typing import Any

from kafka import errors as kafka_errors

from workers import kafka_ends, log
from workers.records import TopicPartition

LOG = log.get(__name__)

# Twice in a row: a fetch that a busy broker answers late takes its request timeout, 10 s, at most.
LISTEN_S = 15.0
ASK_MS = 5_000


class Silence:
    """Watches one consumer. Belongs to the thread that polls."""

    def __init__(self, consumer: Any) -> None:
        self._consumer = consumer
        self.excuse()

    def heard(self) -> None:
        """Records came."""
        self._quiet = False

    def excuse(self) -> None:
        """None were wanted, or none could come."""
        self._since = time.monotonic()
        self._quiet = True
        self._waiting: dict[Any, int] = {}

    def broken(self, excused: Callable[[], Container[Any]]) -> bool:
        """Whether the same records have waited twice as long as they may; ``excused`` names partitions (the client's) not to ask.

        While records of other partitions come, one may wait for its turn; not one that the client holds as if it were paused.
        """
        if time.monotonic() - self._since < LISTEN_S:
            return False
        before, quiet = self._waiting, self._quiet
        self.excuse()
        self._waiting = self._look(excused())
        stuck = sorted(
            tp
            for tp, position in self._waiting.items()
            if before.get(tp) == position and (quiet or tp in self._consumer._fetcher._paused_partition_records)
        )
        for tp in stuck:
            LOG.error(
                "client delivers nothing %s",
                log.fields(partition=TopicPartition(*tp), position=self._waiting[tp], **self._state(tp)),
            )
        return bool(stuck)

    def _look(self, excused: Container[Any]) -> dict[Any, int]:
        """Positions of the partitions that have records beyond them; none while the broker does not say."""
        states = dict(self._consumer._subscription.assignment)
        at = {
            tp: state.position.offset
            for tp, state in states.items()
            if tp not in excused and state.position is not None
        }
        try:
            # One without a leader delivers nothing, and says nothing of the others.
            ends = kafka_ends.ends(self._consumer, kafka_ends.led(self._consumer, at), ASK_MS)
        except kafka_errors.KafkaError:
            return {}
        return {tp: at[tp] for tp, end in ends.items() if end > at[tp]}

    def _state(self, tp: Any) -> dict[str, object]:
        """What the client thinks of a partition: for whoever mends it."""
        fetcher, state = self._consumer._fetcher, self._consumer._subscription.assignment.get(tp)
        in_line = fetcher._next_partition_records
        return {
            "fetchable": state is not None and state.is_fetchable(),
            "leader": self._consumer._cluster.leader_for_partition(tp),
            "in_line": getattr(in_line, "topic_partition", None) == tp and bool(in_line),
            "line_used_up": in_line is not None and not in_line,
            "parked": tp in fetcher._paused_partition_records,
            "queued": tp in fetcher._paused_completed_fetches
            or tp in [fetch.topic_partition for fetch in fetcher._completed_fetches.copy()],
            "requests_out": len(fetcher._nodes_with_pending_fetch_requests),
            "joining": self._consumer._coordinator.rejoining,
            "coordinator": self._consumer._coordinator.coordinator_id,
        }
