"""What an error of torch means for the device: its memory is full, or it is lost.

Comes in: errors, as a forward pass raises them. Goes out: what to make of them. Never here: what is done about it.
"""

from __future__ import annotations

import contextlib

import torch

from workers.errors import DeviceLost, in_one_line

# What says so besides torch's own class: CUDA's runtime where torch is not asked (pinned memory, a graph), cuBLAS, and the
# CPU's allocator.
_FULL = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "not enough memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error, or one that it followed, says that memory is full.

    The one before counts, because a CUDA graph whose recording runs out of memory also fails to end.
    """
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, torch.OutOfMemoryError | MemoryError):
            return True
        if isinstance(found, RuntimeError) and any(words in str(found) for words in _FULL):
            return True
        found = found.__context__
    return False


def require_device(device: torch.device, error: Exception) -> None:
    """Ask the device whether it still runs anything after an error.

    CUDA answers every call with the same error once a kernel has failed, until the process ends. The class of the error does
    not tell: a recording that fails raises the same one, and leaves the device sound.

    Raises:
        DeviceLost: it does not.
    """
    if device.type != "cuda":
        return
    try:
        torch.cuda.synchronize(device)
    except RuntimeError:
        raise DeviceLost(f"{device} is lost to this process; start it again ({in_one_line(error)})") from error


def give_back(device: torch.device) -> None:
    """Let libraries that allocate for themselves have the memory that torch keeps for later."""
    if device.type == "cuda":
        # Torch 2.11 refuses after a recording that could not end, which it believes to be under way.
        with contextlib.suppress(RuntimeError):
            torch.cuda.empty_cache()
