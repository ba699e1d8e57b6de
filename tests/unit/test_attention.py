"""Packed attention is attention within each text: the same as each text alone, under a mask written out."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from workers.encoder.attention import NAME, Segments, attend
from workers.encoder.packing import Pack, packs
from workers.records import Batch

LENGTHS = [41, 33, 33, 33, 9, 9, 2, 1, 1]
WIDTH = 8


def made(heads: int = 4, groups: int = 4, dtype: torch.dtype = torch.float32) -> tuple[Pack, Tensor, Tensor, Tensor]:
    (pack,) = packs(Batch.of([np.zeros(length, np.int32) for length in LENGTHS]), sum(LENGTHS))
    generator = torch.Generator().manual_seed(3)
    query, key, value = (
        torch.randn(len(pack.ids), count, WIDTH, generator=generator, dtype=dtype) for count in (heads, groups, groups)
    )
    return pack, query, key, value


def plainly(
    query: Tensor, key: Tensor, value: Tensor, *, scale: float, window: int | None = None, causal: bool = False
) -> Tensor:
    """One text, [length, heads, width], by the formula."""
    key, value = (part.repeat_interleave(query.shape[1] // part.shape[1], dim=1) for part in (key, value))
    scores = torch.einsum("ihd,jhd->hij", query, key) * scale
    place = torch.arange(len(query))
    away = place[:, None] - place
    hidden = torch.zeros(len(query), len(query), dtype=torch.bool)
    if window is not None:
        hidden |= away.abs() >= window
    if causal:
        hidden |= away < 0
    return torch.einsum("hij,jhd->ihd", scores.masked_fill(hidden, float("-inf")).softmax(-1), value)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [None, 1, 2, 8, 9, 32, 41, 1000])
@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (6, 2), (3, 1)])
def test_each_text_sees_itself_alone(heads, groups, window, causal):
    pack, query, key, value = made(heads, groups)
    found = attend(query, key, value, Segments.of(pack), scale=0.3, window=window, causal=causal)
    assert found.shape == query.shape and found.is_contiguous()
    for start, stop in zip(pack.ends - pack.lengths, pack.ends, strict=True):
        text = slice(start, stop)
        expected = plainly(query[text], key[text], value[text], scale=0.3, window=window, causal=causal)
        assert (found[text] - expected).abs().max() <= 1e-6


@pytest.mark.parametrize("window", [None, 8])
def test_tokens_that_fill_a_pass_are_seen_by_nobody_and_come_out_as_zeros(window, monkeypatch):
    # What lies in memory that is not written yet.
    monkeypatch.setattr(torch, "empty_like", lambda like, **_: torch.full(like.shape, float("nan")))
    pack, *parts = made()
    expected = attend(*parts, Segments.of(pack), scale=0.3, window=window)
    filler = torch.full((7, 4, WIDTH), float("nan"))
    found = attend(*(torch.cat([part, filler]) for part in parts), Segments.of(pack), scale=0.3, window=window)
    assert torch.equal(found[: len(expected)], expected)
    assert len(found) == len(expected) + 7 and not found[len(expected) :].any()


def test_views_of_one_product_are_taken_as_they_are():
    pack, query, key, value = made()
    joined = torch.cat((query, key, value), dim=1)
    q, k, v = joined.split(4, dim=1)
    segments = Segments.of(pack)
    assert torch.equal(attend(q, k, v, segments, scale=0.3), attend(query, key, value, segments, scale=0.3))


@pytest.mark.parametrize(
    "asks", [{"softcap": 50.0}, {"s_aux": torch.zeros(4)}, {"segments": None}, {"attention_mask": torch.ones(1)}]
)
def test_what_it_does_not_compute_it_refuses(asks):
    from transformers import AttentionInterface

    pack, *parts = made()
    query, key, value = (part.transpose(0, 1).unsqueeze(0) for part in parts)
    module = torch.nn.Module()
    options = {"attention_mask": None, "segments": Segments.of(pack)}
    interface = AttentionInterface()[NAME]
    attended, weights = interface(module, query, key, value, **options)
    assert attended.shape == (1, len(pack.ids), 4, WIDTH) and weights is None
    with pytest.raises(ValueError, match="packed attention has no"):
        interface(module, query, key, value, **(options | asks))


class Kernel:
    """varlen_attn as a version of torch has it: it takes the keywords of its signature, and remembers what it was given."""

    def __init__(self, *keywords: str) -> None:
        self.given: dict[str, Any] = {}
        names = ["query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k"]
        self.__signature__ = inspect.Signature(
            [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names]
            + [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in keywords]
        )

    def __call__(self, *arguments: Any, **options: Any) -> Tensor:
        self.given = self.__signature__.bind(*arguments, **options).arguments
        return arguments[0]


TORCH_211 = ("return_aux", "scale", "window_size")
TORCH_212 = (*TORCH_211, "enable_gqa", "seqused_k", "block_table", "num_splits")


@pytest.mark.parametrize("heads", [3, 1])
@pytest.mark.parametrize("keywords", [TORCH_211, TORCH_212])
def test_the_flash_kernel_gets_the_words_that_its_torch_knows(monkeypatch, keywords, heads):
    from torch.nn.attention import varlen

    monkeypatch.setattr(varlen, "varlen_attn", kernel := Kernel(*keywords))
    _, query, key, value = made(heads, 1)
    bounds = torch.tensor([0, 160, 162, 162], dtype=torch.int32)
    attend(query, key, value, Segments(256, bounds=bounds), scale=0.3, window=8, causal=True)
    assert kernel.given["max_q"] == kernel.given["max_k"] == 256 and kernel.given["cu_seq_q"] is bounds
    assert kernel.given["scale"] == 0.3 and kernel.given["window_size"] == (7, 0)
    assert kernel.given["key"] is key, "the kernel groups by itself"
    assert kernel.given.get("enable_gqa", False) == (heads > 1 and "enable_gqa" in keywords)


def test_the_flash_kernel_of_this_torch_is_one_of_these():
    from torch.nn.attention.varlen import varlen_attn

    assert {"scale", "window_size"} <= set(inspect.signature(varlen_attn).parameters)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="only CUDA has the flash kernel")
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [None, 8])
@pytest.mark.parametrize(("heads", "groups", "width"), [(3, 1, 256), (4, 4, 64), (12, 12, 32)])
def test_the_flash_kernel_computes_the_same(heads, groups, width, window, causal):
    pack, *parts = made(heads, groups, torch.bfloat16)
    parts = [torch.nn.functional.pad(part, (0, width - WIDTH)) for part in parts]
    expected = attend(*(part.float() for part in parts), Segments.of(pack), scale=0.3, window=window, causal=causal)
    # As a recorded shape is filled up: tokens of no text, and texts without tokens.
    filled = [torch.nn.functional.pad(part, (0, 0, 0, 0, 0, 50)).cuda() for part in parts]
    ends = [0, *pack.ends, *7 * [len(pack.ids)]]
    segments = Segments(64, bounds=torch.tensor(ends, dtype=torch.int32, device="cuda"))
    found = attend(*filled, segments, scale=0.3, window=window, causal=causal)[: len(pack.ids)]
    assert (found.float().cpu() - expected).abs().max() <= 2e-2
    by_runs = attend(*(part.cuda() for part in parts), Segments.of(pack), scale=0.3, window=window, causal=causal)
    assert (by_runs.float().cpu() - expected).abs().max() <= 2e-2
