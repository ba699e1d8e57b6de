"""A budget of time runs out once, and never shows less than nothing."""

from __future__ import annotations

from workers.deadline import Deadline


def test_it_counts_down_to_nothing_and_stays_there():
    now = 100.0
    deadline = Deadline(5, clock=lambda: now)
    assert deadline.remaining() == 5
    now = 103.0
    assert deadline.remaining() == 2
    assert not deadline.expired
    now = 105.0
    assert deadline.expired
    now = 200.0
    assert deadline.remaining() == 0
    assert deadline.expired


def test_no_seconds_are_over_at_once():
    assert Deadline(0).expired
    assert not Deadline(60).expired
