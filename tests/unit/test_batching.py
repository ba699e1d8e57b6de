"""Calls: every text once, within the budgets, and the encoder cuts them as the reader planned."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.encoder.packing import packs
from workers.records import Batch
from workers.text.batching import plan

lengths_ = st.lists(st.integers(1, 300), max_size=80)
budgets = st.integers(1, 400)


def cut(lengths: list[int], budget: int) -> list[list[int]]:
    """The encoder's packs of texts of these lengths, as rows."""
    return [list(pack.rows) for pack in packs(Batch.of([np.zeros(n, np.int32) for n in lengths]), budget)]


@given(lengths_, budgets, st.integers(1, 2000))
def test_plan_holds_every_text_once_within_the_budget(lengths, budget, call_tokens):
    calls = plan(lengths, budget, call_tokens)
    assert sorted(index for call in calls for index in call) == list(range(len(lengths)))
    for call in calls:
        found = [lengths[index] for index in call]
        assert sum(found) <= call_tokens or len(cut(found, budget)) == 1
        if max(found) > budget:
            assert len(call) == 1


@given(lengths_, budgets, st.integers(1, 2000))
def test_the_encoder_cuts_calls_into_the_passes_that_were_planned(lengths, budget, call_tokens):
    again = [
        [call[index] for index in rows]
        for call in plan(lengths, budget, call_tokens)
        for rows in cut([lengths[index] for index in call], budget)
    ]
    assert again == cut(lengths, budget)


def test_calls_hold_several_passes():
    assert [len(call) for call in plan([10] * 40, 100, 200)] == [20, 20]


def test_nothing_and_nonsense():
    assert plan([], 10, 10) == []
    for arguments in (([0], 10, 10), ([1], 0, 10), ([1], 10, 0)):
        with pytest.raises(ValueError, match="at least 1"):
            plan(*arguments)
