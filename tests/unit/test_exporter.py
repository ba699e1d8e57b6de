"""Metrics as Ray's."""

from __future__ import annotations

import gc
import threading
from typing import Any

import pytest

from pipelines import exporter
from workers import metrics


class Gauge:
    def __init__(self, name: str, **_: Any) -> None:
        self.name = name
        self.sets: list[tuple[float, dict[str, str]]] = []
        self.again = threading.Event()

    def set(self, value: float, tags: dict[str, str]) -> None:
        self.sets.append((value, tags))
        if len(self.sets) > 2:
            self.again.set()


def test_a_gauge_that_stands_still_is_set_again_and_a_dropped_exporter_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Gauge] = []

    def make(name: str, **more: Any) -> Gauge:
        made.append(Gauge(name, **more))
        return made[-1]

    monkeypatch.setattr(exporter.ray_metrics, "Gauge", make)
    monkeypatch.setattr(exporter, "REPEAT_S", 0.01)
    meter = metrics.Metrics(exporter.RayExporter())
    meter.set(metrics.IN_FLIGHT_RECORDS, 100)
    meter.set(metrics.IN_FLIGHT_RECORDS, 7)
    assert made[0].again.wait(10)
    assert made[0].name == "stream_embedder_in_flight_records"
    assert {value for value, _ in made[0].sets[1:]} == {7}
    (thread,) = [thread for thread in threading.enumerate() if thread.name == "gauges"]
    del meter
    gc.collect()
    thread.join(10)
    assert not thread.is_alive()
