"""Counters add up, gauges replace, histograms keep sum and count, and the exporter hears every update."""

from __future__ import annotations

import threading

import pytest

from workers import metrics
from workers.metrics import Metric, Metrics


def all_metrics() -> list[Metric]:
    return [value for value in vars(metrics).values() if isinstance(value, Metric)]


def test_counters_add_up_by_label_and_over_all_labels():
    meter = Metrics()
    meter.add(metrics.DEAD_LETTERS, stage="decode", reason="invalid_json")
    meter.add(metrics.DEAD_LETTERS, 2, stage="decode", reason="invalid_utf8")
    meter.add(metrics.DEAD_LETTERS, 4, stage="text", reason="empty")
    assert meter.value(metrics.DEAD_LETTERS, stage="decode", reason="invalid_utf8") == 2
    assert meter.value(metrics.DEAD_LETTERS, stage="decode") == 3
    assert meter.value(metrics.DEAD_LETTERS, reason="empty") == 4
    assert meter.value(metrics.DEAD_LETTERS) == 7
    assert meter.value(metrics.COMMITS) == 0


def test_a_gauge_holds_its_last_level():
    meter = Metrics()
    meter.set(metrics.IN_FLIGHT_RECORDS, 9)
    meter.set(metrics.IN_FLIGHT_RECORDS, 4)
    assert meter.value(metrics.IN_FLIGHT_RECORDS) == 4


def test_the_snapshot_names_labels_and_a_histograms_sum_and_count():
    meter = Metrics()
    meter.add(metrics.RECORDS_READ, 3, topic="documents")
    meter.observe(metrics.COMMIT_SECONDS, 0.5)
    meter.observe(metrics.COMMIT_SECONDS, 0.25)
    assert meter.snapshot() == {
        "records_read_total{documents}": 3,
        "commit_seconds_sum": 0.75,
        "commit_seconds_count": 2,
    }


def test_a_label_that_is_missing_is_an_error():
    with pytest.raises(KeyError):
        Metrics().add(metrics.RECORDS_READ)


def test_the_exporter_hears_amounts_levels_and_observations():
    heard: list[tuple[str, float, dict[str, str]]] = []
    meter = Metrics(lambda metric, value, labels: heard.append((metric.name, value, labels)))
    meter.add(metrics.COMMITS)
    meter.add(metrics.COMMITS)
    meter.set(metrics.PARTITIONS_ASSIGNED, 6)
    meter.observe(metrics.CALL_TOKENS, 512)
    meter.add(metrics.REBALANCES, kind="lost")
    assert heard == [
        ("commits_total", 1, {}),
        ("commits_total", 1, {}),
        ("partitions_assigned", 6, {}),
        ("encode_call_tokens", 512, {}),
        ("rebalances_total", 1, {"kind": "lost"}),
    ]


def test_the_exporter_may_look_at_the_metrics():
    """It is called outside the lock: one that reads back must not hang."""
    meter: Metrics = Metrics(lambda metric, _value, _labels: seen.append(meter.value(metric)))
    seen: list[float] = []
    done = threading.Thread(target=lambda: meter.add(metrics.COMMITS), daemon=True)
    done.start()
    done.join(5)
    assert seen == [1]


def test_threads_lose_no_count():
    meter = Metrics()
    threads = [threading.Thread(target=lambda: [meter.add(metrics.COMMITS) for _ in range(2_000)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert meter.value(metrics.COMMITS) == 8_000


def test_every_metric_is_named_as_its_kind_wants():
    found = all_metrics()
    assert len({metric.name for metric in found}) == len(found) > 20
    for metric in found:
        assert metric.name.endswith("_total") == (metric.kind == "counter"), metric.name
        assert bool(metric.buckets) == (metric.kind == "histogram"), metric.name
        assert not (metric.kind == "histogram" and metric.labels), f"{metric.name}: observe() takes no labels"
        assert list(metric.buckets) == sorted(set(metric.buckets)), metric.name
        assert metric.help.endswith("."), metric.name
