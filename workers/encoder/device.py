"""Where a model runs and in which numbers.

Comes in: the names that the settings give. Goes out: torch's device and dtypes, in the order of preference. Never here: a
model.
"""

from __future__ import annotations

import functools
from pathlib import Path

import torch

from workers.encoder.layout import Layout
from workers.errors import EnvironmentFault, SettingsError

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# What Linux calls it when a CPU multiplies bfloat16 itself; without, it is slower than float32.
_BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16", "svebf16"}


def has_cuda() -> bool:
    """Whether torch sees a GPU here."""
    return torch.cuda.is_available()


def device_of(name: str) -> torch.device:
    """The device of a name: auto (CUDA where there is one), cpu, cuda, cuda:1 and so on.

    Raises:
        SettingsError: torch does not know it.
        EnvironmentFault: it is not there.
    """
    if name == "auto":
        return torch.device("cuda" if has_cuda() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise SettingsError(f"device {name!r} is not one that torch knows; use auto, cpu or cuda") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise EnvironmentFault(f"device {name} is wanted, but torch sees {torch.cuda.device_count()} CUDA devices here")
    return device


def dtypes_of(name: str, device: torch.device, layout: Layout) -> tuple[torch.dtype, ...]:
    """What to run the model in; after the first, what to fall back to when the first is not good enough.

    ``auto`` is bfloat16 where the hardware multiplies it, else float32.

    Raises:
        SettingsError: no such dtype, or one that the model cannot run in.
    """
    if name == "auto":
        return (torch.bfloat16, torch.float32) if has_bfloat16(device) else (torch.float32,)
    if name not in _DTYPES:
        raise SettingsError(f"model.dtype {name!r} is not one of auto, {', '.join(_DTYPES)}")
    if name == "float16" and "gemma" in layout.model_type:
        raise SettingsError("model.dtype float16 overflows in Gemma models; use bfloat16 or float32")
    return (_DTYPES[name],)


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device's own instructions multiply bfloat16."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and bool(_BF16_FLAGS & _cpu_flags())


@functools.cache
def _cpu_flags() -> frozenset[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:  # not Linux
        return frozenset()
    names = (line.partition(":")[2].split() for line in lines if line.lower().startswith(("flags", "features")))
    return frozenset(next(names, ()))
