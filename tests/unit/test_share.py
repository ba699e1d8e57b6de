"""A sender's share of the encoders: its part for certain, and more while that makes nobody wait longer."""

from __future__ import annotations

import heapq
import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.share import Share

IN_FLIGHT = 2
CALL_S, WAY_S = 0.1, 0.008


class Line:
    """Encoders of which each has a line, and senders that send as much as they may or one call now and then; in seconds.

    A call joins the shorter of two lines, as Serve's router has it.
    """

    def __init__(self, encoders: int, eager: set[int], senders: int, seed: int = 0) -> None:
        self.random = random.Random(seed)
        self.free_at = [0.0] * encoders
        self.line = [0] * encoders
        self.shares = [Share(IN_FLIGHT) for _ in range(senders)]
        self.out = [0] * senders
        self.eager = eager
        self.now = self.busy_s = 0.0
        self.waits: dict[int, list[float]] = {sender: [] for sender in range(senders)}
        self._number = itertools.count()
        self._answers: list[tuple[float, int, int, int, float, float]] = []

    def limit(self, sender: int) -> int:
        return self.shares[sender].limit(len(self.line), len(self.shares))

    def run(self, seconds: float) -> float:
        """What share of the encoders' time was computing."""
        end, before, started = self.now + seconds, self.busy_s, self.now
        while self.now < end:
            for sender in range(len(self.shares)):
                while self.out[sender] < (self.limit(sender) if sender in self.eager else 1):
                    self._send(sender)
            self._answer()
        return (self.busy_s - before) / (len(self.line) * (self.now - started))

    def _send(self, sender: int) -> None:
        one, other = self.random.sample(range(len(self.line)), 2)
        to = one if self.line[one] <= self.line[other] else other
        computed = max(0.01, self.random.gauss(CALL_S, 0.2 * CALL_S))
        self.line[to] += 1
        self.out[sender] += 1
        self.free_at[to] = max(self.now, self.free_at[to]) + computed
        self.busy_s += computed
        answer = (self.free_at[to] + WAY_S, next(self._number), sender, to, self.now, computed)
        heapq.heappush(self._answers, answer)

    def _answer(self) -> None:
        self.now, _, sender, at, since, computed = heapq.heappop(self._answers)
        used = self.out[sender] >= self.limit(sender)
        self.line[at] -= 1
        self.out[sender] -= 1
        took = self.now - since
        self.waits[sender].append(took / computed)
        self.shares[sender].answered(took, computed, used=used)


def test_one_sender_of_many_fills_all_encoders_while_the_others_have_little():
    line = Line(8, {0}, 4)
    line.run(5)
    assert line.limit(0) >= 15, "of its part of 4"
    assert line.run(20) > 0.95


def test_who_has_something_to_send_again_has_its_part_at_once_and_the_other_gives_way():
    line = Line(8, {0}, 4)
    line.run(10)
    line.eager |= {1, 2, 3}
    assert line.limit(1) >= 4
    line.run(3)
    line.waits[1].clear()
    assert line.run(20) > 0.97
    limits = [line.limit(sender) for sender in range(4)]
    assert min(limits) >= 4
    assert sum(limits) <= 40, "of 64 that they would have without giving way"
    assert sorted(line.waits[1])[len(line.waits[1]) // 2] < 3.5


@pytest.mark.parametrize(
    ("encoders", "senders", "part", "most"), [(8, 1, 16, 16), (1, 1, 2, 2), (0, 3, 1, 1), (1, 4, 1, 2)]
)
def test_who_is_alone_has_all_from_the_start_and_nobody_has_more(encoders: int, senders: int, part: int, most: int):
    share = Share(IN_FLIGHT)
    assert share.limit(encoders, senders) == part
    for _ in range(50):
        share.answered(CALL_S, CALL_S, used=True)
    assert share.limit(encoders, senders) == most


def test_a_limit_that_is_not_used_up_does_not_rise():
    share = Share(IN_FLIGHT)
    for _ in range(50):
        share.answered(CALL_S, CALL_S, used=False)
    assert share.limit(8, 4) == 4


def test_encoders_that_go_take_their_places_with_them():
    share = Share(IN_FLIGHT)
    for _ in range(50):
        share.limit(8, 4)
        share.answered(CALL_S, CALL_S, used=True)
    assert share.limit(8, 4) == 16
    assert share.limit(2, 4) == 4
    assert share.limit(8, 4) == 7, "what had been found was lost with them; their part is there at once"


@given(
    st.integers(0, 300),
    st.integers(0, 300),
    st.lists(st.tuples(st.floats(0, 100), st.floats(0, 100), st.booleans()), max_size=50),
)
@pytest.mark.filterwarnings("error")
def test_a_limit_is_between_the_part_and_all(encoders: int, senders: int, answers: list[tuple[float, float, bool]]):
    share = Share(IN_FLIGHT)
    for took, computed, used in answers:
        share.answered(took, computed, used=used)
        limit = share.limit(encoders, senders)
        assert max(1, IN_FLIGHT * encoders // max(1, senders)) <= limit <= max(1, IN_FLIGHT * encoders)
