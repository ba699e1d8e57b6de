"""One sender's calls under way: the shortest line first, nobody counted twice, and senders side by side."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.lines import GOLDEN, TAKEN_S, Lines

MEMBERS = "abcd"


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def lines_of(members: str = MEMBERS, start: float = 0.0, clock: Clock | None = None) -> Lines[str]:
    made: Lines[str] = Lines(start, clock or Clock())
    made.renew(members)
    return made


def lengths(lines: Lines[str], members: str = MEMBERS) -> list[int]:
    return [lines.length(member) for member in members]


def test_the_shortest_line_comes_first_and_full_ones_not_at_all():
    lines = lines_of()
    for call, member in enumerate("aabbbc"):
        lines.sent(call, member)
    assert list(lines.by_length(3)) == ["d", "c", "a"]
    assert list(lines.by_length(1)) == ["d"]


def test_where_nobody_is_there_nobody_comes():
    assert list(Lines[str](0.3).by_length(5)) == []


@pytest.mark.parametrize(("start", "first"), [(0.0, "a"), (0.3, "b"), (0.5, "c"), (0.99, "d"), (1.0, "a"), (1.6, "c")])
def test_among_equals_each_sender_begins_elsewhere(start: float, first: str):
    assert next(lines_of(start=start).by_length(2)) == first


def test_a_call_counts_from_when_it_is_taken_and_once():
    lines = lines_of()
    lines.take("call", "a")
    assert lengths(lines) == [1, 0, 0, 0]
    lines.sent("call", "a")
    assert lengths(lines) == [1, 0, 0, 0]
    lines.ended("a")
    assert lengths(lines) == [0, 0, 0, 0]


def test_a_call_that_goes_to_somebody_else_counts_there():
    lines = lines_of()
    lines.take("call", "a")
    lines.sent("call", "b")
    assert lengths(lines) == [0, 1, 0, 0]


def test_a_call_that_is_taken_again_counts_where_it_was_taken_last():
    lines = lines_of()
    lines.take("call", "a")
    lines.take("call", "c")
    assert lengths(lines) == [0, 0, 1, 0]
    lines.give_back("call")
    lines.give_back("call")
    assert lengths(lines) == [0, 0, 0, 0]


def test_a_call_that_is_never_sent_is_given_back_with_time():
    clock = Clock()
    lines = lines_of(clock=clock)
    lines.take("gone", "a")
    clock.now += TAKEN_S + 0.01
    lines.take("next", "b")
    assert lengths(lines) == [0, 1, 0, 0]


def test_who_stays_keeps_its_line_and_who_comes_begins_with_none():
    lines = lines_of()
    lines.sent(1, "b")
    lines.sent(2, "d")
    lines.renew("bce")
    assert lengths(lines, "bce") == [1, 0, 0]
    lines.ended("d")  # its answer comes, or its end
    lines.renew("bcde")
    assert lengths(lines, "bcde") == [1, 0, 0, 0]
    assert list(lines.by_length(9)) == ["c", "d", "e", "b"]


@given(
    st.lists(st.tuples(st.sampled_from(["take", "sent", "ended", "back"]), st.integers(0, 5), st.sampled_from(MEMBERS)))
)
def test_no_line_is_shorter_than_none(steps: list[tuple[str, int, str]]):
    lines = lines_of()
    for step, call, member in steps:
        match step:
            case "take":
                lines.take(call, member)
            case "sent":
                lines.sent(call, member)
            case "ended":
                lines.ended(member)
            case _:
                lines.give_back(call)
        assert min(lengths(lines)) >= 0
        order = [lines.length(member) for member in lines.by_length(100)]
        assert order == sorted(order)
        assert len(order) == len(MEMBERS)


@pytest.mark.parametrize(("senders", "members"), [(2, 8), (4, 8), (3, 9), (5, 40), (8, 64)])
def test_senders_that_send_their_part_fall_side_by_side(senders: int, members: int):
    names = [f"{member:03}" for member in range(members)]
    total = Counter({name: 0 for name in names})
    for sender in range(senders):
        lines: Lines[str] = Lines(sender * GOLDEN)
        lines.renew(names)
        for call in range(2 * members // senders):
            member = next(lines.by_length(2))
            lines.sent(call, member)
            total[member] += 1
    assert max(total.values()) <= 4
    assert sum(1 for count in total.values() if count == 0) <= members // 8, "of random places one in seven would idle"
