"""Signals end a run by a drain, whatever handlers stand in their way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from pipelines import signals

# In a process of its own, as the command is: the test runner has threads that block nothing.
THREADED = """
import ctypes, os, signal, subprocess, sys, threading
from pipelines import signals

signal.signal(signal.SIGHUP, signal.SIG_DFL)  # ignored where tests run under nohup
with signals.setting() as stop:
    other = threading.Thread(target=threading.Event().wait, daemon=True)
    other.start()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        ctypes.CDLL(None).signal(int(number), ctypes.c_void_p(0))  # the default, which ends; in C, as Ray's core does it
        stop.clear()
        os.kill(os.getpid(), number)
        assert stop.wait(5)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], preexec_fn=lambda: None)
    child.terminate()
    print(child.wait(10))
os.kill(os.getpid(), signal.SIGTERM)
"""


@pytest.fixture
def hangup() -> Iterator[None]:
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # ignored where tests run under nohup
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_each_signal_that_ends_a_program_sets_the_event(number: signal.Signals, hangup: None) -> None:
    before = signal.getsignal(number)
    with signals.setting() as stop:
        os.kill(os.getpid(), number)
        # Another thread of the test runner may take it, and then the handler runs between two waits of this one.
        assert any(stop.wait(0.1) for _ in range(50))
    assert signal.getsignal(number) is before


def test_no_handler_of_others_runs_and_children_can_be_ended() -> None:
    done = subprocess.run([sys.executable, "-c", THREADED], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.strip() == str(-signal.SIGTERM), done.stderr
    assert done.returncode == -signal.SIGTERM, "afterwards a signal ends the process again"


def test_nohup_is_heeded(hangup: None) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with signals.setting() as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        time.sleep(0.05)
        assert not stop.is_set()
