"""What an error means for the device: full, lost, or nothing."""

from __future__ import annotations

import pytest
import torch

from workers.encoder.faults import give_back, is_out_of_memory, require_device
from workers.errors import DeviceLost

CUDA = torch.device("cuda:0")


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (torch.AcceleratorError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory"), True),
        (MemoryError(), True),
        (torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), False),
        (torch.AcceleratorError("CUDA error: operation not permitted when stream is capturing"), False),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_memory_is_full(error, full):
    assert is_out_of_memory(error) == full


def test_memory_is_full_when_an_error_hides_that():
    with pytest.raises(RuntimeError) as caught:
        try:
            raise torch.OutOfMemoryError("CUDA out of memory")
        finally:
            raise torch.AcceleratorError("CUDA error: operation failed due to a previous error during capture")
    assert is_out_of_memory(caught.value)


def test_the_device_itself_says_whether_it_is_lost(monkeypatch):
    asked: list[torch.device] = []

    def dead(device):
        asked.append(device)
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    error = torch.AcceleratorError("CUDA error: device-side assert triggered\nCUDA kernel errors might be …")
    monkeypatch.setattr(torch.cuda, "synchronize", dead)
    with pytest.raises(
        DeviceLost, match=r"cuda:0 is lost to this process; start it again \(.*assert triggered"
    ) as lost:
        require_device(CUDA, error)
    assert lost.value.__cause__ is error and "\n" not in str(lost.value)
    require_device(torch.device("cpu"), error)
    monkeypatch.setattr(torch.cuda, "synchronize", asked.append)
    require_device(CUDA, error)
    assert asked == [CUDA, CUDA]


def test_a_torch_that_refuses_to_give_back_is_let_be(monkeypatch):
    calls: list[int] = []

    def refuses():
        calls.append(1)
        raise RuntimeError("captures_underway.empty() INTERNAL ASSERT FAILED")

    monkeypatch.setattr(torch.cuda, "empty_cache", refuses)
    give_back(CUDA)
    give_back(torch.device("cpu"))
    assert calls == [1]
