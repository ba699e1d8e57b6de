"""How a job keeps out of the way of what is live beside it, and what else a replica does out of its encoder's.

Comes in: the share of the time that it may compute, or the CPUs of a replica. Goes out: rests of the right length, threads that
give way, an environment. Never here: the work.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping


class Pace:
    """Keeps one thread at work for no more than ``share`` of its time; each rest is as long as the work before it asks for."""

    def __init__(
        self, share: float, *, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        """``share``: above 0, up to 1, at which there are no rests."""
        self._rest = 1 / share - 1
        self._clock = clock
        self._sleep = sleep
        self._due = clock()

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Waits until the rest is over that the work before asked for; the body is the next work.

        A rest that had passed already, while there was nothing to do, is not made up for.
        """
        if (left := self._due - self._clock()) > 0:
            self._sleep(left)
        began = self._clock()
        try:
            yield
        finally:
            ended = self._clock()
            self._due = ended + self._rest * (ended - began)


def give_way() -> None:
    """From now on this thread, and those that it starts, compute only while no others of this machine want the core.

    Of containers each with a share of its own that holds inside one. Where there is no such class (it is Linux's SCHED_IDLE),
    or somebody forbids it, nothing changes.
    """
    with contextlib.suppress(AttributeError, OSError):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def beside_an_encoder(cpus: float, environ: Mapping[str, str]) -> dict[str, str]:
    """Variables for a replica that computes on so many CPUs: what else it does leaves them to the encoder.

    One thread tokenises 40 times as fast as MiniLM computes on a core in bfloat16; as many as the machine has cores would take
    them all for a moment, each time.
    """
    return {} if "RAYON_NUM_THREADS" in environ else {"RAYON_NUM_THREADS": str(max(1, math.ceil(cpus / 8)))}
