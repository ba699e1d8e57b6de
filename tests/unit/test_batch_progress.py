"""How far a job is, how many replicas it has, and what it says at its end: pure functions of what they are told."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.batch.finished import Tally
from pipelines.batch.growth import WORTH, wanted
from pipelines.batch.progress import Forecast, Progress, spoken
from pipelines.batch.summary import Summary


def steady(total: float, speed: float, until: float, step: float = 0.5, skipped: float = 0.0) -> Progress:
    progress = Progress(total)
    for tick in range(int(until / step) + 1):
        progress.note(100 + tick * step, speed * tick * step, skipped)
    return progress


# Should say what is left exactly while the speed stays the same.
def test_a_steady_job_is_forecast_exactly():
    progress = steady(1000, 10, 40)
    assert (progress.share, progress.speed) == pytest.approx((0.4, 10))
    assert progress.left_s == pytest.approx(60)
    assert progress.tenth is not None
    assert (progress.tenth.at_s, progress.tenth.left_s) == pytest.approx((10, 90))
    assert progress.tenth.error(100) == pytest.approx(0)
    assert progress.tenth.error(190) == pytest.approx(-0.5)  # it took twice as long as was said


# Should not take for speed what an earlier run has done.
def test_what_was_done_before_is_no_speed():
    progress = steady(1000, 10, 20, skipped=400)
    assert progress.share == pytest.approx(200 / 600)
    assert progress.left_s == pytest.approx(40)


# Should not count the time in which the first part was read and nothing came out yet.
def test_the_wait_for_the_first_texts_is_no_work():
    progress = Progress(1000)
    for tick in range(61):
        now = tick * 0.5
        progress.note(now, 10 * max(0.0, now - 8))
    assert progress.tenth is not None
    assert (progress.tenth.at_s, progress.tenth.left_s) == pytest.approx((18, 90))
    assert progress.tenth.error(108) == pytest.approx(0)


# Should follow a change of speed, such as more replicas, within as long as the job had run before.
def test_the_present_speed_counts():
    progress = Progress(10_000)
    for tick in range(241):
        now = tick * 0.5
        progress.note(now, 10 * min(now, 60) + 40 * max(0.0, now - 60))
    assert progress.speed == pytest.approx(40)


# Should not take for slowness that work was lost with its replica, nor count it when it turns out to be finished.
def test_what_is_lost_is_not_done_and_no_change_of_speed():
    progress = steady(1000, 10, 40)
    progress.note(140, 200)
    assert progress.share == pytest.approx(0.2)
    assert progress.speed == pytest.approx(10) and progress.left_s == pytest.approx(80)
    progress.note(141, 210, 150)  # a part of it was written before
    assert progress.share == pytest.approx(210 / 850) and progress.left_s == pytest.approx(64)
    assert progress.total == 1000


def test_nothing_is_said_before_anything_is_known():
    progress = Progress(100)
    assert (progress.left_s, progress.speed, progress.age_s) == (None, None, 0.0)
    progress.note(5, 0)
    progress.note(6, 0)
    assert (progress.left_s, progress.tenth, progress.share, progress.age_s) == (None, None, 0.0, 1.0)
    assert Progress(0).share == 1.0


@given(st.lists(st.tuples(st.floats(0.01, 100), st.floats(0, 100)), min_size=1, max_size=50), st.floats(0, 50))
def test_shares_and_times_are_in_bounds_whatever_is_told(steps: list[tuple[float, float]], skipped: float):
    progress, now, done = Progress(200.0), 0.0, 0.0
    for seconds, work in steps:
        now, done = now + seconds, done + work
        progress.note(now, done, skipped)
        assert 0 <= progress.share <= 1
        assert progress.left_s is None or progress.left_s >= 0
    assert done + skipped < 200 or progress.share == pytest.approx(1)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (None, "?"),
        (0.4, "0 s"),
        (89, "89 s"),
        (91, "2 min"),
        (5_000, "83 min"),
        (5_410, "1 h 30 min"),
        (86_400, "24 h"),
    ],
)
def test_times_for_people(seconds: float | None, said: str):
    assert spoken(seconds) == said


# ------------------------------------------------------------------ replicas


def count(**changes: object) -> int:
    told = {"now": 1, "fewest": 1, "most": 8, "pieces": 100, "left_s": None, "start_s": 30.0, **changes}
    return wanted(**told)  # type: ignore[arg-type]


def test_a_job_begins_with_the_fewest_and_with_one_at_least():
    assert count(now=0) == 1
    assert count(now=0, fewest=0) == 1
    assert count(now=0, fewest=3) == 3


def test_a_replica_is_started_when_its_start_is_paid():
    assert count(left_s=WORTH * 30 * 4) == 4
    assert count(left_s=WORTH * 30 * 2 - 1) == 1
    assert count(left_s=1e9) == 8  # pool.max


def test_no_more_replicas_than_pieces():
    assert count(left_s=1e9, pieces=3) == 3
    assert count(now=0, fewest=5, pieces=2) == 2


def test_a_job_does_not_shrink_before_its_end():
    assert count(now=6, left_s=1.0) == 6


# ------------------------------------------------------------------ summary


def summary(**changes: object) -> Summary:
    told = {
        "complete": True,
        "files": 2,
        "found": Tally(40, 400, 1, 1, 4),
        "made": Tally(60, 600, 2, 2, 6),
        "reasons": {"text/empty": 2},
        "dead_letters": "file:///dead",
        "outputs": ("file:///vectors",),
        "seconds": 30.0,
        "start_s": 8.0,
        "worked_s": 20.0,
        "replica_s": 40.0,
        "busy_s": 36.0,
        "load_s": 14.0,
        "replicas": 2,
        "tenth": Forecast(2.0, 20.0),
        **changes,
    }
    return Summary(**told)  # type: ignore[arg-type]


def test_a_summary_for_people():
    assert summary().text().splitlines() == [
        "state         complete",
        "rows          100 embedded: 60 by this run, 40 found from an earlier one",
        "dead letters  3 in file:///dead (text/empty 2)",
        "tokens        1,000, 3 texts truncated",
        "files         2 read; 10 parts: 6 by this run, 4 found from an earlier one",
        "to            file:///vectors",
        "time          30 s, 20 s of it at work; the first replica took 8 s to start",
        "speed         3 rows/s, 30 tokens/s on 2 replicas, whose encoders were busy 90% of the time",
        "cost          0.015 replica-hours",
        "forecast      20 s after the first tenth, and it took 18 s: +11%",
    ]


def test_what_a_job_costs_is_said_where_the_price_is_known():
    said = summary(gpus=0.5, price_per_hour=2.5)
    assert "cost          0.0375 at 2.5 an hour: 0.015 replica-hours, 0.0075 GPU-hours" in said.text()
    found = json.loads(said.json())
    assert (found["replica_hours"], found["gpu_hours"], found["cost"]) == (0.015, 0.0075, 0.0375)
    assert json.loads(summary().json())["cost"] is None
    assert (
        "cost          3,000.0 at 1,500.0 an hour: 2 replica-hours"
        in summary(load_s=0.0, replica_s=7200.0, price_per_hour=1500.0).text()
    )


def test_a_summary_of_nothing_to_do_says_no_speed():
    said = summary(made=Tally(), worked_s=0.0, load_s=0.0, replica_s=0.0, busy_s=0.0, tenth=None, reasons={}).text()
    assert "rows          40 embedded: 0 by this run, 40 found" in said
    assert not any(name in said for name in ("speed", "forecast", "cost"))


def test_a_summary_for_programs():
    found = json.loads(summary().json())
    assert (found["rows"], found["found"]["rows"], found["made"]["rows"]) == (100, 40, 60)
    assert (found["rows_per_second"], found["encoders_busy"], found["eta_error_after_first_tenth"]) == (
        3.1,
        0.9,
        0.1111,
    )
    assert json.loads(summary(complete=False).json())["eta_error_after_first_tenth"] is None
