"""A process whose encoder computes on a CPU while other threads of it talk: a replica of a stream, or of a batch job.

Comes in: the environment. Goes out: an interpreter and a heap that suit it. Never here: how many threads compute.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from pipelines import heap

# The encoder's thread wants the interpreter back after each operation, and others that read and write may keep it for so long;
# Python's own 5 ms are longer than most operations on a CPU take.
SWITCH_S = 0.0002


@contextmanager
def settled_in(environ: Mapping[str, str], *, cuda: bool) -> Iterator[None]:
    """Set this process up for an encoder, which is loaded inside; afterwards what loading has dropped is given back.

    ``cuda``: it computes on a GPU, and nothing is to be done.
    """
    if cuda:
        yield
        return
    sys.setswitchinterval(SWITCH_S)
    heap.keep_large(environ)
    yield
    heap.give_back()
