"""The policy at work: figures from readers that come and go, decisions that never wait or raise, and what is said of them."""

from __future__ import annotations

import gc
import json
import logging
import math
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

from workers import metrics
from workers.autoscaler import PERIOD_S, REQUESTS_LAST_S, Autoscaler, Readers
from workers.query_demand import SHARE, QueryDemand
from workers.scaling import Limits, Reason
from workers.settings import Settings

LIMITS = Limits(least=0, most=10, tokens_per_s=1000.0)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def reader(held: float = 0, backlog: float | None = None, **more: float) -> dict[str, float]:
    """What a reader's metrics say."""
    return {
        "in_flight_records": held,
        "backlog_records": held if backlog is None else backlog,
        "records_prepared_total": 1000.0,
        "tokens_prepared_total": 50_000.0,
        "backlog_age_seconds": 0.5,
        **more,
    }


class Bench:
    """An autoscaler with readers and a clock that we move."""

    def __init__(self, count: int = 1, limits: Limits = LIMITS) -> None:
        self.clock, self.meter = Clock(), metrics.Metrics()
        self.answers: Any = [reader() for _ in range(count)]
        self.scaler = Autoscaler(self.ask, limits, readers=count, meter=self.meter, clock=self.clock)
        self.target = 0

    def ask(self) -> Any:
        if isinstance(self.answers, Exception):
            raise self.answers
        return self.answers

    def tick(self, ready: int | None = None, requests: float = 0.0, seconds: float = PERIOD_S) -> int:
        self.clock.now += seconds
        self.scaler.look()
        return self.want(ready, requests)

    def want(self, ready: int | None = None, requests: float = 0.0) -> int:
        ready = self.target if ready is None else ready
        self.target = self.scaler.target(ready, self.target, lambda: requests, 0, 10)
        return self.target


# ---- what readers say


def test_readers_are_added_up() -> None:
    readers = Readers(2)
    first = reader(10, 100, records_arrived_total=5.0, tokens_encoded_total=7.0, encode_calls_in_flight=2.0)
    second = reader(1, 1, partitions_paused=3.0, backlog_age_seconds=1.5, encode_calls_in_flight_seconds_total=4.0)
    found = readers.add_up(50.0, [first, second])
    assert found is not None
    assert (found.held, found.backlog, found.arrived, found.done) == (11, 101, 5, 7)
    assert (found.call_s, found.calls, found.blocked, found.age_s, found.mean_age_s) == (4, 2, True, 1.5, 1.0)
    assert found.tokens_per_record == 50


def test_labels_are_added_up_and_other_names_are_not() -> None:
    readers = Readers(1)
    found = readers.add_up(0.0, [reader() | {"in_flight_records{a}": 1.0, "in_flight_records_of_another": 7.0}])
    assert found is not None
    assert found.held == 1


@pytest.mark.parametrize(
    "answers",
    [[], [reader()], [reader(), {"in_flight_records": 1.0}], [reader(), reader(backlog_age_seconds=math.inf)]],
)
def test_a_reader_that_is_missing_or_knows_nothing_makes_no_figures(answers: list[dict[str, float]]) -> None:
    assert Readers(2).add_up(0.0, answers) is None


def test_tokens_of_a_record_follow_the_texts() -> None:
    readers = Readers(1)
    readers.add_up(0.0, [reader()])
    long = None
    for n in range(1, 40):
        counts = {"records_prepared_total": 1000.0 + 1000 * n, "tokens_prepared_total": 50_000.0 + 200_000 * n}
        long = readers.add_up(2.0 * n, [reader(**counts)])
    assert long is not None
    assert long.tokens_per_record == pytest.approx(200, rel=0.03)
    # A reader that counts anew makes no nonsense of it.
    anew = readers.add_up(100.0, [reader(records_prepared_total=1.0, tokens_prepared_total=5.0)])
    assert anew is not None
    assert anew.tokens_per_record == long.tokens_per_record


def test_what_readers_can_deliver_is_known_once_they_have_shown_it() -> None:
    readers = Readers(2)
    quick = {"tokens_prepared_at_speed_total": 1000.0, "preparing_at_speed_seconds_total": 0.1}
    found = readers.add_up(0.0, [reader(**quick), reader(**quick)])
    assert found is not None
    assert found.feed is None
    more = {"tokens_prepared_at_speed_total": 9000.0, "preparing_at_speed_seconds_total": 0.9}
    found = readers.add_up(2.0, [reader(**more), reader(**more)])
    assert found is not None
    assert found.feed == pytest.approx(2 * 10_000), "side by side"


# ---- what is decided


def test_a_backlog_starts_replicas_and_an_idle_pool_is_taken_down() -> None:
    bench = Bench(limits=Limits(least=0, most=10, tokens_per_s=1000.0, idle_s=20.0))
    assert bench.tick() == 0
    bench.answers = [reader(1000, 20_000)]  # a million tokens: 1,000 s of one replica
    bench.tick()
    for _ in range(4):
        bench.tick()
    assert bench.target == 10
    bench.answers = [reader()]
    for _ in range(12):
        bench.tick()
    assert bench.target == 0


def test_figures_are_decided_on_once() -> None:
    bench = Bench()
    bench.answers = [reader(1000, 20_000)]
    assert bench.tick(ready=0) == 8
    for _ in range(5):
        bench.clock.now += 1.0
        assert bench.want(ready=0) == 8, "no news"
    assert bench.tick(ready=0, seconds=1.0) == 10


def test_readers_that_say_nothing_change_nothing_for_ever() -> None:
    bench = Bench()
    bench.answers = [reader(100)]
    for _ in range(5):
        bench.tick()
    assert bench.target == 1
    for silence in (ConnectionError("gone"), [], [{}]):
        bench.answers = silence
        for _ in range(200):
            assert bench.tick() == 1
    assert bench.meter.value(metrics.SCALING_DECISIONS, reason="stale") > 3
    assert bench.meter.value(metrics.SCALING_AGE) > 100


def test_requests_of_others_count_and_our_readers_calls_do_not() -> None:
    bench = Bench()
    assert bench.tick(requests=4.0) == 2
    bench = Bench()
    bench.answers = [reader(1, encode_calls_in_flight=4.0)]
    for _ in range(10):
        bench.tick(requests=4.0)
    assert bench.target == 1, "one for the record that is held"
    # Serve's count is a mean over some time: what is left of it after our calls have ended is still ours.
    bench.answers = [reader()]
    for _ in range(int(REQUESTS_LAST_S / PERIOD_S) - 1):
        assert bench.tick(requests=3.0) == 1
    bench.tick(requests=3.0)
    assert bench.tick(requests=3.0) == 2


def test_queries_count_by_what_encoders_compute_for_them_and_wake_an_empty_pool() -> None:
    answers: list[Any] = [[]]
    bench = Bench(limits=Limits(least=0, most=10, tokens_per_s=1000.0, idle_s=60.0))
    bench.scaler._ask_queries = lambda: answers[0]
    said = {"queries_waiting": 0.0, "query_calls_in_flight": 0.0, "query_encoder_seconds_total": 100.0}
    answers[0] = [said]
    assert [bench.tick() for _ in range(3)] == [0, 0, 0]
    answers[0] = [said | {"queries_waiting": 1.0}]
    assert bench.tick() == 1, "one waits, and there is no encoder"
    assert bench.meter.value(metrics.SCALING_DECISIONS, reason="requests") == 1
    # An encoder that does nothing else: at 70 % of its time there should be a second one.
    for n in range(1, 30):
        answers[0] = [said | {"query_encoder_seconds_total": 100.0 + 2 * n, "query_calls_in_flight": 4.0}]
        # Their calls are Serve's requests too, and count once.
        bench.tick(ready=1, requests=4.0)
    assert bench.target == 2
    done = answers[0]
    for _ in range(10):
        bench.tick(ready=2, requests=0.0)
    assert bench.target >= 1, "what was busy of late is not taken down at once"
    answers[0] = []
    for _ in range(80):
        bench.tick()
    assert bench.target == 0
    answers[0] = done
    assert [bench.tick() for _ in range(20)] == [0] * 20, "what was counted before is not counted again"


def test_who_answers_queries_and_says_nothing_changes_nothing() -> None:
    def silent() -> Any:
        raise ConnectionError("gone")

    bench = Bench()
    bench.scaler._ask_queries = silent
    bench.answers = [reader(1000, 20_000)]
    assert bench.tick(ready=0) == 8


def test_a_counter_of_queries_that_begins_anew_makes_no_nonsense() -> None:
    demand = QueryDemand()
    for n, seconds in enumerate([50.0, 51.0, 0.5, 1.5, None, 2.5]):
        demand.note(10.0 * n, [] if seconds is None else [{"query_encoder_seconds_total": seconds}])
        assert 0 <= demand.replicas <= 0.15
    assert demand.replicas == pytest.approx(0.1 / SHARE)


def test_a_decision_says_its_figures_and_its_reason(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench()
    bench.answers = [reader(1000, 20_000)]
    with caplog.at_level(logging.INFO, "stream_embedder.autoscaler"):
        bench.tick(ready=0)
        for _ in range(5):
            bench.tick(ready=0)
    lines = [record.getMessage() for record in caplog.records]
    first = "encoders target=8 before=0 ready=0 reason=growth need="
    assert lines[0].startswith(first)
    assert "backlog_tokens=1000000 " in lines[0]
    assert "held=1000 unread=19000 requests=0.000 age_s=0.500" in lines[0]
    assert len(lines) == 2, "growth, then most; what stays as it is is not repeated"
    assert "target=10 before=8" in lines[1]
    values = bench.meter.snapshot()
    assert values["encoders_target"] == 10
    assert values["scaling_backlog_tokens"] == 1_000_000
    assert values["scaling_replica_tokens_per_second"] == 1000
    assert bench.meter.value(metrics.SCALING_DECISIONS) == 6


def test_whatever_happens_the_target_stays_and_nobody_is_told_twice(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench()

    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("workers.autoscaler.decide", broken)
    for _ in range(5):
        bench.clock.now += PERIOD_S
        bench.scaler.look()
        assert bench.scaler.target(3, 4, lambda: 0.0, 0, 10) == 4
    assert sum("scaling failed" in record.getMessage() for record in caplog.records) == 1
    monkeypatch.undo()

    def failing() -> float:
        raise RuntimeError("Serve's own metrics")

    bench.clock.now += PERIOD_S
    bench.scaler.look()
    assert bench.scaler.target(3, 4, failing, 0, 10) == 4


def test_a_reader_that_never_answers_holds_nobody_up() -> None:
    asked, forever = threading.Event(), threading.Event()

    def ask() -> list[dict[str, float]]:
        asked.set()
        forever.wait(60)
        return []

    scaler = Autoscaler(ask, LIMITS, readers=1, meter=metrics.Metrics())
    scaler.start()
    try:
        assert asked.wait(30)
        for _ in range(1000):
            assert scaler.target(2, 3, lambda: 0.0, 0, 10) == 3
    finally:
        scaler.stop()
        forever.set()


# ---- Serve's side


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray Serve's, at import
def test_serve_gets_limits_and_no_secret() -> None:
    from pipelines.scaler import EncoderScaler, scaled

    settings = Settings(
        pool={"min": 0, "max": 7, "in_flight": 3},
        scaling={"drain_target_s": 90, "tokens_per_s": 5},
        kafka={
            "sasl_password": "hunter2",
            "security_protocol": "SASL_SSL",
            "sasl_mechanism": "PLAIN",
            "sasl_username": "u",
        },
    )
    config = scaled(settings, "app")
    assert (config.min_replicas, config.max_replicas, config.initial_replicas) == (0, 7, None)
    assert config.upscale_delay_s == config.downscale_delay_s == config.downscale_to_zero_delay_s == 0
    kwargs = config.policy.policy_kwargs
    assert "hunter2" not in json.dumps(kwargs)
    assert Limits(**kwargs["limits"]) == Limits(least=0, most=7, drain_s=90, tokens_per_s=5, calls_per_replica=3)
    # What Serve unpickles is a class of its own, which works without this process's modules' state.
    unpickled = config.policy.get_policy()
    assert unpickled.__name__ == EncoderScaler.__name__


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray Serve's, at import
def test_serves_own_wrapper_passes_the_target_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Serve bounds, delays and multiplies what a policy says; with our settings it does nothing to it."""
    from ray.serve._private.autoscaling_state import _apply_autoscaling_config

    from pipelines.scaler import EncoderScaler, scaled

    config = scaled(Settings(pool={"min": 0, "max": 50}), "app")
    policy: Any = object.__new__(EncoderScaler)
    wanted = [0]
    policy._scaler = SimpleNamespace(target=lambda *_: wanted[0])
    wrapped = _apply_autoscaling_config(policy.__call__)

    def answer(current: int, target: int, want: int) -> int:
        wanted[0] = want
        context = SimpleNamespace(
            current_num_replicas=current,
            target_num_replicas=target,
            total_num_requests=0.0,
            capacity_adjusted_min_replicas=0,
            capacity_adjusted_max_replicas=50,
            config=config,
            policy_state={},
        )
        return int(wrapped(context)[0])

    assert answer(0, 0, 30) == 30
    assert answer(5, 5, 30) == 30
    assert answer(5, 30, 30) == 30
    assert answer(30, 30, 4) == 4
    assert answer(4, 4, 0) == 1, "Serve goes to zero by way of one"
    assert answer(4, 1, 0) == 0


def test_one_reader_that_holds_records_before_an_empty_pool_is_enough_to_start_it() -> None:
    bench = Bench(count=2)
    bench.answers = [reader(held=500)]
    assert [bench.tick() for _ in range(40)][-1] == 1
    assert bench.meter.value(metrics.SCALING_DECISIONS, reason="backlog") >= 1
    bench.target = 1
    assert {bench.tick(ready=1) for _ in range(40)} == {1}, "more is not known before all readers answer"
    bench.answers, bench.target = [reader(held=0)], 0
    assert {bench.tick() for _ in range(40)} == {0}


def test_the_last_decision_is_there_for_who_asks_and_says_since_when() -> None:
    bench = Bench()
    assert bench.scaler.last is None
    bench.answers = [reader(held=500)]
    for _ in range(3):
        bench.tick()
    first = bench.scaler.last
    assert first is not None and first["target"] == bench.target > 0
    assert first["reason"] in list(Reason)
    since = time.time()
    assert first["since"] <= since
    bench.answers = [reader(held=0)]
    while bench.target:
        bench.tick()
    assert bench.scaler.last is not None
    assert (bench.scaler.last["target"], bench.scaler.last["reason"]) == (0, "idle")
    assert bench.scaler.last["since"] >= since


def test_a_policy_that_serve_drops_asks_no_more() -> None:
    asked = threading.Event()

    def ask() -> list[dict[str, float]]:
        asked.set()
        return []

    scaler = Autoscaler(ask, LIMITS, readers=1, meter=metrics.Metrics())
    scaler.start()
    assert asked.wait(10)
    (thread,) = [thread for thread in threading.enumerate() if thread.name == "autoscaler"]
    del scaler
    gc.collect()
    thread.join(10)
    assert not thread.is_alive()
