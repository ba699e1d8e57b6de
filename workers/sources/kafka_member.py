"""A member of a Kafka consumer group: the client, and what it needs so that a group of it settles and stays fenced.

Comes in: who joins what. Goes out: a polled consumer, the membership that fences a transaction, what is committed. Never
here: which partitions are ours (``kafka``) or where they start (``kafka_start``), or a loop.

What the client needs, each with a test that fails without it:

- one thread that only polls, 200 ms at a time: short or late polls start join after join, and the group never settles;
- a join that outlives its poll is asked for again: one that a change of partitions began would else never be finished,
  while its heartbeats stay off, so the reader would sit there without partitions and without a word;
- ``read_committed``, even where nobody writes transactions: only then does it wait for a predecessor's pending commit;
- membership taken only while it is stable: a member that was thrown out shows generation -1, which the broker accepts;
- a batch that it cannot parse taken out of its hands (``kafka_holds``): its polls would spin on it and never return;
- a used-up batch taken out of its line: a partition that was paused half-read waits for that place, and would for ever;
- an eye on its silence (``kafka_silence``): a client that has lost track of a partition says nothing of it;
- an eye on what a static member's predecessor has left (``kafka_handover``): partitions that nobody reads.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterable, Mapping
from typing import Any

from kafka import KafkaConsumer
from kafka import TopicPartition as KafkaTopicPartition
from kafka import errors as kafka_errors
from kafka.admin import MemberToRemove
from kafka.consumer.subscription_state import ConsumerRebalanceListener
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.structs import MemberState

from workers import kafka_client, log, metrics
from workers.deadline import Deadline
from workers.errors import CommitError, EnvironmentFault, RetryableError
from workers.offsets import read_position
from workers.records import Position, TopicPartition
from workers.settings import KafkaSettings, LimitSettings, SourceSettings
from workers.sources.kafka_handover import Handover
from workers.sources.kafka_holds import Holds
from workers.sources.kafka_silence import Silence
from workers.sources.kafka_start import Starts

LOG = log.get(__name__)

MOST_RECORDS = 1_000
# Long enough that joins finish inside one poll (200 ms is the measured floor), short enough for a quick stop.
POLL_MS = 250
# The group waits this long for a stalled member before it goes on without it; the poll thread never stalls by design.
MAX_POLL_INTERVAL_MS = 45_000
SESSION_TIMEOUT_MS = 10_000
METADATA_MAX_AGE_MS = 30_000
# A member that is out of its group for longer says so now and then; joins take seconds, with many members half a minute.
UNSETTLED_S = 30.0


class GroupMember:
    """One consumer in one group. ``poll`` belongs to one thread; ``membership`` and ``committed`` to any."""

    def __init__(
        self,
        source: SourceSettings,
        kafka: KafkaSettings,
        limits: LimitSettings,
        *,
        client_id: str,
        group_instance_id: str | None,
        meter: metrics.Metrics,
    ) -> None:
        """Connect; :meth:`subscribe` joins.

        Raises:
            EnvironmentFault: no broker answers, or it refuses us.
        """
        self._source = source
        self._kafka = kafka
        self._instance = group_instance_id
        self._settled = time.monotonic()
        per_fetch = max(1 << 20, min(16 << 20, limits.bytes // 4))
        self.consumer: Any = kafka_client.connect(
            KafkaConsumer,
            kafka,
            group_id=source.group,
            client_id=client_id,
            group_instance_id=group_instance_id,
            isolation_level="read_committed",
            # A partition without a committed offset is placed by us; the client must never choose.
            auto_offset_reset="none",
            enable_auto_commit=False,
            partition_assignment_strategy=[CooperativeStickyAssignor],
            max_poll_interval_ms=MAX_POLL_INTERVAL_MS,
            session_timeout_ms=SESSION_TIMEOUT_MS,
            heartbeat_interval_ms=2_000,
            request_timeout_ms=10_000,
            # New partitions are heard of this soon, and not after five minutes.
            metadata_max_age_ms=METADATA_MAX_AGE_MS,
            fetch_max_bytes=per_fetch,
            max_partition_fetch_bytes=min(4 << 20, per_fetch),
        )
        self.holds = Holds(self.consumer, meter)
        self.starts = Starts(self.consumer, source)
        self._silence = Silence(self.consumer)
        self._refresh: Any = None
        self._handover = Handover(kafka, source.group, self._wanted)

    def subscribe(self, listener: ConsumerRebalanceListener) -> None:
        """Say what to read, and who hears of assignments; the polls do the joining."""
        if self._source.pattern is not None:
            self.consumer.subscribe(pattern=f"^(?:{self._source.pattern})$", listener=listener)
        else:
            self.consumer.subscribe(list(self._source.topics), listener=listener)
        if self._instance is not None:
            self._handover.start()

    def poll(self, most: int) -> dict[Any, list[Any]]:
        """Up to ``most`` records by partition, waiting a quarter of a second at most; errors are kafka-python's.

        With 0 all partitions are to be paused: the client takes no such number.
        """
        kafka_client.finish_join(self.consumer)
        if self._handover.take():
            self.consumer._coordinator.request_rejoin()
        self._watch_join()
        self._clear_line()
        polled: dict[Any, list[Any]] = self.consumer.poll(POLL_MS, max_records=max(1, min(most, MOST_RECORDS)))
        return polled

    def hear_of_topics(self, seconds: float, stop: threading.Event) -> bool:
        """Have the client ask for its topics anew; whether it was answered, within ``seconds``. If not, the next call waits on."""
        answer = self._refresh
        if answer is None:
            answer = self._refresh = self.consumer._cluster.request_update()
        deadline = Deadline(seconds)
        while not answer.is_done and not deadline.expired and not stop.is_set():
            stop.wait(0.02)
        if not answer.is_done or self._refresh is not answer:
            return False
        self._refresh = None
        return bool(answer.succeeded())

    def assigned_anew(self) -> None:
        """What was asked for an earlier assignment does not answer for this one; called on the client's I/O thread."""
        self.forget_fetches()
        self._refresh = None

    def reached(self) -> dict[TopicPartition, int]:
        """Where each partition goes on: past the last record, and past marks of transactions and gaps behind it."""
        states = self.consumer._subscription.assignment
        places = {TopicPartition(*tp): state.position for tp, state in list(states.items())}
        return {partition: at.offset for partition, at in places.items() if at is not None}

    def delivers(self, polled: Mapping[Any, object], room: int) -> bool:
        """Whether the client is to be trusted still, after a poll for ``room`` records that brought ``polled``."""
        if not room or not self.consumer._coordinator.stable():
            self._silence.excuse()
        elif polled:
            self._silence.heard()
        return not self._silence.broken(lambda: self.holds.known() | self.consumer.paused())

    def _wanted(self) -> set[TopicPartition]:
        topics = self.consumer.subscription() or ()
        numbers = {topic: self.consumer._cluster.partitions_for_topic(topic) or () for topic in topics}
        return {TopicPartition(topic, number) for topic, found in numbers.items() for number in found}

    def _clear_line(self) -> None:
        fetcher = self.consumer._fetcher
        if not fetcher._next_partition_records:
            fetcher._next_partition_records = None

    def _watch_join(self) -> None:
        coordinator = self.consumer._coordinator
        now = time.monotonic()
        if coordinator.stable():
            self._settled = now
        elif now - self._settled > UNSETTLED_S:
            self._settled = now
            LOG.warning(
                "not in the group yet %s",
                log.fields(
                    group=self._source.group, coordinator=coordinator.coordinator_id, joining=coordinator.rejoining
                ),
            )

    def membership(self, timeout_s: float) -> object:
        """The group metadata that fences a transaction, once the membership is stable.

        Raises:
            CommitError: it is not within ``timeout_s``.
        """
        deadline = Deadline(timeout_s)
        while True:
            try:
                found = self.consumer.group_metadata()
            except RuntimeError as error:  # the client is closed: it is being replaced
                raise CommitError(f"this reader joins group {self._source.group} anew") from error
            if found.state == MemberState.STABLE and found.generation_id >= 0 and found.member_id:
                stable: object = found
                return stable
            if deadline.expired:
                raise CommitError(f"this reader is not a stable member of group {self._source.group} at the moment")
            time.sleep(0.02)

    def committed(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, Position]:
        """What the group has committed, waiting for transactions that are being decided.

        Raises:
            RetryableError: the coordinator did not answer in time.
        """
        wanted = [KafkaTopicPartition(*partition) for partition in partitions]
        # A fetch that timed out stays cached, and would answer with what was true before the commit in question.
        self.forget_fetches()
        try:
            found = self.consumer._coordinator.fetch_committed_offsets(wanted, timeout_ms=5_000)
        except (kafka_errors.KafkaError, RuntimeError) as error:  # the latter: the client is closed, and being replaced
            raise RetryableError(f"the group's coordinator does not say what is committed: {error}") from error
        return {
            TopicPartition(*tp): read_position(entry.offset, entry.metadata)
            for tp, entry in found.items()
            if entry is not None and entry.offset >= 0
        }

    def forget_fetches(self) -> None:
        """Drop cached offset fetches, which would answer for an earlier assignment."""
        self.consumer._coordinator._offset_fetch_futures.clear()

    def leave(self) -> None:
        """Leave the group at once, also as a static member."""
        self._handover.stop()
        try:
            self.consumer.close(autocommit=False, timeout_ms=3_000)
        except kafka_errors.KafkaError as error:
            LOG.warning("left the group without a word %s", log.fields(error=type(error).__name__))
            # The client gives up where its coordinator fails, and its thread would go on for ever.
            with contextlib.suppress(kafka_errors.KafkaError):
                self.consumer._client.close()
        if self._instance is None:
            return
        # A static member's close keeps its partitions reserved until the session times out.
        try:
            with kafka_client.admin(self._kafka) as client:
                client.remove_group_members(self._source.group, [MemberToRemove(group_instance_id=self._instance)])
        except (RetryableError, EnvironmentFault) as error:
            LOG.warning("static member not removed %s", log.fields(error=error))
