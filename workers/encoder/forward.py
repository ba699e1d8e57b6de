"""The forward pass: a pack of texts in, their vectors out, in one of two ways that compute the same.

Comes in: packs. Goes out: float32 vectors [texts, dim] on the model's device. Never here: how texts are cut into packs, or
what happens when memory runs out (``encoder``).

- packed: texts side by side. Any model whose attention transformers lets us choose.
- padded: texts below each other, padded to the longest. Any model; also what the packed way is tested against.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from workers.encoder import attention
from workers.encoder.attention import Segments
from workers.encoder.head import Head, cut
from workers.encoder.linear import repeating
from workers.encoder.packing import Pack
from workers.encoder.pooling import pool, pool_packed

# int64 ids [tokens], int64 positions [tokens], where the texts lie → hidden states [tokens, width]
type_hidden = Callable[[Tensor, Tensor, Segments], Tensor]


class Forward(Protocol):
    """A model with its head. ``padded``: whether packs should hold texts of like length."""

    padded: bool

    @property
    def name(self) -> str:
        """Such as ``padded``."""

    def __call__(self, pack: Pack, dim: int) -> Tensor:
        """Vectors of a pack's texts: float32 [texts, dim], rows of unit length, NaN where there is no direction."""

    def cost(self, pack: Pack) -> int:
        """How many tokens a pass over the pack computes."""

    def forget(self) -> None:
        """Give back what is kept of earlier passes; it is made anew when it is needed."""


@dataclass(frozen=True, slots=True)
class Pooled:
    """From packed hidden states to vectors: the model's pooling and head."""

    modes: tuple[str, ...]
    prompt_tokens: int
    head: Head

    def __call__(self, hidden: Tensor, texts: Tensor, positions: Tensor, lengths: Tensor, dim: int) -> Tensor:
        """Vectors float32 [texts, dim]; arguments as :func:`workers.encoder.pooling.pool_packed`."""
        return cut(self.whole(hidden, texts, positions, lengths), dim)

    def whole(self, hidden: Tensor, texts: Tensor, positions: Tensor, lengths: Tensor) -> Tensor:
        """The same before they are cut and normalised: float32 [texts, width]."""
        pooled = pool_packed(hidden.to(torch.float32), texts, positions, lengths, self.modes, self.prompt_tokens)
        return self.head.project(pooled)


class PaddedForward:
    """Texts below each other, with a mask."""

    name = "padded"
    padded = True

    def __init__(self, model: Any, pooled: Pooled) -> None:
        """Use ``model`` as it is."""
        self._model = model
        self._pooled = pooled
        self._padding_id = int(model.config.pad_token_id or 0)

    def __call__(self, pack: Pack, dim: int) -> Tensor:
        """Vectors of a pack's texts."""
        device = self._model.device
        mask = np.arange(pack.longest) < pack.lengths[:, np.newaxis]
        padded = np.full(mask.shape, self._padding_id, np.int64)
        padded[mask] = pack.ids
        ids, real = (torch.from_numpy(array).to(device) for array in (padded, mask))
        hidden = self._model(input_ids=ids, attention_mask=real.to(torch.int64)).last_hidden_state.to(torch.float32)
        return self._pooled.head(pool(hidden, real, self._pooled.modes, self._pooled.prompt_tokens), dim)

    def cost(self, pack: Pack) -> int:
        """Its longest text's tokens times its texts."""
        return pack.longest * len(pack)

    def forget(self) -> None:
        """Nothing is kept."""


class PackedForward:
    """Texts side by side; those of one length attend in one call of torch's own attention.

    On a CPU a pass is filled up to a size that :func:`workers.encoder.linear.repeating` gives, with tokens that no text sees.
    """

    padded = False

    def __init__(self, name: str, hidden: type_hidden, pooled: Pooled, device: torch.device) -> None:
        """``hidden``: the transformer, on ``device``."""
        self.name = name
        self._hidden = hidden
        self._pooled = pooled
        self._device = device

    def __call__(self, pack: Pack, dim: int) -> Tensor:
        """Vectors of a pack's texts."""
        count, cost = len(pack.ids), self.cost(pack)
        filled = np.zeros((2, cost), np.int64)
        filled[:, :count] = pack.ids, pack.positions
        ids, positions = torch.from_numpy(filled).to(self._device)
        texts, lengths = (
            torch.from_numpy(array).to(self._device) for array in (pack.texts, pack.lengths.astype(np.int64))
        )
        hidden = self._hidden(ids, positions, Segments.of(pack))[:count]
        return self._pooled(hidden, texts, positions[:count], lengths, dim)

    def cost(self, pack: Pack) -> int:
        """Its tokens, and on a CPU those that fill it up."""
        return repeating(len(pack.ids)) if self._device.type == "cpu" else len(pack.ids)

    def forget(self) -> None:
        """Nothing is kept."""


class PackedModel:
    """A transformer of the library, given packed texts."""

    def __init__(self, model: Any) -> None:
        """Use ``model`` with packed attention; it is left as it is for others."""
        self._model = model
        embeddings: Any = getattr(model, "embeddings", None)
        # RoBERTa's family counts positions from the one after its padding id, and leaves out tokens of that id.
        counts_from = hasattr(embeddings, "create_position_ids_from_input_ids")
        self._padding: int | None = int(embeddings.padding_idx) if counts_from else None

    def __call__(self, ids: Tensor, positions: Tensor, segments: Segments) -> Tensor:
        """Hidden states [tokens, width]."""
        if self._padding is not None:
            positions = _counted(ids, positions, self._padding)
        with attention_of(self._model, attention.NAME):
            hidden: Tensor = self._model(
                input_ids=ids.unsqueeze(0),
                position_ids=positions.unsqueeze(0),
                attention_mask=None,
                segments=segments,
            ).last_hidden_state[0]
        return hidden


@contextlib.contextmanager
def attention_of(model: Any, name: str) -> Iterator[None]:
    """Have the model's layers use an attention that transformers knows by ``name``."""
    before = model.config._attn_implementation
    model.config._attn_implementation = name
    try:
        yield
    finally:
        model.config._attn_implementation = before


def _counted(ids: Tensor, positions: Tensor, padding: int) -> Tensor:
    """Positions that count the text's tokens but those of the id ``padding``, from the one after it."""
    real = (ids != padding).to(torch.int64)
    so_far = real.cumsum(0)
    starts = torch.arange(len(ids), device=ids.device) - positions
    return (so_far - (so_far - real)[starts]) * real + padding
