"""One core for the encoder that is measured, and the others for all else that the benchmark runs.

Comes in: processes. Goes out: where they may run, and the CPU time of the threads that compute. Without it the kernel now and then
puts a broker or a reader on the encoder's core, and the two are compared on different cores. Never here: what runs.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

import psutil

LOOK_S = 2.0


class Thread(NamedTuple):
    """One thread of a process, by the operating system's number."""

    pid: int
    id: int


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


def pin_computing(core: int | None, pids: Collection[int]) -> list[Thread]:
    """Let the thread of each process that computes run on that core alone: the one that has most CPU time while we look.

    Returns them; of no process that has ended, and none where ``core`` is None.
    """
    if core is None:
        return []
    before = {pid: _cpu_s(pid) for pid in pids}
    time.sleep(LOOK_S)
    found = []
    for pid, used in before.items():
        if now := _cpu_s(pid):
            thread = max(now, key=lambda thread: now[thread] - used.get(thread, 0.0))
            with contextlib.suppress(OSError):
                os.sched_setaffinity(thread, {core})
                found.append(Thread(pid, thread))
    return found


def cpu_s(threads: Collection[Thread]) -> float:
    """Seconds of CPU time that these have had; to a hundredth."""
    return sum(_cpu_s(thread.pid).get(thread.id, 0.0) for thread in threads)


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
