"""Packs: each text once, within the budget, and each token where its text says."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from workers.encoder.packing import packs
from workers.records import Batch

lengths_ = st.lists(st.integers(1, 300), min_size=1, max_size=80)
budgets = st.integers(1, 1000)


def batch_of(lengths: list[int]) -> Batch:
    """Texts whose ids say which text and which place they are of."""
    return Batch.of([np.arange(length, dtype=np.int32) + 1000 * number for number, length in enumerate(lengths)])


@given(lengths_, budgets)
def test_each_text_is_in_one_pack_within_the_budget_longest_first(lengths, budget):
    found = packs(batch_of(lengths), budget)
    assert sorted(row for pack in found for row in pack.rows) == list(range(len(lengths)))
    in_order = [int(length) for pack in found for length in pack.lengths]
    assert in_order == sorted(lengths, reverse=True)
    for pack, after in zip(found, [*found[1:], None], strict=True):
        assert len(pack.ids) <= budget or len(pack) == 1
        if after is not None:
            assert len(pack.ids) + after.longest > budget, "one more would not have fitted"


@given(lengths_, budgets)
def test_each_token_knows_its_text_and_its_place(lengths, budget):
    for pack in packs(batch_of(lengths), budget):
        assert list(pack.rows[pack.texts]) == list(pack.ids // 1000)
        assert list(pack.positions) == list(pack.ids % 1000)
        assert list(pack.ends) == list(np.cumsum(pack.lengths))
        assert pack.longest == max(pack.lengths)


@given(lengths_, budgets)
def test_runs_are_texts_of_one_length_and_cover_all(lengths, budget):
    for pack in packs(batch_of(lengths), budget):
        assert [length for _, count, length in pack.runs for _ in range(count)] == list(pack.lengths)
        starts = [start + n * length for start, count, length in pack.runs for n in range(count)]
        assert starts == list(pack.ends - pack.lengths)


@given(lengths_)
def test_alone_each_text_is_itself(lengths):
    (pack,) = packs(batch_of(lengths), sum(lengths))
    alone = pack.alone()
    assert [int(one.rows[0]) for one in alone] == list(pack.rows)
    assert [list(one.ids) for one in alone] == [list(part) for part in np.split(pack.ids, pack.ends[:-1])]
    assert all(list(one.lengths) == [len(one.ids)] for one in alone)


@given(lengths_.filter(lambda lengths: len(lengths) > 1))
def test_halves_hold_the_same_texts(lengths):
    (pack,) = packs(batch_of(lengths), sum(lengths))
    first, second = pack.halves()
    for name in ("rows", "ids", "lengths"):
        assert list(np.concatenate([getattr(first, name), getattr(second, name)])) == list(getattr(pack, name))
    assert abs(len(first) - len(second)) <= 1
    assert [len(half.ids) for half in (first, second)] == [half.lengths.sum() for half in (first, second)]


@given(lengths_, budgets)
def test_padded_packs_cost_their_longest_text_times_their_count(lengths, budget):
    found = packs(batch_of(lengths), budget, padded=True)
    assert sorted(row for pack in found for row in pack.rows) == list(range(len(lengths)))
    assert all(pack.longest * len(pack) <= budget or len(pack) == 1 for pack in found)


def test_a_padded_pass_ends_before_it_pads_much():
    found = packs(batch_of([*range(40, 140)] * 4), 100_000, padded=True)
    cost, real = sum(pack.longest * len(pack) for pack in found), sum(len(pack.ids) for pack in found)
    assert real < cost < 1.06 * real
    assert len(found) < 20


def test_like_lengths_go_together_and_padding_is_small():
    lengths = [10, 100] * 50
    assert sum(pack.longest * len(pack) for pack in packs(batch_of(lengths), 1000, padded=True)) == sum(lengths)


def test_nothing():
    assert packs(Batch.of([]), 10) == []
