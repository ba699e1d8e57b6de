"""A process that runs one seed after the other on servers of its own."""

from __future__ import annotations

import _thread
import contextlib
import logging
import multiprocessing.util
import os
import signal
import threading
import time
from pathlib import Path

from tests.lab.plan import Plan
from tests.lab.stage import Stage, stage
from tests.lab.trial import Result, trial

# How long a seed has to end its pipelines.
CLEAN_UP_S = 20.0

_opened: list[Stage] = []


def open_lane(folder: Path) -> None:
    """Start what this process's seeds share; it ends with the process."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    # Clients of a broker that is killed on purpose have much to say.
    logging.getLogger("kafka").setLevel(logging.CRITICAL)
    # A shell's background command has it ignored, and then nothing would interrupt us.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    servers = contextlib.ExitStack()
    # A pool's process leaves without atexit's help.
    multiprocessing.util.Finalize(None, servers.close, exitpriority=10)
    _opened.append(servers.enter_context(stage(folder / f"lane-{os.getpid()}")))


def run(plan: Plan, count: int) -> Result:
    """One seed, on this process's servers."""
    return trial(plan, _opened[0], count)


def _end_with(parent: int) -> None:
    """Stop as Ctrl-C would when the process that started this one is gone, so that no pipeline is left behind."""
    while os.getppid() == parent:
        time.sleep(1)
    while True:
        # The pool takes an interrupt for the seed's failure, and goes on to the next.
        _thread.interrupt_main()
        time.sleep(CLEAN_UP_S)
