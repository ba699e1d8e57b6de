"""The C library's heap, in a reader and in an encoder that computes on a CPU: they want opposite things of it.

Comes in: the environment. Goes out: glibc, told what to do. Never here: a limit on what a process holds.

A reader makes and drops megabytes by many threads for weeks, and its heap should stay as large as what is in it. As it comes,
glibc gives each thread an arena of its own, and serves ever larger buffers from them once some were freed; what lies between
them keeps whole arenas from being given back. Over a million small records that was 15 % on top, and growing.

An encoder asks for what it has just dropped, megabytes at a time, in each layer of each pass. As it comes, glibc gives them back
in between, from a thread other than the first above all, and each page is cleared anew: some 4 % of the time, for MiniLM in
bfloat16.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, MutableMapping

# From malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -2, -3, -8
# A fetch, a decompressed batch, a call's arrays: each larger one is mapped, and given back when it is dropped.
LARGE_BYTES = 256 << 10
ARENAS = 2
# For mapping glibc takes no threshold above 32 MiB. An arena other than the first is of parts of 64 MiB, and gives back those that
# lie empty, whatever the threshold, unless less than the pad would be left. The pad is address space: pages come when touched.
KEPT = {_MMAP_THRESHOLD: 32 << 20, _TRIM_THRESHOLD: 1 << 30, _TOP_PAD: 128 << 20}


def keep_small(environ: MutableMapping[str, str]) -> bool:
    """Set this process's heap up; whether it was. Left as it is where the environment says how, or where it is not glibc's.

    Arrow, which has an allocator of its own that keeps what was dropped, is told to use this one: before it is imported.
    """
    if not _set({_ARENA_MAX: ARENAS, _MMAP_THRESHOLD: LARGE_BYTES, _TRIM_THRESHOLD: LARGE_BYTES}, environ):
        return False
    environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    return True


def keep_large(environ: Mapping[str, str]) -> bool:
    """Have this process, which computes on a CPU, keep what it will ask for again; whether it does, as in :func:`keep_small`."""
    return _set(KEPT, environ)


def give_back() -> None:
    """Give back what was dropped until now, once, whatever the thresholds say."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _set(wanted: Mapping[int, int], environ: Mapping[str, str]) -> bool:
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in environ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all([mallopt(option, value) == 1 for option, value in wanted.items()])
