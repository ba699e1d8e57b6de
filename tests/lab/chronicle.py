"""What the lab did to a seed's pipelines, and when: by this, what they show afterwards is told from what nobody did to them.

Comes in: each deed, as it is done. Goes out: answers to whether it was done. Never here: what it leads to.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass
class Outage:
    """Something that a pipeline needs and does not have, between two times of the clock on the wall."""

    what: str
    began: float
    ended: float = math.inf


@dataclass
class Chronicle:
    """Deeds of one seed. ``killed``: process ids; ``notes``: what came of a fault, where that is worth a line."""

    killed: set[int] = field(default_factory=set)
    outages: list[Outage] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def kill(self, pid: int) -> None:
        """kill -9; one that is gone already was not killed by us."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            self.killed.add(pid)

    @contextlib.contextmanager
    def outage(self, what: str) -> Iterator[None]:
        """``broker``, ``store`` or ``memory`` fails inside the block."""
        outage = Outage(what, time.time())
        self.outages.append(outage)
        try:
            yield
        finally:
            outage.ended = time.time()

    def failed(self, what: str, since: float, until: float) -> bool:
        """Whether ``what`` failed at some time between the two."""
        return any(each.what == what and each.began <= until and each.ended >= since for each in self.outages)
