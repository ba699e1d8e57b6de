"""CUDA graphs: work on a device, recorded once and replayed with one launch.

Comes in: a function that computes on the device. Goes out: what replays it. Never here: what is computed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Recorder:
    """Records, for one owner, on a stream and into memory of its own.

    One stream for all recordings: cuBLAS keeps 32 MiB for each that it has met. One memory: recordings never run at the same
    time. So all of them are replayed on one stream, and what one has written is read before the next is begun. All are
    forgotten together: torch gives back what cuBLAS keeps for a stream when any graph of that stream is destroyed (pytorch
    #193402). A stream is its owner's, because another's recordings may go at any time.
    """

    def __init__(self, device: torch.device) -> None:
        """For a CUDA ``device``; nothing is asked of it yet."""
        self._device = device
        self._aside: Any = None
        self._memory: Any = None

    def record(self, compute: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        """Run ``compute`` twice, then record it.

        Args:
            compute: makes no copy to the host, and no shape that depends on values; what it reads is kept by the caller.

        Returns:
            What begins a replay on the current stream, and the tensor that each replay writes.
        """
        # A stream's device is the current one, which may be another GPU.
        with torch.cuda.device(self._device):
            if self._aside is None:
                self._aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            if self._memory is None:
                self._memory = torch.cuda.graph_pool_handle()
            before = torch.cuda.current_stream()
            try:
                # Outside the graph: kernels are compiled and libraries make their workspaces, which none can hold.
                self._aside.wait_stream(before)
                with torch.cuda.stream(self._aside):
                    for _ in range(2):
                        compute()
                before.wait_stream(self._aside)
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, pool=self._memory, stream=self._aside):
                    written = compute()
            finally:
                # Torch 2.11 leaves its own stream current when a recording cannot end.
                torch.cuda.set_stream(before)
        return graph.replay, written

    def forget(self) -> None:
        """Wait for what is replayed, and give up the memory: it is free once the caller has dropped what replays."""
        torch.cuda.synchronize(self._device)
        self._memory = None
