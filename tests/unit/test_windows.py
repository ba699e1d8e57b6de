"""Windows for a sample: all of the input in them, once, and each as likely as another."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from pipelines.windows import Window, Windows

_SPANS = st.lists(st.tuples(st.integers(0, 50), st.integers(0, 30)).map(lambda s: (s[0], s[0] + s[1])), max_size=6)


@given(_SPANS, st.integers(1, 12))
def test_every_unit_is_in_one_window(spans: list[tuple[int, int]], width: int):
    windows = Windows(spans, width)
    found = Counter(
        (each.part, unit)
        for each in map(windows.__getitem__, range(len(windows)))
        for unit in range(each.start, each.stop)
    )
    assert found == Counter((part, unit) for part, (start, stop) in enumerate(spans) for unit in range(start, stop))
    assert windows.units == len(found)


@given(_SPANS, st.integers(1, 12), st.integers(0, 100), st.integers(0, 3))
def test_no_window_is_drawn_twice(spans: list[tuple[int, int]], width: int, most: int, seed: int):
    windows = Windows(spans, width)
    drawn = list(windows.draw(most, seed))
    assert len(set(drawn)) == len(drawn) == min(most, len(windows))
    assert all(1 <= each.width <= width for each in drawn)


def test_windows_of_a_long_input_are_not_listed():
    windows = Windows([(10, 10 + 10**15)], 7)
    assert windows[0] == Window(0, 10, 17)
    assert len(list(windows.draw(50))) == 50
