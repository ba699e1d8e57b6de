"""A process whose encoder computes on a CPU while other threads of it talk: a replica of a stream, or of a batch job.

Comes in: nothing. Goes out: an interpreter and a heap that suit it. Never here: how many threads compute.
"""

from __future__ import annotations

import os
import sys

from pipelines import heap

# The encoder's thread wants the interpreter back after each operation, and others that read and write may keep it for so long;
# Python's own 5 ms are longer than most operations on a CPU take.
SWITCH_S = 0.0002


def settle_in() -> None:
    """Set this process up for an encoder: before its model is loaded."""
    sys.setswitchinterval(SWITCH_S)
    heap.keep_large(os.environ)
