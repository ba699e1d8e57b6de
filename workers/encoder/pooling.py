"""From one vector per token to one per text.

Comes in: hidden states, right-padded with a mask, or packed. Goes out: pooled vectors, by the modes that the model asks
for. A NaN in a padding position, or in another text, never reaches a result.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def pool(hidden: Tensor, mask: Tensor, modes: Sequence[str] = ("mean",), prompt_tokens: int = 0) -> Tensor:
    """Pool each text's tokens, and join the modes' results in order.

    Args:
        hidden: float32 [texts, tokens, width].
        mask: bool [texts, tokens], True for real tokens; padding is on the right.
        modes: of cls, max, mean, mean_sqrt_len_tokens, weightedmean, lasttoken.
        prompt_tokens: so many tokens at the start of each text are left out.

    Returns:
        float32 [texts, width × modes].
    """
    counted = mask.clone()
    counted[:, :prompt_tokens] = False
    return torch.cat([_pool(mode, hidden, counted) for mode in modes], dim=-1)


def _pool(mode: str, hidden: Tensor, mask: Tensor) -> Tensor:
    rows = torch.arange(len(hidden), device=hidden.device)
    positions = torch.arange(1, hidden.shape[1] + 1, device=hidden.device)
    # where, not multiplication: NaN × 0 is NaN, and padding may hold NaN.
    kept = mask.unsqueeze(-1)
    match mode:
        case "cls":
            return hidden[rows, mask.int().argmax(dim=1)]
        case "max":
            return torch.where(kept, hidden, float("-inf")).amax(dim=1)
        case "mean" | "mean_sqrt_len_tokens":
            count = mask.sum(dim=1, keepdim=True).to(hidden.dtype)
            divisor = count if mode == "mean" else count.sqrt()
            return torch.where(kept, hidden, 0.0).sum(dim=1) / divisor.clamp(min=1e-9)
        case "weightedmean":
            # A token's weight is its place in the whole text, also when the prompt before it is left out.
            weights = (mask * positions).to(hidden.dtype)
            total = torch.where(kept, hidden * weights.unsqueeze(-1), 0.0).sum(dim=1)
            return total / weights.sum(dim=1, keepdim=True).clamp(min=1e-9)
        case "lasttoken":
            last = (mask * positions).amax(dim=1)
            picked = hidden[rows, (last - 1).clamp(min=0)]
            return torch.where((last > 0).unsqueeze(-1), picked, 0.0)
        case _:
            raise ValueError(f"unknown pooling mode {mode!r}")


def pool_packed(
    hidden: Tensor,
    texts: Tensor,
    positions: Tensor,
    lengths: Tensor,
    modes: Sequence[str] = ("mean",),
    prompt_tokens: int = 0,
) -> Tensor:
    """Pool texts that lie one after another; the same as :func:`pool` over the same texts.

    Args:
        hidden: float32 [tokens, width].
        texts: int64 [tokens], the number of each token's text; tokens of a number past the last belong to none.
        positions: int64 [tokens], each token's place in its text, from 0.
        lengths: int64 [texts].
        modes: as in :func:`pool`.
        prompt_tokens: so many tokens at the start of each text are left out.

    Returns:
        float32 [texts, width × modes].
    """
    kept = (positions >= prompt_tokens).unsqueeze(-1)
    ends = torch.cumsum(lengths, dim=0)
    shape = (len(lengths) + 1, hidden.shape[1])

    def total(values: Tensor) -> Tensor:
        sums = values.new_zeros(shape[0], values.shape[1])
        return sums.index_add_(0, texts, torch.where(kept, values, 0.0))[:-1]

    def one(mode: str) -> Tensor:
        match mode:
            case "cls":
                skipped = torch.where(lengths > prompt_tokens, prompt_tokens, 0)
                return hidden[(ends - lengths + skipped).clamp(max=len(hidden) - 1)]
            case "max":
                index = texts.unsqueeze(-1).expand_as(hidden)
                seen = torch.where(kept, hidden, float("-inf"))
                return hidden.new_full(shape, float("-inf")).scatter_reduce_(0, index, seen, "amax")[:-1]
            case "mean" | "mean_sqrt_len_tokens":
                count = (lengths - prompt_tokens).clamp(min=0).to(hidden.dtype).unsqueeze(-1)
                return total(hidden) / (count if mode == "mean" else count.sqrt()).clamp(min=1e-9)
            case "weightedmean":
                weights = (positions + 1).to(hidden.dtype).unsqueeze(-1)
                return total(hidden * weights) / total(weights).clamp(min=1e-9)
            case "lasttoken":
                return torch.where((lengths > prompt_tokens).unsqueeze(-1), hidden[(ends - 1).clamp(min=0)], 0.0)
            case _:
                raise ValueError(f"unknown pooling mode {mode!r}")

    return torch.cat([one(mode) for mode in modes], dim=-1)
