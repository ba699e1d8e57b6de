"""One core for the encoder that is measured, and the others for all else that the benchmark runs.

Comes in: processes. Goes out: where they may run. Without it the kernel now and then puts a broker or a reader on the encoder's
core, and the two are compared on different cores. Never here: what runs.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Collection, Iterator
from pathlib import Path

import psutil

LOOK_S = 2.0


@contextlib.contextmanager
def kept_free() -> Iterator[int | None]:
    """Keep a core free of us and of all that we have started and will; yields its number.

    None where there is one core alone, or an operating system that has no such thing (it is Linux that has).
    """
    if sys.platform != "linux" or len(ours := os.sched_getaffinity(0)) < 2:
        yield None
        return
    core = max(ours)
    _move(_family(), ours - {core})
    try:
        yield core
    finally:
        _move(_family(), ours)


def pin(core: int | None, pids: Collection[int]) -> None:
    """Let these processes run on that core alone, with all of their threads; None: where they like."""
    if core is not None:
        _move(pids, {core})


def pin_computing(core: int | None, pids: Collection[int]) -> None:
    """Let the thread of each process that computes run on that core alone: the one that has most CPU time while we look."""
    if core is None:
        return
    before = {pid: _cpu_s(pid) for pid in pids}
    time.sleep(LOOK_S)
    for pid, used in before.items():
        if now := _cpu_s(pid):
            with contextlib.suppress(OSError):
                os.sched_setaffinity(max(now, key=lambda thread: now[thread] - used.get(thread, 0.0)), {core})


def _cpu_s(pid: int) -> dict[int, float]:
    """CPU seconds of each thread."""
    try:
        return {thread.id: thread.user_time + thread.system_time for thread in psutil.Process(pid).threads()}
    except psutil.NoSuchProcess:
        return {}


def _family() -> list[int]:
    return [os.getpid(), *(process.pid for process in psutil.Process().children(recursive=True))]


def _move(pids: Collection[int], cores: Collection[int]) -> None:
    if sys.platform == "linux":
        # A thread has the cores of the one that started it, as those had that were not there at the first look.
        for _ in range(2):
            for pid in pids:
                with contextlib.suppress(OSError):  # it has ended
                    for thread in Path(f"/proc/{pid}/task").iterdir():
                        with contextlib.suppress(OSError):
                            os.sched_setaffinity(int(thread.name), cores)
