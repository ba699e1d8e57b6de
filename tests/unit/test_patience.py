"""Loading a model: what fails before anything ran fails at once, what fails later is tried again."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest

from pipelines import patience
from pipelines.patience import patiently
from workers import metrics
from workers.errors import EnvironmentFault, StreamEmbedderError


@pytest.fixture
def sleeps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    found: list[float] = []
    monkeypatch.setattr(patience.time, "sleep", found.append)
    return found


def failing(times: int, error: Exception) -> Callable[[], str]:
    left = [error] * times

    def load() -> str:
        if left:
            raise left.pop()
        return "loaded"

    return load


def test_at_the_first_start_it_fails_at_once(sleeps: list[float]) -> None:
    meter = metrics.Metrics()
    with pytest.raises(StreamEmbedderError, match="no such folder"):
        patiently(failing(1, EnvironmentFault("no such folder")), "encoder", meter, lambda: False)
    assert sleeps == []
    assert meter.value(metrics.MODEL_LOADS_FAILED, actor="encoder") == 1


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (EnvironmentFault("model m: there is no such folder"), '"model m: there is no such folder"'),
        (RuntimeError("CUDA error: no device\nmore of it"), '"RuntimeError: CUDA error: no device"'),
    ],
)
def test_later_it_is_tried_again_more_and_more_slowly(
    error: Exception,
    said: str,
    sleeps: list[float],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logging.getLogger("stream_embedder"), "propagate", True)
    meter = metrics.Metrics()
    assert patiently(failing(6, error), "encoder", meter, lambda: True) == "loaded"
    assert sleeps == [1, 2, 4, 8, 15, 15]
    assert meter.value(metrics.MODEL_LOADS_FAILED, actor="encoder") == 6
    assert said in caplog.text and "more of it" not in caplog.text


def test_in_the_end_it_makes_place_for_another_process(sleeps: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "PATIENCE_S", 0)
    with pytest.raises(EnvironmentFault):
        patiently(failing(1, EnvironmentFault("gone")), "reader", metrics.Metrics(), lambda: True)
    assert sleeps == []
