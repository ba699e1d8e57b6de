"""Records from a Kafka consumer group.

Comes in: topics or a pattern, a group, a start policy. Goes out: records per partition, each with the epoch of the
assignment it was read under. Never here: decoding, transactions, or anything slow: this thread polls.

Assignment is cooperative, and every assignment's position is set by us: the client keeps stale positions and cached offsets.
What else the client needs stands in ``kafka_member``.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from kafka import TopicPartition as KafkaTopicPartition
from kafka import errors as kafka_errors
from kafka.consumer.subscription_state import ConsumerRebalanceListener

from workers import log, metrics
from workers.errors import CommitError, EnvironmentFault, RetryableError
from workers.records import Origin, Position, Record, TopicPartition
from workers.settings import KafkaSettings, LimitSettings, SourceSettings
from workers.sources.base import SourceListener
from workers.sources.kafka_assignments import Assignments
from workers.sources.kafka_commits import OffsetCommits
from workers.sources.kafka_losses import Losses
from workers.sources.kafka_member import GroupMember
from workers.sources.kafka_places import Places

LOG = log.get(__name__)

# For the client's answer, before the next poll.
HEAR_S = 0.3
# Positions that are not to be had now are asked for as often.
RETRY_S = 1.0
# A partition that has no place for so long is spoken of, as often.
PLACE_S = 10.0


class KafkaSource(ConsumerRebalanceListener):  # type: ignore[misc]
    """A member of a consumer group. Supports exactly-once, because its membership fences a sink's transactions."""

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
        """``group_instance_id`` makes the member static: it is removed from the group when :meth:`run` ends by a stop."""
        self._settings = source
        self._join: Callable[[], GroupMember] = lambda: GroupMember(
            source, kafka, limits, client_id=client_id, group_instance_id=group_instance_id, meter=meter
        )
        self._meter = meter
        self._joined: GroupMember | None = None
        self._listener: SourceListener | None = None
        self._places, self._commits = Places(source), OffsetCommits()
        self._ours = Assignments(self._places, self._commits)
        self._looked_for: dict[TopicPartition, int] = {}
        self._looked = self._placed_all = time.monotonic()
        self._quiet = threading.Event()
        self._stop = threading.Event()
        self.last_poll = time.monotonic()

    @property
    def _member(self) -> GroupMember:
        assert self._joined is not None  # who comes here comes after run has connected
        return self._joined

    @property
    def _consumer(self) -> Any:
        return self._member.consumer

    # ---- the poll thread

    def run(self, listener: SourceListener) -> None:
        """Join, read until :meth:`stop`, leave. Brokers that are out of reach are waited for.

        Raises:
            EnvironmentFault: the brokers refuse us.
        """
        self._listener = self._ours.listener = listener
        while not self._stop.is_set():
            try:
                self._joined = self._join()
            except EnvironmentFault as error:
                LOG.warning("not connected %s", log.fields(error=error))
                self.last_poll = time.monotonic()
                self._stop.wait(2.0)
                continue
            try:
                self._losses = Losses(self._member, self._ours, self._meter, self._stop)
                self._member.subscribe(self)
                while not self._stop.is_set() and self._turn():
                    pass
                self._commits.last(self._consumer, self._ours.owned)
            finally:
                self._member.leave()
            if not self._stop.is_set():
                self._give_up(self._ours.owned, lost=True)
                self._meter.add(metrics.CLIENTS_REPLACED)

    def _turn(self) -> bool:
        """One poll, and what belongs between two; whether the client is still of use."""
        assert self._listener is not None
        self.last_poll = time.monotonic()
        try:
            self._losses.renew()
            self._place()
            self._commits.soon(self._consumer, self._ours.owned)
            room = self._throttle()
            polled = self._member.poll(room)
        except kafka_errors.NoOffsetForPartitionError:
            return True  # an assignment arrived inside the poll: the next turn places it
        except kafka_errors.OffsetOutOfRangeError as error:
            with contextlib.suppress(kafka_errors.KafkaError, ValueError):  # the next poll finds it again
                self._losses.out_of_range(error)
            return True
        except kafka_errors.LogTruncationError as error:
            self._losses.truncated(error)
            return True
        except kafka_errors.AuthorizationError as error:
            raise EnvironmentFault(
                f"Kafka refuses to let group {self._settings.group} read: {error}; grant Read on the topics and the group"
            ) from error
        except (kafka_errors.KafkaError, RetryableError, ValueError, KeyError) as error:
            # ValueError, KeyError: a partition went away between looking and seeking or pausing. Everything else the
            # client retries itself.
            LOG.warning("poll %s", log.fields(error=type(error).__name__))
            self._stop.wait(0.2)
            return True
        epochs = self._ours.placed
        for tp, found in polled.items():
            partition = TopicPartition(*tp)
            if (epoch := epochs.get(partition)) is None:
                continue
            self._meter.add(metrics.RECORDS_READ, len(found), topic=partition.topic)
            self._listener.received([_record(raw, epoch) for raw in found])
        if not polled and room:
            self._say_where()
        return self._member.delivers(polled, room)

    def _say_where(self) -> None:
        """Nothing came, so what is between the last record and where the client stands is none."""
        assert self._listener is not None
        places = self._member.reached()
        for partition, epoch in self._ours.placed.items():
            if (offset := places.get(partition)) is not None:
                self._listener.reached(partition, epoch, offset)

    def _throttle(self) -> int:
        """Pause what must wait, resume the others; returns how many records there is room for."""
        assert self._listener is not None
        room = 0 if self._quiet.is_set() else self._listener.room()
        full = room == 0
        assigned = self._consumer.assignment()
        paused = self._consumer.paused()
        unplaced = self._ours.unplaced
        waiting = assigned if full else {tp for tp in assigned if TopicPartition(*tp) in unplaced}
        waiting = waiting | (self._member.holds.now() & assigned)
        if waiting - paused:
            self._consumer.pause(*(waiting - paused))
        if paused - waiting:
            self._consumer.resume(*(paused - waiting))
        self._meter.set(metrics.PARTITIONS_PAUSED, len(assigned) if full else 0)
        return room

    # ---- assignment

    def on_partitions_assigned(self, assigned: Iterable[Any]) -> None:
        """Called on the client's I/O thread: memory only. The poll thread places the partitions next."""
        self._member.assigned_anew()
        self._ours.add(TopicPartition(*tp) for tp in assigned)
        self._meter.add(metrics.REBALANCES, kind="assigned")

    def on_partitions_revoked(self, revoked: Iterable[Any]) -> None:
        """Called on the client's I/O thread. What is in flight is given up, the next owner reads it again."""
        assert self._listener is not None
        self._listener.parting([TopicPartition(*tp) for tp in revoked])
        self._give_up(revoked, lost=False)

    def on_partitions_lost(self, lost: Iterable[Any]) -> None:
        """The group went on without us."""
        self._give_up(lost, lost=True)

    def _give_up(self, gone: Iterable[Any], *, lost: bool) -> None:
        self._ours.drop((TopicPartition(*tp) for tp in gone), lost=lost)
        self._meter.add(metrics.REBALANCES, kind="lost" if lost else "revoked")
        self._meter.set(metrics.PARTITIONS_ASSIGNED, len(self._ours.owned))

    def _place(self) -> None:
        """Give every newly assigned partition its position: what is committed, else what the start policy says."""
        unplaced, early = self._looked_up()
        for partition, epoch in unplaced.items():
            assert self._listener is not None
            committed = self._places.of(partition, epoch)
            position = None
            if committed is not None and partition.topic not in early:
                position = self._listener.place(partition, epoch, committed)
            # Anywhere, while it is not known where: a partition without a position would end the poll of all others.
            self._consumer.seek(KafkaTopicPartition(*partition), (position or committed or Position(0)).offset)
            if position is None or not self._ours.place(partition, epoch, position):
                continue  # it is paused, and asked about again after the next poll; or it is not ours any more
            self._meter.set(metrics.PARTITIONS_ASSIGNED, len(self._ours.owned))
            LOG.info("assigned %s", log.fields(partition=partition, offset=position.offset))

    def _looked_up(self) -> tuple[dict[TopicPartition, int], set[str]]:
        """Assignments that have no place yet, after a try to know their positions; and topics that nothing may be read of yet.

        What fails here is tried again, a second later, between polls: without those the group would go on without us.
        """
        if not self._ours.unplaced:
            self._placed_all = time.monotonic()
            return {}, set()
        failure = ""
        try:
            self._look_up()
        except kafka_errors.AuthorizationError:
            raise
        except (kafka_errors.KafkaError, RetryableError) as error:
            failure = type(error).__name__
        unplaced = self._ours.unplaced
        topics = {partition.topic for partition in unplaced}
        try:
            early = self._member.starts.unfinished(topics)
        except (kafka_errors.KafkaError, RetryableError) as error:
            early, failure = topics, type(error).__name__
        waiting, now = self._places.unknown(unplaced), time.monotonic()
        if not waiting and not failure:
            self._placed_all = now
        elif now - self._placed_all > PLACE_S:
            self._placed_all = now
            names = ",".join(map(str, waiting or unplaced))
            LOG.warning("no place yet %s", log.fields(partitions=names, error=failure or "no leader"))
        return unplaced, early

    def _look_up(self) -> None:
        unknown = self._places.unknown(self._ours.unplaced)
        new = unknown.items() - self._looked_for.items()
        if not new and (not unknown or time.monotonic() - self._looked < RETRY_S):
            return
        if not self._member.hear_of_topics(HEAR_S, self._stop):
            return
        # What the client knew may be older than the topic that an assignment is of.
        self._losses.renew()
        unplaced = self._ours.unplaced
        self._looked_for, self._looked = unplaced, time.monotonic()
        self._places.look_up(unplaced, self.committed, self._member.starts, self._consumer)

    # ---- other threads

    def quiesce(self) -> None:
        """Read no more; polling goes on, which keeps the membership that the last commits need."""
        self._quiet.set()

    def stop(self) -> None:
        """End :meth:`run` after the current poll."""
        self._stop.set()

    def membership(self, timeout_s: float) -> object:
        """The group metadata that fences a transaction, once the membership is stable."""
        if (member := self._joined) is None:
            raise CommitError(f"this reader is not a stable member of group {self._settings.group} yet")
        return member.membership(timeout_s)

    def committed(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, Position]:
        """What the group has committed, waiting for transactions that are being decided."""
        if (member := self._joined) is None:
            raise RetryableError(f"this reader has not joined group {self._settings.group} yet")
        return member.committed(partitions)

    def begin_anew(self, partitions: Iterable[TopicPartition]) -> None:
        """End the assignments of partitions for which somebody else commits; those that are ours still begin anew."""
        self._ours.give_up_places(partitions)

    def commit(self, positions: Mapping[TopicPartition, Position]) -> None:
        """Have the poll thread commit ``positions`` between two polls; a refusal surfaces at the next call."""
        self._commits.add(positions)


def _record(raw: Any, epoch: int) -> Record:
    return Record(
        Origin(raw.topic, raw.partition, raw.offset, epoch),
        raw.key,
        raw.value,
        raw.timestamp if raw.timestamp is not None else -1,
        tuple(raw.headers or ()),
    )
