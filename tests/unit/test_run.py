"""What ``run`` says and catches, without Ray."""

from __future__ import annotations

import io
from typing import Any

import pytest
from pydantic import ValidationError

from pipelines import cluster, run
from pipelines.live import Live, Sample, line, logged, sample
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


def test_run_says_how_busy_encoders_are() -> None:
    """A call counts when it is back, with all of its time: on the live line over some samples, and never more than all of it."""
    stats = [{metrics.ENCODER_SECONDS.name: seconds} for seconds in (3.0, 5.0)]
    first, later = (
        sample(at, found, 0, {"Encoder": 2}, 2) for at, found in ((10.0, stats), (20.0, [*stats, stats[1]]))
    )
    assert "encoders 2/2 (25% busy)  " in line(later, None, first)
    assert "encoders=2/2 encoders_busy=0.250 " in logged(later, first)
    assert "(100% busy)" in line(Sample(20.0, encoder_s=90.0, encoders=2), None, first)
    for nothing in (line(first, None), logged(first, None), line(Sample(20.0, encoder_s=9.0), None, first)):
        assert "busy" not in nothing


class Terminal(io.StringIO):
    """What a terminal is shown, all of it."""

    def isatty(self) -> bool:
        return True


def test_the_live_line_forgets_what_a_replaced_reader_counted() -> None:
    shown: list[str] = []
    with Live(Terminal()) as live:
        live._status.update = shown.append
        for at in range(20):
            live.show(Sample(at, records=10 * at, encoder_s=at if at < 10 else 9.0, encoders=1))
        live.show(Sample(20, records=5, encoder_s=1.0, encoders=1))
        live.show(Sample(21, records=6, encoder_s=2.0, encoders=1))
        live.show(Sample(22, records=60, encoder_s=0.5, encoders=1))  # others have done more than it had
    assert ["busy" in each for each in shown] == [False, *[True] * 19, False, True, False]
    assert "(100% busy)" in shown[9] and "(50% busy)" in shown[14] and "(0% busy)" in shown[19]


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
