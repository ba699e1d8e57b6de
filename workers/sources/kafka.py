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
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from kafka import TopicPartition as KafkaTopicPartition
from kafka import errors as kafka_errors
from kafka.consumer.subscription_state import ConsumerRebalanceListener

from workers import kafka_ends, log, metrics
from workers.deadline import Deadline
from workers.errors import CommitError, EnvironmentFault, RetryableError
from workers.records import Origin, Position, Record, TopicPartition
from workers.settings import KafkaSettings, LimitSettings, SourceSettings
from workers.sources.base import SourceListener
from workers.sources.kafka_commits import OffsetCommits
from workers.sources.kafka_member import GroupMember
from workers.sources.kafka_places import Places

LOG = log.get(__name__)

METADATA_WAIT_S = 5.0
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
        self._lock = threading.Lock()
        self._epoch = 0
        self._epochs: dict[TopicPartition, int] = {}
        self._unplaced: dict[TopicPartition, int] = {}
        self._places = Places(source)
        self._refresh: Any = None
        self._placed_all = time.monotonic()
        self._commits = OffsetCommits()
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
        self._listener = listener
        while not self._stop.is_set():
            try:
                self._joined = self._join()
            except EnvironmentFault as error:
                LOG.warning("not connected %s", log.fields(error=error))
                self.last_poll = time.monotonic()
                self._stop.wait(2.0)
                continue
            try:
                self._member.subscribe(self)
                while not self._stop.is_set() and self._turn():
                    pass
                self._commits.last(self._consumer, self._owned())
            finally:
                self._member.leave()
            if not self._stop.is_set():
                self._give_up(self._owned(), lost=True)
                self._meter.add(metrics.CLIENTS_REPLACED)

    def _turn(self) -> bool:
        """One poll, and what belongs between two; whether the client is still of use."""
        assert self._listener is not None
        self.last_poll = time.monotonic()
        try:
            self._renew()
            self._place()
            self._commits.soon(self._consumer, self._owned())
            room = self._throttle()
            polled = self._member.poll(room)
        except kafka_errors.NoOffsetForPartitionError:
            return True  # an assignment arrived inside the poll: the next turn places it
        except kafka_errors.OffsetOutOfRangeError as error:
            with contextlib.suppress(kafka_errors.KafkaError, ValueError):  # the next poll finds it again
                self._out_of_range(error)
            return True
        except kafka_errors.LogTruncationError as error:
            self._truncated(error)
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
        for tp, found in polled.items():
            partition = TopicPartition(*tp)
            with self._lock:
                epoch = self._epochs.get(partition)
                placed = partition not in self._unplaced
            if epoch is None or not placed:
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
        with self._lock:
            known = {partition: epoch for partition, epoch in self._epochs.items() if partition not in self._unplaced}
        for partition, epoch in known.items():
            if (offset := places.get(partition)) is not None:
                self._listener.reached(partition, epoch, offset)

    def _owned(self) -> set[TopicPartition]:
        with self._lock:
            return set(self._epochs)

    def _throttle(self) -> int:
        """Pause what must wait, resume the others; returns how many records there is room for."""
        assert self._listener is not None
        room = 0 if self._quiet.is_set() else self._listener.room()
        full = room == 0
        assigned = self._consumer.assignment()
        paused = self._consumer.paused()
        with self._lock:
            waiting = assigned if full else {tp for tp in assigned if TopicPartition(*tp) in self._unplaced}
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
        # A cached offset fetch of an earlier assignment would answer for the new one.
        self._member.forget_fetches()
        with self._lock:
            for tp in assigned:
                self._epoch += 1
                partition = TopicPartition(*tp)
                self._epochs[partition] = self._unplaced[partition] = self._epoch
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
        partitions = [TopicPartition(*tp) for tp in gone]
        with self._lock:
            for partition in partitions:
                self._epochs.pop(partition, None)
                self._unplaced.pop(partition, None)
            self._places.forget(partitions)
            self._commits.drop(partitions)
            count = len(self._epochs)
            assert self._listener is not None
            self._listener.revoked(partitions, lost=lost)
        self._meter.add(metrics.REBALANCES, kind="lost" if lost else "revoked")
        self._meter.set(metrics.PARTITIONS_ASSIGNED, count)

    def _renew(self) -> None:
        """What was read of a topic that was deleted meanwhile, and made anew, says nothing of the new one."""
        assert self._listener is not None
        if not (anew := self._member.starts.made_anew()):
            return
        with self._lock:
            partitions = [partition for tp in anew if (partition := TopicPartition(*tp)) in self._epochs]
            self._begin_again(partitions)
        LOG.warning("topic made anew %s", log.fields(partitions=",".join(map(str, partitions))))

    def _begin_again(self, partitions: Sequence[TopicPartition]) -> None:
        """End the assignments of partitions that stay ours, and have them placed anew; under the lock."""
        assert self._listener is not None
        for partition in partitions:
            self._epoch += 1
            self._epochs[partition] = self._unplaced[partition] = self._epoch
        self._places.forget(partitions)
        self._commits.drop(partitions)
        self._listener.revoked(partitions, lost=True)

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
            if position is None:
                continue  # it is paused, and asked about again after the next poll
            with self._lock:
                if self._unplaced.get(partition) != epoch:
                    continue
                del self._unplaced[partition]
                self._places.forget([partition])
                count = len(self._epochs)
                self._listener.assigned(partition, epoch, position)
            self._meter.set(metrics.PARTITIONS_ASSIGNED, count)
            LOG.info("assigned %s", log.fields(partition=partition, offset=position.offset))

    def _looked_up(self) -> tuple[dict[TopicPartition, int], set[str]]:
        """Assignments that have no place yet, after a try to know their positions; and topics that nothing may be read of yet.

        What fails here is tried again after the next poll: without polls the group would go on without us.
        """
        with self._lock:
            unplaced = dict(self._unplaced)
        topics, early, failure = {partition.topic for partition in unplaced}, set[str](), ""
        try:
            if self._places.unknown(unplaced) and self._heard_of_topics():
                # What the client knew may be older than the topic that this assignment is of.
                self._renew()
                with self._lock:
                    unplaced = dict(self._unplaced)
                self._places.look_up(unplaced, self.committed, self._member.starts, self._consumer)
            early = self._member.starts.unfinished(topics)
        except kafka_errors.AuthorizationError:
            raise
        except (kafka_errors.KafkaError, RetryableError) as error:
            early, failure = topics, type(error).__name__
        waiting = self._places.unknown(unplaced)
        now = time.monotonic()
        if not waiting and not failure:
            self._placed_all = now
        elif now - self._placed_all > PLACE_S:
            self._placed_all = now
            LOG.warning(
                "no place yet %s", log.fields(partitions=",".join(map(str, waiting or unplaced)), error=failure)
            )
        return unplaced, early

    def _heard_of_topics(self) -> bool:
        """Whether the client has heard of topics since the last assignment; it has a moment for it."""
        if self._refresh is None:
            self._refresh = self._consumer._cluster.request_update()
        self._wait_for(self._refresh, 1.0)
        if not self._refresh.is_done:
            return False
        heard, self._refresh = self._refresh.succeeded(), None
        return bool(heard)

    def _out_of_range(self, error: BaseException) -> None:
        """The log no longer has what comes next, or ends before it: go on where it has something, and say what is gone."""
        assert self._listener is not None
        self._renew()
        asked: Mapping[Any, int] = error.args[0] if error.args and isinstance(error.args[0], dict) else {}
        for tp, offset in asked.items():
            partition = TopicPartition(*tp)
            with self._lock:
                if partition in self._unplaced:
                    continue  # the client chose a position before we did; ours comes next, and fails again if it must
            if self._member.reached().get(partition) != offset:
                continue  # a fetch that was out before the seek fails a second time
            begin = kafka_ends.begins(self._consumer, [tp])[tp]
            end = kafka_ends.ends(self._consumer, [tp])[tp]
            if offset > end:
                self._go_back(partition, offset, end)
            elif offset < begin:
                LOG.error(
                    "offset out of range %s",
                    log.fields(partition=partition, wanted=offset, continues_at=begin, records_gone=begin - offset),
                )
                self._consumer.seek(tp, begin)
                self._meter.add(metrics.OFFSETS_SKIPPED, begin - offset)
                with self._lock:
                    if partition in self._epochs and partition not in self._unplaced:
                        self._listener.skipped(partition, begin)

    def _truncated(self, error: Any) -> None:
        """The client was told that the log is another one from some offset on than the one it has read. It says so once."""
        places = self._member.reached()
        for tp, divergent in error.divergent_offsets.items():
            partition = TopicPartition(*tp)
            if (offset := places.get(partition)) is not None:
                self._go_back(partition, offset, None if divergent is None else divergent.offset)

    def _go_back(self, partition: TopicPartition, offset: int, target: int | None) -> None:
        """The log has lost its end, by an unclean election of a leader: what it has from ``target`` on was never read.

        None: nobody has said where it differs; it is read on from its end, where that lies before ``offset``.

        The outputs keep what they have of the lost records; those that are read from there on have offsets that were seen before,
        so positions go back with the source, all but those of files, whose names are offsets.
        """
        self._await_metadata()
        self._renew()
        with self._lock:
            if partition not in self._epochs or partition in self._unplaced:
                return  # not ours any more; or its topic was made anew
            self._begin_again([partition])
            self._places.cut(partition, offset if target is None else min(offset, target), ends=target is None)
        self._meter.add(metrics.LOGS_CUT)
        place = "end" if target is None else target
        LOG.error("the log lost its end %s", log.fields(partition=partition, read_up_to=offset, continues_at=place))

    def _await_metadata(self) -> None:
        """Hear of topics that were made anew, for some seconds at most."""
        self._wait_for(self._consumer._cluster.request_update(), METADATA_WAIT_S)

    def _wait_for(self, answer: Any, seconds: float) -> None:
        deadline = Deadline(seconds)
        while not answer.is_done and not deadline.expired and not self._stop.is_set():
            self._stop.wait(0.02)

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
        with self._lock:
            self._begin_again([one for one in partitions if one in self._epochs and one not in self._unplaced])

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
