"""The C library's heap in a reader, which makes and drops megabytes by many threads for weeks.

Comes in: nothing. Goes out: a heap that stays as large as what is in it. Never here: a limit on what a reader holds.

As it comes, glibc gives each thread an arena of its own, and serves ever larger buffers from them once some were freed; what
lies between them keeps whole arenas from being given back. Over a million small records that was 15 % on top, and growing.
"""

from __future__ import annotations

import ctypes
from collections.abc import MutableMapping

# From malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
# A fetch, a decompressed batch, a call's arrays: each larger one is mapped, and given back when it is dropped.
LARGE_BYTES = 256 << 10
ARENAS = 2


def keep_small(environ: MutableMapping[str, str]) -> bool:
    """Set this process's heap up; whether it was. Left as it is where the environment says how, or where it is not glibc's.

    Arrow, which has an allocator of its own that keeps what was dropped, is told to use this one: before it is imported.
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in environ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    wanted = {_ARENA_MAX: ARENAS, _MMAP_THRESHOLD: LARGE_BYTES, _TRIM_THRESHOLD: LARGE_BYTES}
    return all([mallopt(option, value) == 1 for option, value in wanted.items()])
