"""What ``run`` says and catches, without Ray."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from pipelines import run
from pipelines.live import Sample, line, logged, sample
from workers import metrics


@pytest.fixture
def hangup() -> Iterator[None]:
    before = signal.getsignal(signal.SIGHUP)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_each_signal_that_ends_a_program_drains(number: signal.Signals, hangup: None) -> None:
    stop = threading.Event()
    before = signal.getsignal(number)
    with run._signals(stop):
        os.kill(os.getpid(), number)
        assert stop.wait(5)
    assert signal.getsignal(number) is before


def test_nohup_is_heeded(hangup: None) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    stop = threading.Event()
    with run._signals(stop):
        os.kill(os.getpid(), signal.SIGHUP)
        time.sleep(0.05)
        assert not stop.is_set()


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
