"""The simulator: its arithmetic, and what the policy is worth on the standard curves."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import cli
from pipelines.simulator.clairvoyant import clairvoyant, taut
from pipelines.simulator.compare import KEDA, OURS, SERVE, Result, compare
from pipelines.simulator.curves import HOUR, TICK_S, TOKENS_PER_RECORD, TOKENS_PER_S, Curve, hard, standard
from pipelines.simulator.scalers import LagProportional, ServeDefault
from pipelines.simulator.score import score
from pipelines.simulator.world import Glance, simulate

DRAIN_S = 60.0


def curve(load: list[float] | np.ndarray, starts_s: float = 10.0, initial: int = 0, **more) -> Curve:
    return Curve("made", "", np.asarray(load, float), starts_s, initial, **more)


@pytest.fixture(scope="module")
def results() -> dict[str, Result]:
    return {result.curve.name: result for result in compare(standard(), DRAIN_S)}


# ---- what the policy is worth


def test_the_standard_set_holds_what_it_should(results: dict[str, Result]) -> None:
    starts = {result.curve.starts_s for result in results.values()}
    assert (min(starts), max(starts)) == (60, 300)
    assert max(float(result.best.max()) for result in results.values()) > 950
    loads = [result.curve.load * TOKENS_PER_S / TOKENS_PER_RECORD for result in results.values()]
    assert max(float(load.max()) for load in loads) > 1e6


def test_the_drain_target_is_met_on_every_step(results: dict[str, Result]) -> None:
    drains = {name: result.scores[OURS].drains for name, result in results.items() if result.curve.marks}
    assert sum(map(len, drains.values())) > 20
    assert all(max(found) <= DRAIN_S for found in drains.values()), drains


def test_gpu_hours_are_near_a_clairvoyants(results: dict[str, Result]) -> None:
    costs = {name: result.cost(OURS) for name, result in results.items()}
    assert all(cost <= 1.15 for cost in costs.values()), costs
    total = sum(result.scores[OURS].gpu_hours for result in results.values())
    assert total <= 1.10 * sum(result.best_hours for result in results.values())


def test_it_changes_its_mind_less_often_than_serves_default(results: dict[str, Result]) -> None:
    events = {name: [result.scores[scaler].events for scaler in (OURS, SERVE)] for name, result in results.items()}
    assert all(ours < theirs for ours, theirs in events.values()), events


def test_where_the_source_lets_all_through_nothing_is_left(results: dict[str, Result]) -> None:
    for result in results.values():
        ours = result.runs[OURS]
        assert result.scores[OURS].left <= 60 * TOKENS_PER_S * max(1.0, float(result.curve.load[-1]))
        assert np.all(ours.paid >= ours.ready)


def test_what_is_harder_than_the_standard_set_costs_more_and_still_less_than_others_take() -> None:
    for result in compare(hard(), DRAIN_S):
        ours = result.cost(OURS)
        assert ours <= 1.30 and ours < min(result.cost(SERVE), result.cost(KEDA)), result.curve.name
        assert all(drain <= DRAIN_S for drain in result.scores[OURS].drains)


# ---- the world


def test_a_replica_is_paid_for_from_its_order_on() -> None:
    run = simulate(curve([0.0] * 10), lambda seen: 3 if seen.at >= 4 else 0)
    assert run.paid.tolist() == [0, 0] + [3] * 8
    assert run.ready.tolist() == [0] * 7 + [3] * 3


def test_what_is_not_wanted_goes_at_once_and_what_is_on_its_way_first() -> None:
    run = simulate(curve([0.0] * 4, initial=4), lambda seen: 6 if seen.at < 2 else 5 if seen.at < 4 else 1)
    assert run.paid.tolist() == [6, 5, 1, 1]
    assert run.ready.tolist() == [4, 4, 1, 1]


def test_lost_replicas_are_started_again() -> None:
    run = simulate(curve([0.0] * 12, initial=4, losses=((6.0, 3),)), lambda seen: 4)
    assert run.ready.tolist() == [4, 4, 4, 1, 1, 1, 1, 1, 4, 4, 4, 4]
    assert set(run.paid.tolist()) == {4.0}


def test_what_is_not_served_waits_and_the_source_lets_only_so_much_through() -> None:
    run = simulate(curve([3.0] * 10, initial=4, source=2.0), lambda seen: 4)
    assert run.served == pytest.approx(2 * TOKENS_PER_S * TICK_S)
    assert run.backlog[-1] == pytest.approx(10 * TOKENS_PER_S * TICK_S)


# ---- the score


def test_a_score_by_hand() -> None:
    """40 s of nothing, then a load of 1 that one replica serves when it comes, 20 s later."""
    made = curve([0.0] * 20 + [1.0] * 80, starts_s=20.0, marks=(40.0,))
    found = score(simulate(made, lambda seen: int(seen.at >= 40)))
    assert found.gpu_hours == pytest.approx(160 / 3600)
    assert (found.events, found.peak) == (1, 1)
    assert found.lag_p99_s == pytest.approx(20, abs=4)
    assert found.drains == (float("inf"),), "it keeps up, and never drains what had piled up"
    found = score(simulate(made, lambda seen: 2 * (seen.at >= 40)))
    assert found.drains == (0.0,), "gone before a node that is ordered at the last moment is ready"


def test_lag_of_one_that_keeps_up_is_none() -> None:
    assert score(simulate(curve([1.0] * 100, initial=2), lambda seen: 2)).lag_p99_s < TICK_S


# ---- the clairvoyant


def test_the_clairvoyant_has_whole_replicas_for_work_that_is_spread_over_the_drain_target() -> None:
    hours, kept = clairvoyant(curve([1.5] * 600, starts_s=0.0), 60.0)
    assert set(kept) == {2.0}
    assert hours == pytest.approx(kept.sum() * TICK_S / 3600)
    # A burst of ten for half a minute may take a minute and a half.
    burst = [0.0] * 100 + [10.0] * 15 + [0.0] * 100
    _, kept = clairvoyant(curve(burst, starts_s=0.0), 60.0)
    assert kept.max() == np.ceil(10 * 15 / (15 + 30))
    _, kept = clairvoyant(curve(burst, starts_s=0.0), TICK_S)
    assert kept.max() == 10


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0, 50), min_size=2, max_size=80), st.integers(1, 30))
def test_the_taut_path_keeps_its_bounds_and_has_the_least_peak(load: list[float], wait: int) -> None:
    came = np.cumsum(load)
    due = np.concatenate((np.zeros(min(wait, len(came))), came[:-wait]))
    due[-1] = came[-1]
    path = taut(due, came)
    assert np.all(path <= came + 1e-6)
    assert np.all(path >= due - 1e-6)
    slopes = np.diff(path, prepend=0.0)
    assert np.all(slopes >= -1e-6)
    # The least peak that any schedule can have: the busiest stretch of work that comes and is due within it.
    before = np.concatenate(([0.0], came))
    peak = max((due[end] - before[begin]) / (end - begin + 1) for end in range(len(came)) for begin in range(end + 1))
    assert slopes.max() == pytest.approx(max(peak, 0.0), abs=1e-6)


def test_it_pays_for_every_start_and_keeps_a_replica_where_that_is_cheaper() -> None:
    t = np.arange(1800) * TICK_S
    gap = np.where((t >= 1200) & (t < 1500), 0.0, 1.0)
    kept_on, kept = clairvoyant(curve(gap, starts_s=400.0), TICK_S)
    assert kept_on == pytest.approx((3600 + 400) / 3600, abs=TICK_S / 3600)
    assert set(kept) == {1.0}
    let_go, kept = clairvoyant(curve(gap, starts_s=200.0), TICK_S)
    assert let_go == pytest.approx((3300 + TICK_S + 2 * 200) / 3600)
    assert kept[t == 1300] == 0


def test_nobody_who_serves_in_time_is_cheaper_than_the_clairvoyant_on_a_step() -> None:
    t = np.arange(int(2 * HOUR / TICK_S)) * TICK_S
    made = curve(np.where(t >= HOUR, 10.0, 2.0), starts_s=120.0, initial=2)
    best, _ = clairvoyant(made, DRAIN_S)
    knows = simulate(made, lambda seen: 10 if seen.at >= HOUR - 120 else 2)
    assert score(knows).lag_p99_s < DRAIN_S
    assert best <= score(knows).gpu_hours <= 1.01 * best


# ---- the others


def glance(at: float, **more) -> Glance:
    figures = {"ready": 4, "target": 4, "backlog": 0.0, "arrived": 0.0, "done": 0.0, "calls": 0.0, "call_s": 0.0}
    return Glance(at, **(figures | more))


def test_serves_default_waits_for_its_delays() -> None:
    scaler, found = ServeDefault(curve([1.0])), []
    for at in range(0, 60, 2):
        found.append(scaler(glance(float(at), calls=8.0)))  # two calls on each of four: 8 / 1.5 → 6
    assert found[:15] == [4] * 15
    assert 6 in found
    scaler = ServeDefault(curve([1.0]))
    lowered = [scaler(glance(float(at), calls=1.0)) for at in range(0, 700, 2)]
    assert lowered.index(1) == 300, "ten minutes"


def test_serves_default_starts_one_from_zero() -> None:
    scaler = ServeDefault(curve([1.0]))
    assert scaler(glance(0.0, ready=0, target=0)) == 0
    assert scaler(glance(2.0, ready=0, target=0, backlog=1.0)) == 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray Serve's, at import
def test_serves_own_function_wants_the_same() -> None:
    """What is simulated is what Ray Serve's function answers for the same requests."""
    from types import SimpleNamespace

    from ray.serve.autoscaling_policy import replica_queue_length_autoscaling_policy
    from ray.serve.config import AutoscalingConfig

    config = AutoscalingConfig(min_replicas=0, max_replicas=100, target_ongoing_requests=ServeDefault.target_ongoing)
    assert (config.upscale_delay_s, config.downscale_delay_s) == (ServeDefault.up_s, ServeDefault.down_s)
    assert config.look_back_period_s == ServeDefault.look_back_s
    for ready, calls in ((4, 8.0), (4, 1.0), (10, 20.0), (10, 14.9), (0, 1.0)):
        context = SimpleNamespace(
            current_num_replicas=ready,
            target_num_replicas=ready,
            total_num_requests=calls,
            config=config,
            policy_state={},
        )
        wanted = float(replica_queue_length_autoscaling_policy(context)[0])
        scaler, simulated = ServeDefault(curve([1.0])), ready
        for at in range(0, 1300, 2):
            simulated = scaler(glance(float(at), ready=ready, target=ready, calls=calls, backlog=calls))
            if simulated != ready:
                break
        assert simulated == int(np.ceil(wanted))


def test_keda_is_lag_over_a_threshold() -> None:
    per_replica = TOKENS_PER_S * DRAIN_S
    assert LagProportional(curve([1.0]))(glance(0.0, backlog=7.5 * per_replica)) == 8
    assert LagProportional(curve([1.0]))(glance(0.0, backlog=4.2 * per_replica)) == 4, "within the tolerance"
    assert LagProportional(curve([1.0]))(glance(0.0, backlog=100 * per_replica)) == 8, "no more than twice as many"
    assert LagProportional(curve([1.0]))(glance(0.0, ready=0, target=0, backlog=100 * per_replica)) == 1
    scaler = LagProportional(curve([1.0]))
    scaler(glance(0.0, backlog=4 * per_replica))
    assert scaler(glance(15.0, backlog=per_replica)) == 4, "the highest wish of five minutes"
    assert scaler(glance(316.0, backlog=per_replica)) == 1
    assert scaler(glance(620.0)) == 0


# ---- the command


def test_the_command_writes_table_values_and_plot(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.simulator.curves.standard", lambda: [curve([2.0] * 900)])
    monkeypatch.setattr("pipelines.simulator.curves.hard", list)
    assert cli.main(["simulate", "--out", str(tmp_path / "new")]) == 0
    out = capsys.readouterr().out
    assert "made" in out
    assert "stream-embedder" in out
    values = json.loads((tmp_path / "new" / "simulate.json").read_text())
    assert set(values["curves"][0]["scalers"]) == {OURS, SERVE, KEDA}
    page = (tmp_path / "new" / "simulate.md").read_text()
    assert page.startswith("```\nstream-embedder simulate --out ")
    assert (tmp_path / "new" / "simulate.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "new" / "simulate.svg").read_text().startswith("<?xml")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--curves", "stepp"], "there is no curve 'stepp': choose from step"),
        (["--curves", ","], "a curve is needed"),
        (["--drain-target", "soon"], "a number of seconds from 1 up is needed, not 'soon'"),
        (["--nonsense"], "unrecognized arguments: --nonsense"),
    ],
)
def test_a_wrong_option_is_one_sentence(words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["simulate", *words]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert "Traceback" not in error


def test_a_folder_that_cannot_be_written_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.simulator.curves.standard", lambda: [curve([2.0] * 100)])
    (tmp_path / "file").write_text("")
    assert cli.main(["simulate", "--out", str(tmp_path / "file" / "folder")]) == 1
    assert "--out names another folder" in capsys.readouterr().err
