"""The scaling policy: what always holds, whatever the figures are, and what it says about each of its decisions."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipelines.simulator.curves import TICK_S, Curve
from pipelines.simulator.scalers import TokenBacklog
from pipelines.simulator.world import Glance, simulate
from workers.scaling import Decision, Limits, Observation, Reason, State, decide

RATE = 1000.0
LIMITS = Limits(least=0, most=100, tokens_per_s=RATE, start_s=60.0)


def seen(at: float = 0.0, ready: int = 0, target: int | None = None, held: float = 0.0, **more) -> Observation:
    more = {"unread": 0.0, "tokens_per_record": 100.0, **more}
    return Observation(at, ready, ready if target is None else target, held=held, **more)


def drive(
    load: Callable[[float], float], seconds: int, limits: Limits = LIMITS, *, ready: int = 0, **given
) -> Decision:
    """Decide every 2 s while ``load(t)`` replicas' worth arrives and is served; replicas start at once. The last decision."""
    state, target = State(), ready
    backlog = arrived = done = call_s = 0.0
    decision = None
    for at in range(0, seconds, 2):
        now = seen(at, target, held=backlog / 100, arrived=arrived / 100, done=done, call_s=call_s, **given)
        decision = decide(now, state, limits)
        state, target = decision.state, decision.target
        coming = load(at) * RATE * 2
        served = min(backlog + coming, target * RATE * 2)
        backlog, arrived, done = backlog + coming - served, arrived + coming, done + served
        call_s += served / RATE
    assert decision is not None
    return decision


# ---- what always holds

anything = st.one_of(st.none(), st.floats(), st.floats(0, 1e9))
numbers = st.one_of(st.floats(), st.floats(0, 1e9), st.integers(-5, 10**12))
counts = st.integers(-5, 2000)


@st.composite
def observations(draw: st.DrawFn) -> Observation:
    return Observation(
        at=draw(st.one_of(st.floats(0, 1e5), st.floats())),
        ready=draw(counts),
        target=draw(counts),
        age_s=draw(st.one_of(st.floats(0, 10), st.floats())),
        held=draw(anything),
        unread=draw(anything),
        tokens_per_record=draw(anything),
        arrived=draw(numbers),
        done=draw(numbers),
        call_s=draw(numbers),
        feed=draw(anything),
        blocked=draw(st.booleans()),
        requests=draw(numbers),
    )


limits_ = st.builds(
    Limits,
    least=st.integers(0, 50),
    most=st.integers(0, 1000),
    drain_s=st.floats(1, 3600),
    idle_s=st.floats(0.1, 3600),
    settle_s=st.floats(0.1, 3600),
    start_s=st.floats(0, 3600),
    stale_s=st.floats(1, 100),
    tokens_per_s=st.one_of(st.none(), st.floats(1e-3, 1e9)),
    calls_per_replica=st.integers(1, 64),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(observations(), min_size=1, max_size=12), limits_)
def test_it_never_raises_and_stays_within_the_limits_whatever_the_figures(
    figures: list[Observation], limits: Limits
) -> None:
    state, most = State(), max(limits.least, limits.most)
    for figure in figures:
        found = decide(figure, state, limits)
        assert limits.least <= found.target <= most
        assert isinstance(found.target, int)
        assert isinstance(found.reason, Reason)
        assert math.isfinite(found.need)
        state = found.state


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[Observation], Limits]:
    """Figures as a pipeline has them, two seconds apart: loads, replicas and backlogs that jump as they like."""
    limits = draw(st.builds(Limits, least=st.integers(0, 3), most=st.integers(3, 500), tokens_per_s=st.just(RATE)))
    steps = draw(
        st.lists(
            st.tuples(st.floats(0, 300), st.floats(0, 1e5), st.integers(0, 60), st.floats(0, 1)),
            min_size=2,
            max_size=40,
        )
    )
    at = arrived = done = call_s = 0.0
    found = []
    for load, waiting, ready, share in steps:
        at, arrived = at + 2, arrived + load * RATE * 2 / 100
        done, call_s = done + share * ready * RATE * 2, call_s + 2 * share * ready * 2
        target = ready + draw(st.integers(0, 20))
        found.append(seen(at, ready, target, held=waiting, arrived=arrived, done=done, call_s=call_s))
    return found, limits


@settings(max_examples=200, deadline=None)
@given(histories(), st.floats(0, 1e6), st.booleans())
def test_a_larger_backlog_never_needs_less(history: tuple[list[Observation], Limits], more: float, new: bool) -> None:
    """At the same moment of the same history, more records held (old ones, or new arrivals) give no lower target."""
    (*before, last), limits = history
    state = State()
    for figure in before:
        state = decide(figure, state, limits).state
    larger = replace(last, held=last.held + more, arrived=last.arrived + (more if new else 0.0))
    assert decide(larger, state, limits).target >= decide(last, state, limits).target


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.3, 80), st.floats(0, 0.3), st.sampled_from([30.0, 120.0, 300.0]))
@example(0, 1.0, 0.25, 30.0)  # one replica's whole work
def test_noise_does_not_make_it_flap(seed: int, mean: float, share: float, starts_s: float) -> None:
    """Two hours of a constant load under noise: after the first half hour the target hardly moves."""
    ticks = int(2 * 3600 / TICK_S)
    noise = np.clip(np.random.default_rng(seed).normal(1, share, ticks), 0, None)
    run = simulate_(Curve("noise", "", mean * noise, starts_s, max(1, math.ceil(mean))))
    settled = run.target[ticks // 4 :]
    assert np.count_nonzero(np.diff(settled)) <= 6
    assert settled.max() - settled.min() <= max(1, 0.2 * mean)


def simulate_(curve: Curve):
    return simulate(curve, TokenBacklog(curve))


@settings(max_examples=10, deadline=None)
@given(st.floats(2, 200), st.sampled_from([60.0, 180.0, 300.0]))
def test_a_cold_start_does_not_overshoot_while_nodes_take_minutes(height: float, starts_s: float) -> None:
    """Once it knows replica and start, it orders for the load, and for what piles up until the nodes are there; no more."""
    ticks = int(3 * 3600 / TICK_S)
    t = np.arange(ticks) * TICK_S
    curve = Curve("cold", "", np.where(t < 1800, 1.0, np.where(t < 3600, 0.0, height)), starts_s, 0, most=5000)
    run = simulate_(curve)
    assert run.target[t < 3600].max() <= 1 + 1 + 2 * starts_s / 60 * 1.3, "at first it knows nothing, and starts one"
    piled = height * (starts_s + 30) / (0.85 * 60)
    assert height <= run.target.max() <= 1.15 * (height + piled) + 2
    assert run.target[-1] <= 1.12 * height + 1


# ---- figures that are none


@pytest.mark.parametrize(
    "broken",
    [
        {"held": None},
        {"unread": None},
        {"tokens_per_record": None},
        {"unread": math.nan},
        {"held": -1.0},
        {"done": math.inf},
        {"age_s": 15.1},
        {"age_s": math.nan},
        {"at": 5.0},  # before the last look
    ],
)
def test_figures_that_are_old_or_missing_change_nothing(broken: dict) -> None:
    steady = drive(lambda at: 4.5, 600)
    assert steady.target == 5
    now = seen(600.0, 5, held=10.0, arrived=1e6, done=1e9)
    found = decide(replace(now, **broken), steady.state, LIMITS)
    assert (found.target, found.reason) == (5, Reason.STALE)
    assert found.state == steady.state
    # An hour later, still; and the next good figures are taken up.
    later = replace(now, at=4200.0, **{name: value for name, value in broken.items() if name != "at"})
    if "at" not in broken:
        assert decide(later, found.state, LIMITS).target == 5


def test_callers_who_wait_are_served_even_when_the_lag_is_unknown() -> None:
    found = decide(seen(0.0, 0, unread=None, requests=5.0), State(), LIMITS)
    assert (found.target, found.reason) == (3, Reason.REQUESTS)


def test_stale_figures_at_zero_stay_at_zero() -> None:
    found = decide(seen(0.0, 0, unread=None), State(), LIMITS)
    assert (found.target, found.reason) == (0, Reason.STALE)


# ---- reasons


def test_a_backlog_is_sized_by_the_drain_target() -> None:
    records = 10 * RATE * 60 / 100  # ten replicas' work for a minute
    found = decide(seen(0.0, 0, held=records), State(), LIMITS)
    assert (found.target, found.reason) == (8, Reason.GROWTH)
    found = decide(seen(6.0, 0, 8, held=records), found.state, LIMITS)
    assert found.reason is Reason.BACKLOG
    # What its flow through the pipeline takes is none: the eight on their way work on it for 6 s before others come.
    assert 10 <= found.target <= math.ceil(10 / 0.85)


def test_twice_the_drain_target_needs_half() -> None:
    state = decide(seen(0.0, 8, held=1.0), State(), LIMITS).state
    records = 60 * RATE * 60 / 100
    short = decide(seen(60.0, 60, 60, held=records), state, replace(LIMITS, drain_s=60.0)).need
    long = decide(seen(60.0, 60, 60, held=records), state, replace(LIMITS, drain_s=120.0)).need
    assert short == pytest.approx(2 * long)


def test_arrivals_are_kept_up_with() -> None:
    found = drive(lambda at: 12.3, 900)
    assert found.target == 13
    assert found.reason is Reason.STEADY
    assert found.arrivals == pytest.approx(12.3 * RATE, rel=0.01)


def test_a_trend_is_met_before_it_arrives() -> None:
    """What is smoothed lags behind a load that rises; the need does not."""
    found = drive(lambda at: 10 + at / 60, 1800)
    assert found.arrivals < 39.6 * RATE
    assert found.need > 39.8
    assert found.target >= 40
    assert found.backlog == 0


def test_the_rate_of_a_replica_is_learned_with_one() -> None:
    unknown = replace(LIMITS, tokens_per_s=None)
    found = decide(seen(0.0, 0, held=1e6), State(), unknown)
    assert (found.target, found.reason) == (1, Reason.MEASURING)
    found = decide(seen(2.0, 0, 1, held=1e6), found.state, unknown)
    assert (found.target, found.reason) == (1, Reason.MEASURING)
    assert drive(lambda at: 9.0, 120, unknown).rate == pytest.approx(RATE)


def test_a_replica_that_turns_out_slower_is_followed() -> None:
    assert drive(lambda at: 9.0, 600, replace(LIMITS, tokens_per_s=10 * RATE)).rate == pytest.approx(RATE)


def test_zero_when_idle_and_back() -> None:
    limits = replace(LIMITS, idle_s=100.0)
    busy = drive(lambda at: 4.0 if at < 300 else 0.0, 400, limits)
    assert busy.target >= 1
    idle = drive(lambda at: 4.0 if at < 300 else 0.0, 410, limits)
    assert (idle.target, idle.reason) == (0, Reason.IDLE)
    assert decide(seen(5000.0, 0, held=0.0, unread=7.0), idle.state, limits).target == 0, "nobody holds a record of it"
    back = decide(seen(5010.0, 0, held=1.0, unread=7.0), idle.state, limits)
    assert back.target >= 1
    assert drive(lambda at: 4.5 if at < 300 or at > 5000 else 0.0, 6000, limits).target == 5


def test_a_lower_limit_is_kept_when_idle() -> None:
    found = drive(lambda at: 0.0, 1000, replace(LIMITS, least=2))
    assert (found.target, found.reason) == (2, Reason.LEAST)


def test_a_single_record_is_served_by_one() -> None:
    found = decide(seen(0.0, 0, held=1.0), State(), LIMITS)
    assert found.target == 1


def test_requests_of_other_callers_count_on_top() -> None:
    quiet = drive(lambda at: 4.0, 600)
    asked = drive(lambda at: 4.0, 600, requests=12.0)  # two a replica
    assert asked.target == pytest.approx(quiet.target + 6, abs=1)
    alone = decide(seen(0.0, 0, requests=4.0), State(), LIMITS)
    assert (alone.target, alone.reason) == (2, Reason.REQUESTS)
    assert drive(lambda at: 0.0, 2000, requests=1.0).target == 1, "a caller keeps one awake"


def test_the_upper_limit_is_said() -> None:
    found = drive(lambda at: 400.0, 900)
    assert (found.target, found.reason) == (100, Reason.MOST)


def test_replicas_on_their_way_are_not_ordered_again() -> None:
    records = 50 * RATE * 60 / 100
    found = decide(seen(0.0, 1, held=records), State(), LIMITS)
    target, state, targets = found.target, found.state, []
    for at in range(2, 50, 2):
        found = decide(seen(at, 1, target, held=records), state, LIMITS)
        target, state = found.target, found.state
        targets.append(target)
    assert targets[-1] == targets[10] <= math.ceil(50 / 0.85) + 1
    assert found.reason is Reason.STARTING


def test_growth_and_shrinking_are_limited() -> None:
    found = decide(seen(0.0, 10, held=1e9), State(), LIMITS)
    assert (found.target, found.reason) == (40, Reason.GROWTH)
    found = decide(seen(2.0, 10, 40, held=1e9), found.state, LIMITS)
    assert (found.target, found.reason) == (40, Reason.GROWTH)
    found = decide(seen(6.0, 10, 40, held=1e9), found.state, LIMITS)
    assert found.target == 100
    targets = [drive(lambda at: 90.0 if at < 600 else 1.0, end).target for end in range(600, 700, 2)]
    assert targets[-1] <= 2
    assert all(after >= before // 4 for before, after in itertools.pairwise(targets))


def test_a_drop_waits_until_it_has_lasted() -> None:
    """A fifth less is believed after the settling time, nearly nothing after a moment."""
    targets = [drive(lambda at: 50.0 if at < 600 else 40.0, end).target for end in (640, 800, 1000)]
    assert targets[0] == targets[1] >= 50 > targets[2] >= 40
    assert drive(lambda at: 50.0 if at < 600 else 40.0, 700).reason is Reason.SETTLING
    assert drive(lambda at: 50.0 if at < 600 else 2.0, 680).target < 10


# ---- who the bottleneck is


def limited(source: float, *, blocked: bool = False, feed: float | None = None, seconds: int = 3600):
    """A load of 40 before a source that lets ``source`` through; replicas take a minute. What it decided, by tick."""
    limits = replace(LIMITS, most=500)
    state, target, ready = State(), 10, 10
    backlog = arrived = done = call_s = 0.0
    starting: list[tuple[int, int]] = []
    found = []
    for at in range(0, seconds, 2):
        ready = min(target, max([ready, *(count for when, count in starting if when <= at)]))
        now = seen(at, ready, target, held=backlog / 100, arrived=arrived / 100, done=done, call_s=call_s)
        decision = decide(replace(now, blocked=blocked, feed=feed), state, limits)
        if decision.target > target:
            starting.append((at + 60, decision.target))
        state, target = decision.state, decision.target
        found.append(decision)
        ready = min(ready, target)
        served = min(backlog + 40 * RATE * 2, ready * RATE * 2, source * RATE * 2)
        backlog, arrived, done = backlog + 40 * RATE * 2 - served, arrived + 40 * RATE * 2, done + served
        call_s += served / RATE
    return found


@pytest.mark.parametrize(("blocked", "reason"), [(False, Reason.READERS), (True, Reason.SINK)])
def test_replicas_are_not_added_where_readers_or_sink_are_the_bottleneck(blocked: bool, reason: Reason) -> None:
    found = limited(15.0, blocked=blocked)
    assert found[-1].reason is reason
    assert 15 <= found[-1].target <= 15 * 1.07 + 1
    assert len({decision.target for decision in found[200:]}) == 1, "and it stays there, however the backlog grows"


def test_what_readers_can_deliver_is_not_exceeded_even_once() -> None:
    found = limited(15.0, feed=15.0 * RATE)
    assert max(decision.target for decision in found) <= 15 * 1.07 + 1
    assert found[-1].reason is Reason.READERS


def test_a_source_that_becomes_faster_gets_more() -> None:
    slow = limited(15.0, seconds=1200)[-1]
    state, target = slow.state, slow.target
    at, last = 1200, slow.state
    backlog, done, call_s = last.backlog, last.done, last.call_s
    for _ in range(600):
        at += 2
        done, call_s = done + target * RATE * 2, call_s + target * 2 * 2
        backlog = max(0.0, backlog + (40 - target) * RATE * 2)
        now = seen(at, target, held=backlog / 100, arrived=at * 40 * RATE / 100, done=done, call_s=call_s)
        decision = decide(now, state, replace(LIMITS, most=500))
        state, target = decision.state, decision.target
    assert target >= 40


# ---- what a run looks like


def test_replicas_that_die_are_waited_for() -> None:
    t = np.arange(int(3600 / TICK_S)) * TICK_S
    curve = Curve("loss", "", np.full(len(t), 20.0), 60.0, 21, losses=((1800.0, 8),))
    run = simulate_(curve)
    assert run.ready[t >= 1802][0] == 13
    assert run.backlog[-1] < 1
    assert run.target[-1] <= 23


def test_the_policy_is_asked_with_what_a_run_has() -> None:
    curve = Curve("one", "", np.full(100, 2.0), 10.0, 0)
    scaler = TokenBacklog(curve)
    assert scaler(Glance(0.0, 0, 0, 1e6, 1e6, 0.0, 0.0, 0.0)) == 1
    assert scaler.decision is not None
    assert scaler.decision.reason is Reason.MEASURING
