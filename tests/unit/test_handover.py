"""When a static member has its group settle anew: partitions that nobody has, twice in a row, and not for ever."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import pytest

from workers.errors import RetryableError
from workers.kafka_groups import Group, Member
from workers.records import TopicPartition
from workers.settings import KafkaSettings
from workers.sources import kafka_handover
from workers.sources.kafka_handover import MOST_ROUNDS, Handover

P = [TopicPartition("documents", number) for number in range(4)]
WHOLE = Group("g", "Stable", (Member("a", "h", tuple(P[:2])), Member("b", "h", tuple(P[2:]))))
HALF = Group("g", "Stable", (Member("a", "h", tuple(P[:2])), Member("b", "h")))
THIRD = Group("g", "Stable", (Member("a", "h", tuple(P[:3])), Member("b", "h")))
MOVING = Group("g", "PreparingRebalance", (Member("a", "h"), Member("b", "h")))


class Looks:
    """What each look at the group finds; the last one is found for ever."""

    def __init__(self, *found: Group | Exception) -> None:
        self.found = list(found)
        self.count = 0

    def __call__(self, client: object, group: str) -> Group:
        self.count += 1
        now = self.found.pop(0) if len(self.found) > 1 else self.found[0]
        if isinstance(now, Exception):
            raise now
        return now


@pytest.fixture
def rounds(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Runs a handover over looks, and returns how many rejoins were due; it ends by itself."""
    monkeypatch.setattr(kafka_handover, "LOOK_S", 0.002)
    monkeypatch.setattr(kafka_handover, "MOST_LOOK_S", 0.004)
    monkeypatch.setattr(kafka_handover.kafka_client, "admin", lambda _: contextlib.nullcontext())
    made: list[Handover] = []

    def run(looks: Looks, wanted: set[TopicPartition] | None = None) -> int:
        handover = Handover(KafkaSettings(), "g", lambda: set(P) if wanted is None else wanted)
        made.append(handover)
        deadline = time.monotonic() + 30

        def look(client: object, group: str) -> Group:
            while handover._due.is_set() and time.monotonic() < deadline:
                time.sleep(0.0005)  # two that are due are one, if nobody takes the first in time
            return looks(client, group)

        monkeypatch.setattr(kafka_handover.kafka_groups, "describe", look)
        handover.start()
        due = 0
        while time.monotonic() < deadline and (handover._thread.is_alive() or handover._due.is_set()):
            due += handover.take()
            time.sleep(0.0005)
            if looks.count > 60:
                break
        return due

    yield run
    for handover in made:
        handover.stop()
        handover._thread.join(5)
        assert not handover._thread.is_alive()


def test_a_whole_group_is_left_alone(rounds: Any):
    looks = Looks(WHOLE)
    assert rounds(looks) == 0
    assert looks.count == 1


def test_what_nobody_has_twice_in_a_row_is_joined_for(rounds: Any):
    assert rounds(Looks(HALF, HALF, WHOLE)) == 1


@pytest.mark.parametrize("between", [MOVING, THIRD, RetryableError("away"), KeyError("member")])
def test_a_group_that_is_seen_on_its_way_is_not_disturbed(rounds: Any, between: Group | Exception):
    assert rounds(Looks(HALF, between, HALF, between, WHOLE)) == 0


def test_a_group_that_something_else_keeps_from_being_whole_is_told_of_and_left_alone(
    rounds: Any, caplog: pytest.LogCaptureFixture
):
    assert rounds(Looks(HALF)) == MOST_ROUNDS
    assert "partitions without an owner group=g partitions=documents/2,documents/3" in caplog.text


def test_where_nothing_is_known_to_be_wanted_it_looks_on(rounds: Any):
    looks = Looks(HALF)
    assert rounds(looks, wanted=set()) == 0
    assert looks.count > 60, "and never ends"
