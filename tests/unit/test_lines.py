"""One sender's calls under way: the shortest line first, nobody counted twice, and senders side by side."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.lines import DISTRUST_S, GOLDEN, TAKEN_S, Lines

MEMBERS = "abcd"


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def lines_of(*sent: str, members: str = MEMBERS, start: float = 0.0, clock: Clock | None = None) -> Lines[str]:
    made: Lines[str] = Lines(start, clock or Clock())
    made.renew(members)
    for member in sent:
        made.sent(member)
    return made


def lengths(lines: Lines[str], members: str = MEMBERS) -> list[int]:
    return [lines.length(member) for member in members]


def test_the_shortest_line_is_the_answer_unless_it_is_full():
    lines = lines_of(*"aabbbcd")
    assert lines.shortest(2) == "c"
    assert lines.shortest(1) is None
    assert lines.shortest(None) == "c"


def test_where_nobody_is_there_is_no_answer():
    assert Lines[str](0.3).shortest(5) is None
    assert Lines[str](0.3).shortest(None) is None


@pytest.mark.parametrize(("start", "first"), [(0.0, "a"), (0.3, "b"), (0.5, "c"), (0.99, "d"), (1.0, "a"), (1.6, "c")])
def test_among_equals_each_sender_begins_elsewhere(start: float, first: str):
    assert lines_of(start=start).shortest(2) == first


def test_a_call_counts_from_when_it_is_taken_and_once():
    lines = lines_of()
    lines.take("a")
    lines.take("a")
    lines.take("b")
    assert lengths(lines) == [2, 1, 0, 0]
    lines.sent("a")
    assert lengths(lines) == [2, 1, 0, 0]
    lines.ended("a")
    assert lengths(lines) == [1, 1, 0, 0]
    lines.sent("c")
    assert lengths(lines) == [1, 1, 1, 0]


def test_calls_that_are_never_sent_are_given_back_with_time():
    clock = Clock()
    lines = lines_of(members="a", clock=clock)
    lines.take("a")
    assert lines.shortest(1) is None
    clock.now += TAKEN_S + 0.01
    assert lines.shortest(1) == "a"


def test_a_line_stays_while_there_are_calls_in_it():
    lines = lines_of("b", "d")
    lines.renew("bce")
    assert lengths(lines, "bcde") == [1, 0, 1, 0]
    assert lines.shortest(9) == "c"
    lines.renew("bd")  # it is back, and so is its call
    assert lengths(lines, "bd") == [1, 1]
    lines.renew("b")
    lines.ended("d")
    lines.renew("bd")
    assert lengths(lines, "bd") == [1, 0]


def test_who_failed_is_the_last_choice_for_a_while():
    clock = Clock()
    lines = lines_of(*"bcd", clock=clock)
    lines.failed("a")
    assert lines.shortest(2) == "b"
    assert lines.shortest(1) == "a", "nobody else has room"
    clock.now += DISTRUST_S
    assert lines.shortest(2) == "a"


def test_where_all_have_failed_the_shortest_line_is_the_answer_and_of_equals_the_oldest_failure():
    clock = Clock()
    lines = lines_of(*"aad", clock=clock)
    for member in "abdc":
        lines.failed(member)
        clock.now += 1
    assert lines.shortest(2) == "b"
    lines.failed("b")
    assert lines.shortest(2) == "c"
    assert lines.shortest(0) is None


@given(st.lists(st.tuples(st.sampled_from(["take", "sent", "ended"]), st.sampled_from(MEMBERS))))
def test_what_was_taken_or_sent_and_has_not_ended_counts(steps: list[tuple[str, str]]):
    lines = lines_of()
    taken: Counter[str] = Counter()
    sent: Counter[str] = Counter()
    for step, member in steps:
        match step:
            case "take":
                lines.take(member)
                taken[member] += 1
            case "sent":
                lines.sent(member)
                taken[member] = max(0, taken[member] - 1)
                sent[member] += 1
            case _ if sent[member]:
                lines.ended(member)
                sent[member] -= 1
        assert lengths(lines) == [taken[member] + sent[member] for member in MEMBERS]
        assert lines.length(lines.shortest(None) or "") == min(lengths(lines))


@pytest.mark.parametrize(("senders", "members"), [(2, 8), (4, 8), (3, 9), (5, 40), (8, 64)])
def test_senders_that_send_their_part_fall_side_by_side(senders: int, members: int):
    names = [f"{member:03}" for member in range(members)]
    total = Counter(dict.fromkeys(names, 0))
    for sender in range(senders):
        lines: Lines[str] = Lines(sender * GOLDEN)
        lines.renew(names)
        for _ in range(2 * members // senders):
            member = lines.shortest(2)
            assert member is not None
            lines.sent(member)
            total[member] += 1
    idle = sum(1 for count in total.values() if count == 0)
    assert idle <= members // 16, "of random places one in seven would idle"
    assert max(total.values()) <= 3
