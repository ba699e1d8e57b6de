"""The stub encoder that one text kills."""

from __future__ import annotations

import os

from pipelines.model import Model
from pipelines.stub import StubEncoder
from tests.lab.documents import POISON
from workers.records import Batch, Computed, Tokens
from workers.settings import Settings


class MortalEncoder(StubEncoder):
    """Ends its process, as a fault of a driver or a kernel would, when the poison is in a batch."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        [tokens] = Model.open(settings).tokenizer().encode([POISON])
        assert isinstance(tokens, Tokens)
        self._poison = tokens.ids.tobytes()

    async def encode(self, batch: Batch) -> Computed:
        """As the stub does."""
        end = 0
        for length in batch.lengths.tolist():
            if batch.ids[end : end + length].tobytes() == self._poison:
                os._exit(1)
            end += length
        return await super().encode(batch)
