"""Logs that do not have what comes next: retention took it, an election lost it, or the topic is another one.

Comes in: what the client says of it. Goes out: assignments that begin anew, or go on behind the gap; metrics and log lines that
say what is gone. Never here: where an assignment begins (``kafka_places``).
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from workers import kafka_ends, log, metrics
from workers.records import TopicPartition
from workers.sources.kafka_assignments import Assignments
from workers.sources.kafka_member import GroupMember

LOG = log.get(__name__)

METADATA_WAIT_S = 5.0


class Losses:
    """For one member. Belongs to the thread that polls; errors are kafka-python's."""

    def __init__(self, member: GroupMember, ours: Assignments, meter: metrics.Metrics, stop: threading.Event) -> None:
        """Asks nothing yet."""
        self._member = member
        self._ours = ours
        self._meter = meter
        self._stop = stop

    def renew(self) -> None:
        """What was read of a topic that was deleted meanwhile, and made anew, says nothing of the new one."""
        if anew := self._ours.begin_again(TopicPartition(*tp) for tp in self._member.starts.made_anew()):
            LOG.warning("topic made anew %s", log.fields(partitions=",".join(map(str, anew))))

    def out_of_range(self, error: BaseException) -> None:
        """The log no longer has what comes next, or ends before it: go on where it has something, and say what is gone."""
        self.renew()
        consumer = self._member.consumer
        asked: Mapping[Any, int] = error.args[0] if error.args and isinstance(error.args[0], dict) else {}
        for tp, offset in asked.items():
            partition = TopicPartition(*tp)
            if partition in self._ours.unplaced:
                continue  # the client chose a position before we did; ours comes next, and fails again if it must
            if self._member.reached().get(partition) != offset:
                continue  # a fetch that was out before the seek fails a second time
            begin, end = kafka_ends.bounds(consumer, tp)
            if offset > end:
                self._go_back(partition, offset, end)
            elif offset < begin:
                LOG.error(
                    "offset out of range %s",
                    log.fields(partition=partition, wanted=offset, continues_at=begin, records_gone=begin - offset),
                )
                consumer.seek(tp, begin)
                self._meter.add(metrics.OFFSETS_SKIPPED, begin - offset)
                self._ours.skip(partition, begin)

    def truncated(self, error: Any) -> None:
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
        self._member.hear_of_topics(METADATA_WAIT_S, self._stop)
        self.renew()
        if not self._ours.cut(partition, offset if target is None else min(offset, target), ends=target is None):
            return  # not ours any more; or its topic was made anew
        self._meter.add(metrics.LOGS_CUT)
        place = "end" if target is None else target
        LOG.error("the log lost its end %s", log.fields(partition=partition, read_up_to=offset, continues_at=place))
