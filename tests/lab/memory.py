"""A machine whose memory runs short for one pipeline: a limit for its Ray just above what is used, and a balloon.

Comes in: the machine's memory, and a pipeline that is asked what Ray says. Goes out: a worker that Ray has killed, or the
reason why none was. Never here: more memory than the machine can spare.

Ray's monitor looks at the whole machine, so that whatever else grows on it may press as well: :meth:`Limit.others_press`.
"""

from __future__ import annotations

import contextlib
import fcntl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

GIB = 1 << 30
# What a pipeline of the lab takes once it runs, and what others on the machine may take on top.
PIPELINE_BYTES = int(1.5 * GIB)
SLACK_BYTES = int(1.5 * GIB)
# By so much the balloon presses the machine over the limit: Ray ends as many workers as would bring it under it again.
EXCESS_BYTES = 100 << 20
MOST_BYTES = 3 * GIB
# Ray looks five times a second; what holds the balloon lets go by itself a while later, whatever became of us.
PERIOD_MS = 200
HOLD_S = 10.0
# What Ray kills later than this is no longer the balloon's.
SETTLE_S = 3.0

_BALLOON = """
import signal, sys
signal.alarm(int(sys.argv[2]))
with open("/proc/self/oom_score_adj", "w") as first:  # should the machine itself run short
    first.write("1000")
held = b"\\x01" * int(sys.argv[1])
print("full", flush=True)
sys.stdin.read()
"""
# Control groups, version 2 and version 1: limit, use, and what of that is but a cache of files.
_GROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory.stat", ""),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        "/sys/fs/cgroup/memory/memory.stat",
        "total_",
    ),
)


def total_and_used() -> tuple[int, int]:
    """Bytes there are, and bytes in use, as Ray counts them: of the control group, where that has less than the machine."""
    machine = psutil.virtual_memory()
    for limit, used, about, prefix in _GROUPS:
        with contextlib.suppress(OSError, ValueError):  # no such group, or one without a limit
            total = int(Path(limit).read_text(encoding="ascii"))
            lines = dict(line.split() for line in Path(about).read_text(encoding="ascii").splitlines())
            cached = sum(int(lines[f"{prefix}{kind}_file"]) for kind in ("inactive", "active"))
            if total < machine.total:
                return total, int(Path(used).read_text(encoding="ascii")) - cached
    return machine.total, machine.total - machine.available


class Limit:
    """One pipeline's limit of the machine's memory, taken anew at each of its starts."""

    def __init__(self, folder: Path) -> None:
        """``folder``: of all lanes, which press one after the other."""
        self._lock = folder / "balloon"
        self._bytes = 0
        self._expected = 0
        self._pressing = False

    def environment(self) -> dict[str, str]:
        """What Ray is told at a start."""
        total, used = total_and_used()
        self._bytes = min(used + PIPELINE_BYTES + SLACK_BYTES, int(0.95 * total))
        return {
            "RAY_memory_usage_threshold": f"{self._bytes / total:.5f}",
            "RAY_memory_monitor_refresh_ms": str(PERIOD_MS),
        }

    def others_press(self, killed: int) -> bool:
        """Whether Ray has killed more than the balloon made it, ``killed`` in all: then the pipeline needs a limit of this
        day."""
        if self._pressing or killed <= self._expected:
            return False
        self._expected = killed
        return True

    def press(self, killed: Callable[[], int]) -> str:
        """Fill the machine's memory over the limit until ``killed`` says more than before; returns what came of it."""
        with self._alone():
            total, used = total_and_used()
            size = max(0, self._bytes - used + EXCESS_BYTES)
            if size > MOST_BYTES or total - used < 2 * size:
                return f"skipped: {size / GIB:.1f} GiB would be needed, and {(total - used) / GIB:.1f} GiB are free"
            before = killed()
            self._pressing = True
            try:
                with _balloon(size):
                    until = time.monotonic() + HOLD_S
                    while killed() == before and time.monotonic() < until:
                        time.sleep(0.1)
                time.sleep(SETTLE_S)
            finally:
                self._expected, self._pressing = killed(), False
        return f"{size / GIB:.1f} GiB taken, and Ray killed {self._expected - before}"

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        with self._lock.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


@contextlib.contextmanager
def _balloon(size: int) -> Iterator[None]:
    """A process that holds so many bytes, and drops them with us, or soon after."""
    command = [sys.executable, "-c", _BALLOON, str(size), str(int(3 * HOLD_S))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            process.stdout.readline()
            yield
        finally:
            process.kill()
