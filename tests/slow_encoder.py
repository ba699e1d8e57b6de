"""The stub encoder, at the pace of a small GPU: so that a backlog lasts while replicas come and go."""

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
    """A call takes as long whatever it holds, one after the other."""

    def __init__(self, settings) -> None:
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
