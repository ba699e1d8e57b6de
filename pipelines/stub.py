"""An encoder without a model, for fault tests and for measuring the pipeline alone: vectors that spell a hash of the tokens.

Comes in: a batch of token ids. Goes out: unit vectors whose signs are the bits of each text's hash, so that whoever knows a
text knows every byte that must come out. Never here: torch.
"""

from __future__ import annotations

import hashlib
from functools import partial

import numpy as np

from pipelines.model import Model
from workers import log
from workers.pool import timed
from workers.records import Batch, Computed, type_vectors
from workers.settings import Settings

LOG = log.get(__name__)


class StubEncoder:
    """Stands where :class:`pipelines.stream.Encoder` does."""

    def __init__(self, settings: Settings) -> None:
        log.configure()
        model = Model.open(settings)
        self._dim, self._whole = model.widest, model.layout.dim
        LOG.info("stub encoder ready %s", log.fields(dim=self._dim))

    async def encode(self, batch: Batch) -> Computed:
        """Vectors of a batch: float32 [n, widest output's dim], unit length; and the seconds that it took."""
        return timed(partial(vectors_of, dim=self._dim), batch)

    async def query(self, batch: Batch) -> Computed:
        """The same, of all of the model's dims."""
        return timed(partial(vectors_of, dim=self._whole), batch)


def vectors_of(batch: Batch, dim: int) -> type_vectors:
    """What the stub makes of a batch: float32 [n, dim], each number ±1/√dim, by the bits of a SHAKE-128 of the text's ids.

    At a dim of 4, 16, 64, … float32 and float16 hold these numbers exactly, and scaling to unit length changes no bit.
    """
    ids, size = batch.ids.astype("<i4", copy=False).tobytes(), -(-dim // 8)
    ends = 4 * np.cumsum(batch.lengths, dtype=np.int64)
    hashes = b"".join(
        hashlib.shake_128(ids[end - 4 * length : end]).digest(size)
        for end, length in zip(ends.tolist(), batch.lengths.tolist(), strict=True)
    )
    bits = np.unpackbits(np.frombuffer(hashes, np.uint8).reshape(len(batch), size), axis=1, count=dim)
    return (1 - 2 * bits.astype(np.float32)) / np.float32(np.sqrt(dim))
