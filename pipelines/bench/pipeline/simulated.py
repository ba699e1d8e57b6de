"""Encoders that stand for GPUs: a call takes as long as one would, and costs this machine next to nothing.

Comes in: batches. Goes out: unit vectors, the same for every text. Never here: a model.
"""

from __future__ import annotations

import asyncio
import os
import time

import numpy as np

from pipelines.model import Model
from workers.records import Batch, Computed
from workers.settings import Settings

TOKENS_PER_S = "SIMULATED_GPU_TOKENS_PER_S"


class Device:
    """One device: calls one after the other, each ``call_s`` long, or as its tokens take. It keeps time by the clock."""

    def __init__(self, dim: int, call_s: float, tokens_per_s: float = float("inf")) -> None:
        self._vector = np.full((1, dim), 1 / np.sqrt(dim), np.float32)
        self._call_s = call_s
        self._tokens_per_s = tokens_per_s
        self._free = 0.0

    async def encode(self, batch: Batch) -> Computed:
        """Vectors of a batch: float32 [n, dim], when the device has come to it; and the seconds that it took then."""
        now = time.monotonic()
        seconds = max(self._call_s, batch.tokens / self._tokens_per_s)
        self._free = max(now, self._free) + seconds
        await asyncio.sleep(self._free - now)
        return Computed(np.repeat(self._vector, len(batch), axis=0), seconds)


class SimulatedEncoder(Device):
    """Stands where :class:`pipelines.stream.Encoder` does. The environment says how fast it is."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(Model.open(settings).widest, 0.0, float(os.environ[TOKENS_PER_S]))
