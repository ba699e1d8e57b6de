"""A stub encoder whose calls take 0.2 s, for pipelines that must be caught at work, or kept waiting for their encoders."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

from pipelines.stub import StubEncoder
from workers.records import Batch, Computed

CALL_S = 0.2
JOURNAL = "SLOW_ENCODER_JOURNAL"
"""Names a folder in which each encoder writes down when its calls began and ended: seconds of a clock that all share."""


class SlowEncoder(StubEncoder):
    """What it answers is what the stub answers, one call at a time."""

    def __init__(self, settings):
        super().__init__(settings)
        self._turn = asyncio.Lock()

    async def encode(self, batch: Batch) -> Computed:
        async with self._turn:
            began = time.monotonic()
            await asyncio.sleep(CALL_S)
            computed = (await super().encode(batch))._replace(seconds=CALL_S)
            if JOURNAL in os.environ:
                with (Path(os.environ[JOURNAL]) / str(os.getpid())).open("a", encoding="utf-8") as lines:
                    lines.write(f"{began} {time.monotonic()}\n")
            return computed
