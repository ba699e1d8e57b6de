"""What ``run`` says and catches, without Ray."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from pipelines import cluster, run
from pipelines.live import Sample, line, logged, sample
from workers import metrics
from workers.settings import Settings


def test_a_drain_says_what_it_left() -> None:
    assert run.left_behind(0) == "drained; all that was read is committed"
    assert "4,096 records are not committed: they are read again at the next start" in run.left_behind(4096)


def test_the_live_line_says_for_how_long_no_encoder_has_run() -> None:
    snapshots = [{metrics.ENCODERS_UNAVAILABLE.name: 3.0}, {metrics.ENCODERS_UNAVAILABLE.name: 5.0}]
    now = sample(0.0, snapshots, None, {"Reader": 2, "Encoder": 0}, 1)
    assert "encoders 0/1 (none for 5 s)  " in line(now, None)
    assert "encoders=0/1 no_encoder_s=5 " in logged(now, None)
    assert "none for" not in line(Sample(0.0), None) and "no_encoder_s" not in logged(Sample(0.0), None)
    assert "lag=unknown" in logged(now, None)


def test_a_ray_that_is_started_here_serves_metrics_where_it_is_told() -> None:
    class Started:
        arguments: dict[str, Any]

        def init(self, **arguments: Any) -> None:
            self.arguments = arguments

    started = Started()
    cluster._start(started, Settings(ray={"metrics_port": 8080}))
    assert started.arguments["_metrics_export_port"] == 8080
    cluster._start(started, Settings())
    assert "_metrics_export_port" not in started.arguments
    with pytest.raises(ValidationError, match="metrics_port is for a Ray that is started here"):
        Settings(ray={"metrics_port": 8080, "address": "auto"})
