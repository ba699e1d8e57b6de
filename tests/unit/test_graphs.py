"""Passes of fixed shapes compute what those of any shape do; what fills a shape up reaches no vector.

The kernel that CUDA brings is stood in for by one that keeps to its contract, down to leaving rows of no text unwritten.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.tiny_model import MAKERS
from workers.encoder import attention
from workers.encoder.attention import Segments, attend
from workers.encoder.encoder import Encoder
from workers.encoder.forward import PackedModel, Pooled
from workers.encoder.gemma import Gemma
from workers.encoder.graphs import GraphedForward, Shape, filled, parted
from workers.encoder.head import Head
from workers.encoder.layout import Layout
from workers.encoder.loading import load
from workers.encoder.packing import Pack, packs
from workers.records import Batch

pytestmark = pytest.mark.filterwarnings("ignore:::transformers")
CPU = torch.device("cpu")


def pack_of(lengths: list[int], vocabulary: int = 900) -> Pack:
    random = np.random.default_rng(sum(lengths))
    texts = [random.integers(0, vocabulary, length, dtype=np.int32) for length in lengths]
    return packs(Batch.of(texts), sum(lengths))[0]


@given(st.lists(st.integers(1, 700), min_size=1, max_size=60))
@settings(max_examples=50)
def test_a_shape_holds_its_pack_and_little_more(lengths):
    pack = pack_of(lengths)
    shape = Shape.of(pack)
    assert len(pack.ids) <= shape.tokens < len(pack.ids) + 1024
    assert len(pack) <= shape.texts <= max(16, 2 * len(pack))
    assert pack.longest <= shape.longest <= max(32, 2 * pack.longest)
    ids, texts, positions, of_lengths, bounds = parted(filled(pack, shape), shape)
    count = len(pack.ids)
    assert list(ids[:count]) == list(pack.ids) and list(positions[:count]) == list(pack.positions)
    assert list(texts[:count]) == list(pack.texts) and set(texts[count:]) <= {shape.texts}
    assert list(of_lengths[: len(pack)]) == list(pack.lengths) and of_lengths.sum() == count
    assert list(bounds[: len(pack) + 1]) == [0, *pack.ends] and set(bounds[len(pack) :]) == {count}


def kernel(
    query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, longest: int, scale: float, reach: tuple[int, int]
) -> Tensor:
    """Flash attention's contract: each text from its bounds, no text longer than said, no other row written."""
    out = torch.full_like(query, float("nan"))
    lengths = bounds.diff().tolist()
    assert max(lengths) <= longest
    runs = tuple((int(start), 1, length) for start, length in zip(bounds, lengths, strict=False) if length)
    window = None if reach[0] < 0 else reach[0] + 1
    causal = reach[1] == 0
    found = attend(query, key, value, Segments(longest, runs=runs), scale=scale, window=window, causal=causal)
    out[: int(bounds[-1])] = found[: int(bounds[-1])]
    return out


@pytest.fixture
def on_cuda(monkeypatch) -> None:
    monkeypatch.setattr(attention, "_flash", kernel)


def fixed(layout: Layout, hidden: Callable[[Any], Any], skip: int = 0) -> Callable[[Pack], np.ndarray]:
    """What a graph would record, computed at once."""
    model = load(layout, torch.float32)
    forward = GraphedForward("", hidden(model), Pooled(layout.pooling, skip, Head(layout.head)), CPU)

    def compute(pack: Pack) -> np.ndarray:
        shape = Shape.of(pack)
        with torch.inference_mode():
            return forward.compute(torch.from_numpy(filled(pack, shape)), shape, layout.dim)[: len(pack)].numpy()

    return compute


@pytest.mark.parametrize(
    ("kind", "hidden"),
    [("gemma", Gemma), ("gemma", PackedModel), ("bert", PackedModel), ("xlmr", PackedModel), ("qwen3", PackedModel)],
)
def test_a_fixed_shape_computes_the_same(tmp_path, on_cuda, kind, hidden):
    layout = Layout.read(MAKERS[kind](tmp_path))
    pack = pack_of([min(length, layout.max_tokens) for length in (240, 90, 90, 33, 7, 1)], 250)
    expected = np.empty((len(pack), layout.dim), np.float32)
    expected[pack.rows] = Encoder(layout, device="cpu", dtype="float32").encode(
        Batch.of([pack.ids[end - length : end] for end, length in zip(pack.ends, pack.lengths, strict=True)])
    )
    assert np.abs(fixed(layout, hidden)(pack) - expected[pack.rows]).max() <= 5e-6


@pytest.mark.parametrize("mode", ["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"])
@pytest.mark.parametrize("skip", [0, 2])
def test_every_pooling_leaves_out_what_fills_the_shape(mode, skip):
    lengths = [1020, 4]  # a whole shape: the next text would begin past its end
    pack = pack_of(lengths)
    shape = Shape.of(pack)
    hidden = torch.randn(shape.tokens, 6, generator=torch.Generator().manual_seed(1))
    pooled = Pooled((mode,), skip, Head(()))
    forward = GraphedForward("", lambda ids, positions, segments: hidden, pooled, CPU)
    found = forward.compute(torch.from_numpy(filled(pack, shape)), shape, 6)
    exact = (torch.from_numpy(array.astype(np.int64)) for array in (pack.texts, pack.positions, pack.lengths))
    assert torch.allclose(found[:2], pooled(hidden, *exact, 6), atol=1e-6)


def test_a_layer_is_compiled_once_for_all_layers_and_lengths(tmp_path, on_cuda, monkeypatch):
    from torch._dynamo.testing import CompileCounterWithBackend

    monkeypatch.setattr("workers.encoder.linear.can_reorder", lambda layer: False)  # as on CUDA
    layout = Layout.read(MAKERS["gemma"](tmp_path))
    counter = CompileCounterWithBackend("aot_eager")
    torch._dynamo.reset()
    compiled = partial(torch.compile, dynamic=True, fullgraph=True, backend=counter)
    plain, fused = fixed(layout, Gemma), fixed(layout, lambda model: Gemma(model, compiled))
    for lengths in ([60, 30, 5], [200, 200, 90, 1], [250] * 9):
        pack = pack_of(lengths, 250)
        assert np.abs(fused(pack) - plain(pack)).max() <= 5e-6
    graphs = [module for module in counter.graphs if len(module.graph.nodes) > 0]
    assert len(graphs) == 2, "what comes before attention, and what comes after"
    torch._dynamo.reset()


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["gemma", "bert"])
def test_cuda_replays_what_it_recorded(tmp_path: Path, kind: str):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    layout = Layout.read(MAKERS[kind](tmp_path))
    encoder = Encoder(layout, device="cuda", dtype="bfloat16", max_batch_tokens=4096)
    assert "in graphs" in encoder.way and ("compiled" in encoder.way) == (kind == "gemma")
    exact = Encoder(layout, device="cpu", dtype="float32")
    random = np.random.default_rng(2)
    for count in (3, 40, 200, 40, 3):  # shapes met again, and again after others
        lengths = random.integers(1, layout.max_tokens, count)
        batch = Batch.of([random.integers(0, 250, length, dtype=np.int32) for length in lengths])
        found, expected = encoder.encode(batch).astype(np.float64), exact.encode(batch).astype(np.float64)
        assert (1 - (found * expected).sum(axis=1)).max() <= 3e-3
