"""What the heap is told, and that it is left alone where somebody else has said how."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from pipelines import heap

# Threads that each drop buffers of rising sizes: without a fixed threshold the later ones stay in the arenas.
_CHURN = """
import sys, threading
from pathlib import Path
from pipelines import heap
if sys.argv[1] == "small":
    assert heap.keep_small({})
def churn():
    for size in range(200, 4000, 37):
        kept = [bytes(size * 1000) for _ in range(2)], [bytes(600) for _ in range(2000)]
threads = [threading.Thread(target=churn) for _ in range(12)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(int(Path("/proc/self/statm").read_text().split()[1]) * 4096)
"""


@pytest.mark.parametrize("name", ["MALLOC_ARENA_MAX", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"])
def test_the_environment_has_the_last_word(name: str) -> None:
    assert not heap.keep_small({name: "1"})
    assert not heap.keep_large({name: "1"})


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's heap")
def test_what_was_dropped_is_given_back() -> None:
    def resident(how: str) -> int:
        done = subprocess.run([sys.executable, "-c", _CHURN, how], capture_output=True, text=True, check=True)
        return int(done.stdout)

    small, plain = resident("small"), resident("plain")
    print(small, plain)
    assert small < plain


# A thread that is there before the heap is set up, as a replica's are, and makes and drops what a layer does, over more than one
# part of its arena: how many pages it was given, after the first rounds.
_LAYERS = """
import resource, sys, threading
import numpy as np
from pipelines import heap
begin = threading.Event()
def layers():
    small = bytes(100)
    begin.wait()
    for number in range(60):
        if number == 20:
            before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
        kept = [np.zeros(size << 18, np.uint8) + np.uint8(1) for size in (5, 13, 27, 40, 90, 110)]
        del kept
    print(resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before)
thread = threading.Thread(target=layers)
thread.start()
if sys.argv[1] == "large":
    assert heap.keep_large({})
begin.set()
thread.join()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's heap")
def test_an_encoder_keeps_what_it_will_ask_for_again() -> None:
    def faults(how: str) -> int:
        said = ("MALLOC_", "GLIBC_TUNABLES")
        environ = {name: value for name, value in os.environ.items() if not name.startswith(said)}
        line = [sys.executable, "-c", _LAYERS, how]
        return int(subprocess.run(line, env=environ, capture_output=True, text=True, check=True).stdout)

    large, plain = faults("large"), faults("plain")
    assert large < 1_000 < plain


# What loading leaves: large buffers are dropped, and smaller ones that came between them go on.
_LOADED = """
import threading
from pathlib import Path
from pipelines import heap
resident = lambda: int(Path("/proc/self/statm").read_text().split()[1]) * 4096 >> 20
assert heap.keep_large({})
def load():
    made = [(bytearray(b"1" * (4 << 20)), bytearray(b"1" * (1 << 20))) for _ in range(40)]
    made = [small for _, small in made]
    before = resident()
    heap.give_back()
    print(before - resident())
thread = threading.Thread(target=load)
thread.start()
thread.join()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's heap")
def test_what_loading_has_dropped_is_given_back_all_the_same() -> None:
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    line = [sys.executable, "-c", _LOADED]
    done = subprocess.run(line, env=environ, capture_output=True, text=True, check=True)
    assert int(done.stdout) > 100, "MiB of 160"
