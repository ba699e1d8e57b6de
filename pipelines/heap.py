"""The C library's heap, in a reader and in an encoder that computes on a CPU: they want opposite things of it.

Comes in: the environment. Goes out: what glibc is to do. Never here: a limit on what a process holds.

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
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
# A fetch, a decompressed batch, a call's arrays: each larger one is mapped, and given back when it is dropped.
LARGE_BYTES = 256 << 10
ARENAS = 2
# One arena: of the others, glibc gives parts back whatever the threshold. Some versions take no more than 32 MiB for mapping.
_KEEPING = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
}


def keep_small(environ: MutableMapping[str, str]) -> bool:
    """Set this process's heap up; whether it was. Left as it is where the environment says how, or where it is not glibc's.

    Arrow, which has an allocator of its own that keeps what was dropped, is told to use this one: before it is imported.
    """
    if _is_said(environ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    wanted = {_ARENA_MAX: ARENAS, _MMAP_THRESHOLD: LARGE_BYTES, _TRIM_THRESHOLD: LARGE_BYTES}
    return all([mallopt(option, value) == 1 for option, value in wanted.items()])


def keeping(environ: Mapping[str, str]) -> dict[str, str]:
    """Variables for a process that is about to start and will compute on a CPU; none where the environment says how."""
    return {} if _is_said(environ) else dict(_KEEPING)


def _is_said(environ: Mapping[str, str]) -> bool:
    return any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in environ)
