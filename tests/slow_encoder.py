"""The stub encoder, at the pace of a small GPU: so that a backlog lasts while replicas come and go."""

from __future__ import annotations

import asyncio

from pipelines.stub import StubEncoder
from workers.records import Batch, Computed

CALL_S = 0.2


class SlowEncoder(StubEncoder):
    """A call takes as long whatever it holds, one after the other."""

    def __init__(self, settings) -> None:
        super().__init__(settings)
        self._turn = asyncio.Lock()

    async def encode(self, batch: Batch) -> Computed:
        async with self._turn:
            await asyncio.sleep(CALL_S)
            return (await super().encode(batch))._replace(seconds=CALL_S)
