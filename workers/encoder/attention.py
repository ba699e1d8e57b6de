"""Attention over packed texts: each token sees its own text and nothing else, and nothing is padded.

Comes in: queries, keys and values of all the texts, one token after another, and where each text lies. Goes out: the same
shape, attended. Never here: a mask over all tokens; what lies in different texts never meets.

Texts of one length are one batched call of torch's attention, on any device and in any numbers; or all texts are one call of
the flash kernel that comes with torch, on CUDA in float16 or bfloat16.
"""

from __future__ import annotations

import functools
import inspect
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface

from workers.encoder.packing import Pack

# The name that a transformers model finds this attention by. No mask function has it, so the model builds no mask.
NAME = "stream_embedder_packed"

# The numbers that the flash kernel computes in.
FLASH = (torch.float16, torch.bfloat16)

# What a model may ask of its attention besides what is computed here; it runs padded then.
_UNSUPPORTED = ("softcap", "s_aux", "head_mask", "position_bias")


@dataclass(frozen=True, slots=True)
class Segments:
    """Where texts lie among packed tokens: ``runs`` as :attr:`Pack.runs`, or for the flash kernel ``bounds`` int32 [texts + 1].

    ``longest``: tokens of the longest text, or more.
    """

    longest: int
    runs: tuple[tuple[int, int, int], ...] = ()
    bounds: Tensor | None = None

    @classmethod
    def of(cls, pack: Pack) -> Segments:
        """The runs of a pack."""
        return cls(pack.longest, runs=tuple(pack.runs))


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segments: Segments,
    *,
    scale: float,
    window: int | None = None,
    causal: bool = False,
) -> Tensor:
    """Scaled dot-product attention within each text.

    Args:
        query: [tokens, heads, width].
        key: [tokens, groups, width]; each group serves heads / groups heads.
        value: as ``key``.
        segments: where the texts lie.
        scale: what the products are multiplied by.
        window: a token sees those that are fewer than this many places away; None: all.
        causal: a token sees none that come after it.

    Returns:
        [tokens, heads, width], contiguous; with ``runs``, tokens after the last text come out as zeros.
    """
    if segments.bounds is not None:
        reach = -1 if window is None else window - 1
        return _flash(query, key, value, segments.bounds, segments.longest, scale, (reach, 0 if causal else reach))
    if (groups := key.shape[1]) != query.shape[1]:
        key, value = (part.repeat_interleave(query.shape[1] // groups, dim=1) for part in (key, value))
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    for start, count, length in segments.runs:
        texts = slice(start, start + count * length)
        q, k, v, o = (
            part[texts].view(count, length, *part.shape[1:]).transpose(1, 2) for part in (query, key, value, out)
        )
        if window is None or length <= window:
            o.copy_(F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale))
        else:
            _banded(q, k, v, o, scale, window, causal)
    start, count, length = segments.runs[-1]
    out[start + count * length :] = 0.0  # tokens that fill a pass
    return out


def _banded(q: Tensor, k: Tensor, v: Tensor, out: Tensor, scale: float, window: int, causal: bool) -> None:
    """Write attention of [count, heads, length, width] into ``out``, a block of queries with the keys in its reach a time."""
    length = q.shape[2]
    for start in range(0, length, window):
        stop = min(start + window, length)
        first, last = max(0, start - window + 1), stop if causal else min(length, stop + window - 1)
        away = torch.arange(start, stop, device=q.device)[:, None] - torch.arange(first, last, device=q.device)
        seen = away.abs() < window
        if causal:
            seen &= away >= 0
        blocks = (q[:, :, start:stop], k[:, :, first:last], v[:, :, first:last])
        out[:, :, start:stop] = F.scaled_dot_product_attention(*blocks, attn_mask=seen, scale=scale)


def _flash(
    query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, longest: int, scale: float, reach: tuple[int, int]
) -> Tensor:
    from torch.nn.attention import varlen  # noqa: PLC0415 - only where CUDA is

    options: dict[str, Any] = {"scale": scale, "window_size": reach}
    # Torch 2.11 has no such word, and gives the kernel what it gets; the kernel groups by itself.
    if query.shape[1] != key.shape[1] and _has_gqa(varlen.varlen_attn):
        options["enable_gqa"] = True
    attended: Any = varlen.varlen_attn(query, key, value, bounds, bounds, longest, longest, **options)
    out: Tensor = attended
    return out


@functools.cache
def _has_gqa(varlen_attn: Any) -> bool:
    return "enable_gqa" in inspect.signature(varlen_attn).parameters


def _from_transformers(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    segments: Segments | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """What transformers calls in each layer: [1, heads, tokens, width] in, [1, tokens, heads, width] out."""
    asked = [name for name in _UNSUPPORTED if more.get(name) is not None]
    if segments is None or attention_mask is not None or asked:
        raise ValueError(f"packed attention has no {', '.join(asked) or 'mask'}")
    attended = attend(
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        segments,
        scale=scaling if scaling is not None else query.shape[-1] ** -0.5,
        window=sliding_window,
        causal=bool(getattr(module, "is_causal", False)),
    )
    return attended.unsqueeze(0), None


AttentionInterface.register(NAME, _from_transformers)
