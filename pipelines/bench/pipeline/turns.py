"""Two that take turns on one machine, so that what other guests of it do falls on both alike.

Comes in: processes. Goes out: for how long each has run. Never here: what they do.

Where the speed of a core changes by a third from one second to the next, runs that follow each other say little; of turns of
seconds there are many in a run. Whoever waits for its turn is stopped (SIGSTOP), with all of its threads, and goes on later where
it was.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Collection

# Twenty processes that go on after a stop lose some milliseconds, until those that wait for each other are all back; one process
# loses none. Longer turns make less of that, shorter ones see more of what else the machine does.
TURN_S = 2.0
LOOK_S = 0.05


def pause(pids: Collection[int]) -> None:
    """Stop these processes where they are."""
    _signal(pids, signal.SIGSTOP)


def go_on(pids: Collection[int]) -> None:
    """Have them go on."""
    _signal(pids, signal.SIGCONT)


class Turns:
    """Who has run for how long: ``ours``, which do when this is made, or ``theirs``, which do not. In seconds."""

    def __init__(self, ours: Collection[int], theirs: Collection[int]) -> None:
        self._ours = ours
        self._theirs = theirs
        self._since = time.monotonic()
        self._before = 0.0
        self.theirs_s = 0.0

    @property
    def ours_s(self) -> float:
        """How long ``ours`` have run until now."""
        return self._before + time.monotonic() - self._since

    def wait(self) -> None:
        """Let a moment pass, and with it a turn of ``theirs`` when it is theirs; ``ours`` run afterwards, as before."""
        if time.monotonic() - self._since < TURN_S:
            time.sleep(LOOK_S)
            return
        try:
            pause(self._ours)
            stopped = time.monotonic()
            go_on(self._theirs)
            time.sleep(TURN_S)
        finally:
            pause(self._theirs)
            ended = time.monotonic()
            go_on(self._ours)
        self._before += stopped - self._since
        self.theirs_s += ended - stopped
        self._since = ended


def _signal(pids: Collection[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
