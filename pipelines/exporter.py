"""Our metrics as Ray's, which each node serves to Prometheus.

Comes in: every update of a :class:`workers.metrics.Metrics`. Goes out: Ray's counters, gauges and histograms. Never here: names.
"""

from __future__ import annotations

import threading
from typing import Any

from ray.util import metrics as ray_metrics

from workers import metrics


class RayExporter:
    """Hands every update to Ray's metrics, which each node serves to Prometheus."""

    def __init__(self) -> None:
        self._made: dict[str, Any] = {}
        self._lock = threading.Lock()

    def __call__(self, metric: metrics.Metric, value: float, labels: dict[str, str]) -> None:
        """Count, set or observe; ``value`` as in :class:`workers.metrics.Metrics`."""
        made = self._metric(metric)
        match metric.kind:
            case "counter":
                if value > 0:
                    made.inc(value, tags=labels)
            case "gauge":
                made.set(value, tags=labels)
            case "histogram":
                made.observe(value, tags=labels)

    def _metric(self, metric: metrics.Metric) -> Any:
        with self._lock:
            if metric.name not in self._made:
                # Ray appends _total to a counter's name itself.
                name = metrics.PREFIX + metric.name.removesuffix("_total")
                arguments: dict[str, Any] = {"description": metric.help, "tag_keys": metric.labels}
                match metric.kind:
                    case "counter":
                        self._made[metric.name] = ray_metrics.Counter(name, **arguments)
                    case "gauge":
                        self._made[metric.name] = ray_metrics.Gauge(name, **arguments)
                    case "histogram":
                        self._made[metric.name] = ray_metrics.Histogram(name, boundaries=metric.buckets, **arguments)
            return self._made[metric.name]
