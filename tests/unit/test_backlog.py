"""What a reader counts of its flow and its backlog, by a clock and brokers of our own."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from tests.fakes import record
from tests.integration.pipeline import wait_until
from workers import metrics
from workers.backlog import Backlog
from workers.errors import RetryableError
from workers.flow import Flow
from workers.intake import Intake
from workers.records import Origin, Position, TopicPartition
from workers.settings import KafkaSettings, LimitSettings

A, B = TopicPartition("t", 0), TopicPartition("t", 1)


class Brokers:
    """Where partitions end; or nobody, for a while."""

    def __init__(self, ends: dict[TopicPartition, int]) -> None:
        self.known = ends
        self.down = 0
        self.asked: list[list[TopicPartition]] = []

    @contextlib.contextmanager
    def connect(self, _: KafkaSettings) -> Iterator[Any]:
        if self.down:
            self.down -= 1
            raise RetryableError("nobody there") if self.down % 2 else ValueError("a fault of the client")
        yield self

    def ends(self, _: Any, partitions: Any) -> dict[TopicPartition, int]:
        self.asked.append(list(partitions))
        return {partition: self.known[partition] for partition in partitions}


def watch(brokers: Brokers, progress: Any, meter: metrics.Metrics) -> Backlog:
    return Backlog(KafkaSettings(), progress, meter, connect=brokers.connect, ends=brokers.ends)


def test_backlog_is_what_is_held_and_what_is_behind_it() -> None:
    meter, positions, brokers = metrics.Metrics(), {A: 10, B: 5}, Brokers({A: 100, B: 5})
    backlog = watch(brokers, lambda: (positions, 7), meter)
    assert backlog.age_s == math.inf
    backlog.look(brokers)
    assert backlog.age_s < 60
    assert meter.value(metrics.BACKLOG_RECORDS) == 7 + 90
    assert meter.value(metrics.RECORDS_ARRIVED) == 0, "what was there before did not arrive now"
    brokers.known = {A: 130, B: 6}
    positions[A] = 130
    backlog.look(brokers)
    assert meter.value(metrics.BACKLOG_RECORDS) == 7 + 0 + 1
    assert meter.value(metrics.RECORDS_ARRIVED) == 31


def test_partitions_that_come_and_go_bring_no_arrivals() -> None:
    meter, positions, brokers = metrics.Metrics(), {A: 0}, Brokers({A: 10, B: 1_000_000})
    backlog = watch(brokers, lambda: (dict(positions), 0), meter)
    backlog.look(brokers)
    positions[B] = 999_990
    backlog.look(brokers)
    assert meter.value(metrics.RECORDS_ARRIVED) == 0
    assert meter.value(metrics.BACKLOG_RECORDS) == 20
    del positions[A]
    brokers.known = {A: 50, B: 1_000_003}
    backlog.look(brokers)
    assert (meter.value(metrics.RECORDS_ARRIVED), meter.value(metrics.BACKLOG_RECORDS)) == (3, 13)
    brokers.known = {B: 0}  # the topic was made anew
    backlog.look(brokers)
    assert (meter.value(metrics.RECORDS_ARRIVED), meter.value(metrics.BACKLOG_RECORDS)) == (3, 0)


def test_a_partition_that_is_lost_while_the_brokers_are_asked_does_not_count() -> None:
    meter, brokers = metrics.Metrics(), Brokers({A: 10, B: 10})
    looks = iter([({A: 0, B: 0}, 0), ({A: 0}, 0)])
    watch(brokers, lambda: next(looks), meter).look(brokers)
    assert meter.value(metrics.BACKLOG_RECORDS) == 10


def test_brokers_that_are_out_of_reach_are_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.backlog.PERIOD_S", 0.01)
    meter, brokers, stop = metrics.Metrics(), Brokers({A: 10}), threading.Event()
    brokers.down = 3
    backlog = watch(brokers, lambda: ({A: 0}, 0), meter)
    thread = threading.Thread(target=backlog.run, args=(stop,))
    thread.start()
    try:
        wait_until(lambda: meter.value(metrics.BACKLOG_RECORDS) == 10, 30, lambda: str(meter.snapshot()))
        assert brokers.down == 0
    finally:
        stop.set()
        thread.join(30)
    assert not thread.is_alive()


# ---- flow


def test_calls_are_counted_with_their_time() -> None:
    now, meter = [0.0], metrics.Metrics()
    flow = Flow(meter, lambda: now[0])
    for at, calls in ((1.0, 2), (4.0, 2), (5.0, 3), (7.0, 0), (20.0, 1), (20.5, 1)):
        now[0] = at
        flow.calls(calls)
    assert meter.value(metrics.CALL_SECONDS) == 2 * 3 + 2 * 1 + 3 * 2 + 0.5
    assert meter.value(metrics.CALLS_IN_FLIGHT) == 1


def test_only_many_records_at_once_show_a_readers_speed() -> None:
    meter = metrics.Metrics()
    flow = Flow(meter)
    flow.prepared(3, 20, 1.0)
    assert meter.value(metrics.PREPARING_SECONDS) == 0
    flow.prepared(100, 990, 0.5)
    assert (meter.value(metrics.RECORDS_PREPARED), meter.value(metrics.TOKENS_PREPARED)) == (103, 1010)
    assert (meter.value(metrics.PREPARED_AT_SPEED), meter.value(metrics.PREPARING_SECONDS)) == (990, 0.5)


def test_what_holds_no_record_is_not_left_to_do():
    meter = metrics.Metrics()
    intake = Intake(["t"], [], LimitSettings(), meter)
    intake.assigned(A, 1, Position(0, {"t": 0}))
    intake.received([replace(record(n), origin=Origin(*A, n, 1)) for n in range(3)])
    assert intake.progress() == ({A: 3}, 3)
    intake.reached(A, 1, 5)
    assert intake.progress() == ({A: 5}, 3)
    intake.reached(A, 0, 9)
    assert intake.progress() == ({A: 3}, 3), "an assignment that has ended says nothing of this one"
    intake.revoked([A], lost=False)
    intake.assigned(A, 1, Position(0, {"t": 0}))
    assert intake.progress() == ({A: 0}, 0)
    intake.close()
