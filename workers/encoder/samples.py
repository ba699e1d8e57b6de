"""Made-up texts, to try a model with.

Comes in: what a loaded model can take. Goes out: packs of random tokens. Never here: a pass over them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from workers.encoder.packing import Pack, packs
from workers.records import Batch


@dataclass(frozen=True, slots=True)
class Samples:
    """What a model's texts are like.

    ``vocabulary``: how many tokens it knows; ``window``: of its sliding attention, None where it has none;
    ``prompt_tokens``: at each text's start, left out of pooling; ``max_tokens``: of the longest text.
    """

    vocabulary: int
    window: int | None
    prompt_tokens: int
    max_tokens: int

    def pack(self, lengths: Sequence[int]) -> Pack:
        """Texts of these lengths, longest first; the same at each call."""
        random = np.random.default_rng(0)
        texts = [random.integers(0, self.vocabulary, length, dtype=np.int32) for length in lengths]
        return packs(Batch.of(texts), sum(lengths))[0]

    def telling(self) -> Pack:
        """Texts that a wrong mask, window or position shows in."""
        lengths = [3, 17, 64, 160]
        if self.window is not None:
            lengths.append(2 * self.window + 9)
        return self.pack(
            sorted({min(self.prompt_tokens + length, self.max_tokens) for length in lengths}, reverse=True)
        )
