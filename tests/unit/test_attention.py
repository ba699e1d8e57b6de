"""Packed attention is attention within each text: the same as each text alone, under a mask written out."""

from __future__ import annotations

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
    found = attend(query, key, value, Segments.of(pack, torch.device("cpu")), scale=0.3, window=window, causal=causal)
    assert found.shape == query.shape and found.is_contiguous()
    for start, stop in zip(pack.ends - pack.lengths, pack.ends, strict=True):
        text = slice(start, stop)
        expected = plainly(query[text], key[text], value[text], scale=0.3, window=window, causal=causal)
        assert (found[text] - expected).abs().max() <= 1e-6


def test_views_of_one_product_are_taken_as_they_are():
    pack, query, key, value = made()
    joined = torch.cat((query, key, value), dim=1)
    q, k, v = joined.split(4, dim=1)
    segments = Segments.of(pack, torch.device("cpu"))
    assert torch.equal(attend(q, k, v, segments, scale=0.3), attend(query, key, value, segments, scale=0.3))


@pytest.mark.parametrize(
    "asks", [{"softcap": 50.0}, {"s_aux": torch.zeros(4)}, {"segments": None}, {"attention_mask": torch.ones(1)}]
)
def test_what_it_does_not_compute_it_refuses(asks):
    from transformers import AttentionInterface

    pack, *parts = made()
    query, key, value = (part.transpose(0, 1).unsqueeze(0) for part in parts)
    module = torch.nn.Module()
    options = {"attention_mask": None, "segments": Segments.of(pack, torch.device("cpu"))}
    interface = AttentionInterface()[NAME]
    attended, weights = interface(module, query, key, value, **options)
    assert attended.shape == (1, len(pack.ids), 4, WIDTH) and weights is None
    with pytest.raises(ValueError, match="packed attention has no"):
        interface(module, query, key, value, **(options | asks))


@pytest.mark.gpu
@pytest.mark.parametrize("window", [None, 8])
def test_cuda_computes_the_same(window):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    pack, *parts = made(3, 1, torch.bfloat16)
    cuda = torch.device("cuda")
    parts = [torch.nn.functional.pad(part, (0, 56)) for part in parts]  # a width that the kernel has
    found = attend(*(part.to(cuda) for part in parts), Segments.of(pack, cuda), scale=0.3, window=window).cpu()
    expected = attend(
        *(part.float() for part in parts), Segments.of(pack, torch.device("cpu")), scale=0.3, window=window
    )
    assert (found.float() - expected).abs().max() <= 2e-2
