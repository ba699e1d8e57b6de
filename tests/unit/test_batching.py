"""Calls and forward passes: every text once, within the budgets, and the encoder cuts as the reader planned."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.encoder.packing import split
from workers.text.batching import plan

lengths_ = st.lists(st.integers(1, 300), max_size=80)
budgets = st.integers(1, 400)


@given(lengths_, budgets)
def test_split_holds_every_text_once_within_the_budget(lengths, budget):
    batches = split(np.array(lengths, np.int32), budget)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        longest = max(lengths[index] for index in batch)
        assert longest * len(batch) <= budget or len(batch) == 1


@given(lengths_, budgets, st.integers(1, 2000))
def test_plan_holds_every_text_once_within_the_budget(lengths, budget, call_tokens):
    calls = plan(lengths, budget, call_tokens)
    assert sorted(index for call in calls for index in call) == list(range(len(lengths)))
    for call in calls:
        batches = split(np.array([lengths[index] for index in call], np.int32), budget)
        costs = [len(batch) * max(lengths[call[index]] for index in batch) for batch in batches]
        assert sum(costs) <= call_tokens or len(batches) == 1
        if max(lengths[index] for index in call) > budget:
            assert len(call) == 1


@given(lengths_, budgets, st.integers(1, 2000))
def test_the_encoder_cuts_calls_into_the_batches_that_were_planned(lengths, budget, call_tokens):
    whole = [list(batch) for batch in split(np.array(lengths, np.int32), budget)]
    again = [
        [call[index] for index in batch]
        for call in plan(lengths, budget, call_tokens)
        for batch in split(np.array([lengths[index] for index in call], np.int32), budget)
    ]
    assert again == whole


def test_like_lengths_go_together_and_padding_is_small():
    lengths = [10, 100] * 50
    batches = split(np.array(lengths, np.int32), 1000)
    padded = sum(len(batch) * max(lengths[index] for index in batch) for batch in batches)
    assert padded == sum(lengths)


def test_calls_hold_several_batches():
    assert [len(call) for call in plan([10] * 40, 100, 200)] == [20, 20]


def test_nothing_and_nonsense():
    assert plan([], 10, 10) == []
    assert split(np.empty(0, np.int32), 10) == []
    for arguments in (([0], 10, 10), ([1], 0, 10), ([1], 10, 0)):
        with pytest.raises(ValueError, match="at least 1"):
            plan(*arguments)
