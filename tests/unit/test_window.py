"""What waits for an encoder, and how large a call is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes import texts_of
from workers.records import Document, Origin, Tokens, TopicPartition
from workers.window import CALL_SECONDS, CALLS_AHEAD, MOST_BATCHES, WaitingText, Window


def waiting(length: int, offset: int = 0) -> WaitingText:
    text = chr(ord("a") + offset % 26) * length
    ids = np.fromiter(map(ord, text), np.int32)
    return WaitingText(Origin("documents", 0, offset, 1), Document(str(offset), text), Tokens(ids, length))


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
    assert call is not None and [text.origin.partition for text in call.texts] == [1, 1, 1]
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
    waits.add([waiting(10)], now=0.0)
    assert waits.full
    assert waits.tokens == 100 * CALLS_AHEAD
    waits.take(0.0)
    assert waits.tokens == 100 * (CALLS_AHEAD - 1)
    assert not waits.full


def test_texts_of_similar_length_share_a_call():
    waits = window(budget=100)
    waits.add([waiting(50 if n % 2 else 5, n) for n in range(20)], now=0.0)
    lengths = []
    while (call := waits.take(1.0)) is not None:
        lengths.append([int(n) for n in call.batch.lengths])
    assert [n for batch in lengths for n in batch] == [50] * 10 + [5] * 10
    # Ten of 50 in calls of 100 are five calls; ten of 5 are one: nothing is padded.
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
    assert waits.clear() == 5
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
    while (call := waits.take(now + 1)) is not None:
        calls.append(call)
    assert waits.empty
    assert waits.tokens == 0
    assert sorted(text.origin.offset for call in calls for text in call.texts) == list(range(len(texts)))
    for call in calls:
        assert texts_of(call.batch) == [text.document.text for text in call.texts]
