"""What a figure was measured on.

Comes in: nothing. Goes out: the machine's description. Never here: host names, users or paths.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# What decides which kernels a library picks.
_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "asimd", "sve", "bf16", "i8mm")


def describe() -> dict[str, Any]:
    """CPU, its instruction sets, cores, memory, system, Python."""
    cpu = _cpuinfo()
    return {
        "cpu": cpu.get("model name") or platform.processor() or platform.machine(),
        "cpu_flags": [flag for flag in _FLAGS if flag in cpu.get("flags", cpu.get("Features", "")).split()],
        "cores": len(cores()),
        "memory_gib": _memory_gib(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def load() -> float:
    """How many processes wanted a core, on average over the last minute."""
    return round(os.getloadavg()[0], 2)


def cores() -> list[int]:
    """The cores that this process may use; numbers are the system's where it has affinity."""
    if sys.platform == "linux":
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def pick(threads: int, own: Sequence[int]) -> list[int]:
    """``threads`` of the cores, physical ones first: two threads of one core would share what they are measured on."""
    seen: dict[str, int] = {}
    ranks = []
    for core in own:
        siblings = Path(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list")
        group = siblings.read_text(encoding="ascii").strip() if siblings.is_file() else str(core)
        seen[group] = seen.get(group, -1) + 1
        ranks.append((seen[group], core))
    return sorted(core for _, core in sorted(ranks)[:threads])


def _cpuinfo() -> dict[str, str]:
    """The first processor's lines of /proc/cpuinfo."""
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return {}
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n\n")[0].splitlines()
    pairs = (line.partition(":") for line in lines)
    return {name.strip(): value.strip() for name, _, value in pairs}


def _memory_gib() -> int | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)
    except (OSError, ValueError):
        return None
