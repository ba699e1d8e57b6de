"""What waits for an encoder, and how large a call is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes import texts_of
from workers.records import Document, Origin, Tokens, TopicPartition
from workers.window import CALL_SECONDS, CALLS_AHEAD, MOST_BATCHES, Call, WaitingText, Window


def waiting(length: int, offset: int = 0) -> WaitingText:
    text = chr(ord("a") + offset) * length
    ids = np.fromiter(map(ord, text), np.int32)
    return WaitingText(Origin("documents", 0, offset, 1), Document(str(offset), text), Tokens(ids, length))


def of(call: Call) -> list[WaitingText]:
    """All that wait for a call, row after row."""
    return [text for row in call.rows for text in row]


def window(budget: int = 100, linger_s: float = 0.01) -> Window:
    return Window(budget, linger_s)


def test_a_call_that_is_not_full_waits_for_the_linger_of_its_oldest_text():
    waits = window()
    waits.add([waiting(10)], now=5.0)
    waits.add([waiting(20)], now=5.009)
    assert waits.take(5.0099) is None
    call = waits.take(5.0101)
    assert call is not None
    assert sorted(call.batch.lengths) == [10, 20]
    assert waits.empty
    waits.add([waiting(10)], now=6.0)
    assert waits.take(6.005) is None, "the linger begins anew"
    assert waits.take(6.0101) is not None


def test_texts_of_an_assignment_that_has_ended_are_given_up_also_those_cut_into_calls():
    waits = window(budget=100)
    waits.add([waiting(50, n) for n in range(4)], now=0.0)
    assert waits.take(0.0) is not None, "two are sent, and two wait in a call"
    waits.add([replace(waiting(30, n), origin=Origin("documents", 1, n, 7)) for n in range(3)], now=0.0)
    waits.add([waiting(30, 9)], now=0.0)
    waits.keep({TopicPartition("documents", 0): 2, TopicPartition("documents", 1): 7})
    assert waits.tokens == 90
    call = waits.take(1.0)
    assert call is not None and [text.origin.partition for text in of(call)] == [1, 1, 1]
    waits.keep({})
    assert waits.empty and waits.tokens == 0


def test_a_full_call_goes_at_once():
    waits = window(budget=100)
    waits.add([waiting(50, n) for n in range(2)], now=0.0)
    call = waits.take(0.0)
    assert call is not None
    assert call.batch.tokens == 100


def test_a_call_is_one_budget_until_the_encoder_is_measured():
    waits = window(budget=100)
    assert waits.call_tokens == 100
    waits.add([waiting(10, n) for n in range(40)], now=0.0)
    sizes = []
    while (call := waits.take(0.0)) is not None:
        sizes.append(call.batch.tokens)
    assert sizes == [100, 100, 100, 100]


def test_a_call_grows_to_what_a_replica_does_in_its_time():
    waits = window(budget=100)
    waits.measured(5_000, 1.0)
    assert waits.call_tokens == int(CALL_SECONDS * 5_000) == 500
    for _ in range(100):
        waits.measured(7_000, 1.0)
    assert 680 <= waits.call_tokens <= 700, "the rate follows, smoothed"
    waits.measured(70_000, 1.0)
    assert waits.call_tokens > 1000
    for _ in range(100):
        waits.measured(10**9, 0.0)
    assert waits.call_tokens == MOST_BATCHES * 100, "never more than so many batches"
    for _ in range(100):
        waits.measured(1, 10.0)
    assert waits.call_tokens == 100, "never less than one"


def test_it_is_full_some_calls_ahead_and_says_how_many_tokens_wait():
    waits = window(budget=100)
    waits.add([waiting(10, n) for n in range(10 * CALLS_AHEAD - 1)], now=0.0)
    assert not waits.full
    waits.add([waiting(10, 99)], now=0.0)
    assert waits.full
    assert waits.tokens == 100 * CALLS_AHEAD
    waits.take(0.0)
    assert waits.tokens == 100 * (CALLS_AHEAD - 1)
    assert not waits.full


def sizes_at(waits: Window, now: float) -> list[int]:
    """Tokens of the calls that go out now."""
    return [call.batch.tokens for call in iter(lambda: waits.take(now), None)]


def test_what_would_not_fill_a_call_stays_for_the_next_ones_youngest_first():
    waits = window(budget=100, linger_s=0.05)
    waits.add([waiting(10, n) for n in range(23)], now=0.0)
    first, second = waits.take(0.01), waits.take(0.01)
    assert first is not None and second is not None
    assert [row[0].origin.offset for call in (first, second) for row in call.rows] == list(range(20))
    assert waits.take(0.0599) is None and waits.tokens == 30 and not waits.empty, "they wait since they were left over"
    waits.add([waiting(10, n) for n in range(23, 31)], now=0.06)
    third = waits.take(0.06)
    assert third is not None
    assert [row[0].origin.offset for row in third.rows] == list(range(20, 30))
    assert waits.take(0.1099) is None
    rest = waits.take(0.1101)
    assert rest is not None and [row[0].origin.offset for row in rest.rows] == [30]
    assert waits.empty


def test_a_call_that_is_nearly_full_goes_with_the_others():
    waits = window(budget=100)
    waits.add([waiting(10, n) for n in range(28)], now=0.0)
    assert sizes_at(waits, 0.0) == [100, 100, 80]


def test_a_call_is_full_with_the_whole_passes_that_have_room_in_it():
    waits = window(budget=100)
    waits.measured(1_500, 1.0)
    assert waits.call_tokens == 150
    waits.add([waiting(10, n) for n in range(26)], now=0.0)
    assert sizes_at(waits, 0.0) == [100, 100] and waits.tokens == 60


@pytest.mark.parametrize(
    ("lengths", "sizes"),
    [
        pytest.param([60] * 9, [60] * 9, id="no two share a call"),
        pytest.param([20, 90], [90, 20], id="the youngest is the longest"),
        pytest.param([10] * 12 + [150], [150, 100, 20], id="the youngest is longer than a budget"),
        pytest.param([10] * 12 + [150, 10], [150, 100, 30], id="one of the youngest is"),
    ],
)
def test_nothing_stays_where_that_fills_no_call(lengths: list[int], sizes: list[int]):
    waits = window(budget=100)
    waits.add([waiting(length, n) for n, length in enumerate(lengths)], now=0.0)
    assert sizes_at(waits, 0.0) == sizes


def test_nothing_stays_once_the_oldest_has_lingered():
    waits = window(budget=100, linger_s=0.05)
    waits.measured(2_000, 1.0)
    waits.add([waiting(150, 0), waiting(20, 1)], now=0.0)
    assert waits.call_tokens == 200 and waits.take(0.0499) is None
    assert sizes_at(waits, 0.0501) == [150, 20]


def test_texts_of_similar_length_share_a_call():
    waits = window(budget=100)
    waits.add([waiting(50 if n % 2 else 10, n) for n in range(20)], now=0.0)
    lengths = []
    while (call := waits.take(1.0)) is not None:
        lengths.append([int(n) for n in call.batch.lengths])
    assert [n for batch in lengths for n in batch] == [50] * 10 + [10] * 10
    # Ten of 50 in calls of 100 are five calls; ten of 10 are one: nothing is padded.
    assert len(lengths) == 6


def test_a_text_longer_than_the_budget_goes_alone():
    waits = window(budget=100)
    waits.add([waiting(150, 0), waiting(40, 1), waiting(60, 2)], now=0.0)
    first = waits.take(1.0)
    assert first is not None
    assert list(first.batch.lengths) == [150]


def test_clear_gives_up_what_waits_and_what_was_cut():
    waits = window(budget=100)
    waits.add([waiting(50, n) for n in range(6)], now=0.0)
    assert waits.take(0.0) is not None
    waits.add([waiting(50, 6)], now=0.0)
    assert len(waits.clear()) == 5
    assert waits.empty
    assert waits.tokens == 0
    assert waits.take(100.0) is None


@given(st.lists(st.lists(st.integers(1, 150), max_size=30), max_size=6), st.integers(1, 200))
def test_every_text_leaves_once_with_the_ids_that_are_its_own(groups: list[list[int]], budget: int):
    waits = window(budget)
    texts = []
    now = 0.0
    calls = []
    for lengths in groups:
        added = [waiting(length, len(texts) + n) for n, length in enumerate(lengths)]
        texts += added
        waits.add(added, now)
        if (call := waits.take(now)) is not None:
            calls.append(call)
        now += 0.004
    while not waits.empty:
        now += 1
        call = waits.take(now)
        assert call is not None
        calls.append(call)
    assert waits.tokens == 0
    assert sorted(text.origin.offset for call in calls for text in of(call)) == list(range(len(texts)))
    for call in calls:
        assert texts_of(call.batch) == [row[0].document.text for row in call.rows]


def test_equal_texts_are_one_row_also_of_a_call_that_is_cut_and_cost_once():
    waits = window(budget=100)
    assert waits.add([waiting(50, 0), waiting(50, 1), waiting(50, 0)], now=0.0) == 100
    assert waits.tokens == 100
    assert waits.add([waiting(50, 2), waiting(50, 3)], now=0.0) == 100
    first = waits.take(0.0)
    assert first is not None
    assert [len(row) for row in first.rows] == [2, 1]
    assert (first.batch.tokens, first.shared_tokens, len(of(first))) == (100, 50, 3)
    assert waits.add([waiting(50, 3), waiting(50, 0)], now=0.0) == 50, "one joins a cut call, one comes after its equal"
    second = waits.take(0.0)
    assert second is not None and sorted(len(row) for row in second.rows) == [1, 2]
    last = waits.take(1.0)
    assert last is not None and [len(row) for row in last.rows] == [1]
    assert waits.empty and waits.tokens == 0 and not waits.full


def test_a_text_that_was_cut_differently_says_so_itself():
    waits = window()
    whole, longer = waiting(10), replace(waiting(10), tokens=Tokens(waiting(10).tokens.ids, 99))
    waits.add([whole, longer], now=0.0)
    call = waits.take(1.0)
    assert call is not None and len(call.rows) == 1
    assert [text.tokens.truncated for text in of(call)] == [False, True]


def test_many_equal_texts_fill_a_window_as_texts_of_a_token_do():
    waits = window(budget=100)
    waits.add([waiting(10)] * (100 * CALLS_AHEAD - 1), now=0.0)
    assert waits.tokens == 10 and not waits.full
    waits.add([waiting(10)], now=0.0)
    assert waits.full


def test_what_is_shared_lives_on_when_one_of_its_assignments_ends():
    waits = window(budget=100)
    here, there = waiting(50), replace(waiting(50), origin=Origin("documents", 1, 5, 7))
    waits.add([here, waiting(50, 1), there, waiting(20, 2)], now=0.0)
    waits.keep({TopicPartition("documents", 1): 7})
    assert waits.tokens == 50
    call = waits.take(1.0)
    assert call is not None and [text.origin for text in of(call)] == [there.origin]
    assert waits.empty and not waits.full
    waits.add([waiting(50)], now=1.0)
    assert waits.tokens == 50, "nothing is left that it could join"


@given(
    st.lists(
        st.tuples(st.integers(1, 3), st.integers(0, 2), st.sampled_from(["add", "add", "take", "keep", "clear"])),
        max_size=60,
    )
)
def test_whatever_happens_each_text_leaves_once_and_tokens_are_those_of_distinct_texts(
    steps: list[tuple[int, int, str]],
):
    waits = window(budget=4)
    inside: dict[int, WaitingText] = {}
    for number, (length, kind, what) in enumerate(steps):
        match what:
            case "add":
                text = replace(waiting(length, kind), origin=Origin("documents", kind, number, 1))
                waits.add([text], now=float(number))
                inside[number] = text
            case "take":
                call = waits.take(float(number))
                for text in of(call) if call is not None else ():
                    assert inside.pop(text.origin.offset).document == text.document
                if call is not None:
                    assert len(set(texts_of(call.batch))) == len(call.batch)
            case "keep":
                waits.keep({TopicPartition("documents", n): 1 for n in range(3) if n != kind})
                inside = {n: text for n, text in inside.items() if text.origin.partition != kind}
            case "clear":
                assert len(waits.clear()) == len(inside)
                inside = {}
        assert waits.tokens == sum(map(len, {text.document.text for text in inside.values()}))
        assert waits.empty == (not inside)
