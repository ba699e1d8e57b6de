"""The census: a reader's share of the calls, and what it says while no encoder runs."""

from __future__ import annotations

import logging

import pytest

from pipelines.census import LOG_EVERY_S, Census, Count, own_sentence
from workers import metrics
from workers.settings import Settings

MESSAGE = """A replica failed to start with exception. Retrying. Error:
Traceback (most recent call last):
  File "stream.py", line 1, in __init__
workers.errors.EnvironmentFault: model /models/m: there is no such folder
"""


@pytest.fixture
def meter() -> metrics.Metrics:
    return metrics.Metrics()


def census(meter: metrics.Metrics, **pool: object) -> Census:
    return Census(Settings.model_validate({"pool": pool}), meter, lambda: Count(1, 1))


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    monkeypatch.setattr(logging.getLogger("stream_embedder"), "propagate", True)
    caplog.set_level(logging.INFO, "stream_embedder")
    return caplog


@pytest.mark.parametrize(
    ("encoders", "readers", "share"), [(1, 1, 2), (4, 1, 8), (4, 2, 4), (1, 4, 1), (0, 1, 1), (3, 0, 6)]
)
def test_readers_share_what_the_encoders_take_and_one_call_always_finds_out(
    encoders: int, readers: int, share: int, meter: metrics.Metrics
) -> None:
    counted = census(meter, in_flight=2)
    counted.note(Count(encoders, readers), 0.0)
    assert counted.capacity() == share
    assert meter.value(metrics.ENCODERS_RUNNING) == encoders


def test_a_reader_takes_places_that_others_leave_when_its_share_is_under_way(meter: metrics.Metrics) -> None:
    counted = census(meter, in_flight=2)
    counted.note(Count(4, 4), 0.0)
    meter.set(metrics.CALLS_IN_FLIGHT, 1)
    counted.heard(0.1, 0.1)
    assert counted.capacity() == 2, "it has not used them up"
    meter.set(metrics.CALLS_IN_FLIGHT, 2)
    counted.heard(0.1, 0.1)
    assert counted.capacity() == 3
    counted.heard(0.5, 0.1)
    assert counted.capacity() == 2, "others wait"


def test_where_replicas_come_and_go_no_call_is_sent_before_one_is_there(meter: metrics.Metrics) -> None:
    """A call that waits would make Serve start one replica, and ask the policy only when that one runs."""
    counted = census(meter, min=0, max=4, in_flight=2)
    assert counted.capacity() == 0
    counted.note(Count(3, 2), 0.0)
    assert counted.capacity() == 3
    meter.set(metrics.CALLS_IN_FLIGHT, 3)
    counted.heard(0.1, 0.1)
    assert counted.capacity() == 4
    counted.note(Count(0, 2), 5.0)
    assert counted.capacity() == 0
    counted.note(Count(3, 2), 10.0)
    assert counted.capacity() == 3, "what was taken of the others' part went with the encoders"
    assert census(meter, min=2, max=2).capacity() == 4, "a pool of one size is thought to be there"


def test_encoders_that_are_gone_are_said_with_the_reason_and_for_how_long(
    meter: metrics.Metrics, lines: pytest.LogCaptureFixture
) -> None:
    counted = census(meter)
    counted.note(Count(1, 1), 100.0)
    assert meter.value(metrics.ENCODERS_UNAVAILABLE) == 0
    counted.note(Count(0, 1, MESSAGE), 102.0)
    counted.note(Count(0, 1, MESSAGE), 104.0)
    assert meter.value(metrics.ENCODERS_UNAVAILABLE) == 2
    assert lines.text.count("no encoder runs") == 1
    assert 'reason="model /models/m: there is no such folder"' in lines.text
    assert "Traceback" not in lines.text
    counted.note(Count(0, 1), 102.0 + LOG_EVERY_S)
    assert lines.text.count("no encoder runs") == 2
    counted.note(Count(1, 1), 150.0)
    assert meter.value(metrics.ENCODERS_UNAVAILABLE) == 0
    assert "encoders are back after_s=48.000" in lines.text


def test_the_first_encoder_may_take_its_time(meter: metrics.Metrics, lines: pytest.LogCaptureFixture) -> None:
    counted = census(meter)
    counted.note(Count(0, 1), 0.0)
    counted.note(Count(0, 1), LOG_EVERY_S - 1)
    counted.note(Count(1, 1), LOG_EVERY_S)
    assert lines.text == "" and meter.value(metrics.ENCODERS_UNAVAILABLE) == 0


def test_a_pool_that_shrank_to_nothing_is_gone_only_for_who_waits(
    meter: metrics.Metrics, lines: pytest.LogCaptureFixture
) -> None:
    counted = census(meter, min=0)
    counted.note(Count(0, 1), 0.0)
    counted.note(Count(0, 1), 60.0)
    assert meter.value(metrics.ENCODERS_UNAVAILABLE) == 0 and lines.text == ""
    meter.set(metrics.CALLS_IN_FLIGHT, 1)
    counted.note(Count(0, 1), 62.0)
    counted.note(Count(0, 1), 65.0)
    assert meter.value(metrics.ENCODERS_UNAVAILABLE) == 3
    assert "no encoder runs" not in lines.text, "one is started meanwhile"
    counted.note(Count(0, 1), 62.0 + LOG_EVERY_S)
    assert lines.text.count("no encoder runs") == 1


def test_only_our_own_sentence_is_taken_out_of_a_message() -> None:
    assert own_sentence(MESSAGE) == "model /models/m: there is no such folder"
    assert own_sentence("RuntimeError: CUDA error") is None
