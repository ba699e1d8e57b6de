"""Passes of fixed shapes compute what those of any shape do; what fills a shape up reaches no vector.

The kernel that CUDA brings is stood in for by one that keeps to its contract, down to leaving rows of no text unwritten.
"""

from __future__ import annotations

import subprocess
import sys
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
from workers.encoder.encoder import Encoder, Stats
from workers.encoder.forward import PackedModel, Pooled
from workers.encoder.gemma import Gemma
from workers.encoder.graphs import GraphedForward, Shape, filled, parted
from workers.encoder.head import Head, normalise
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
    ids, text_of, positions, of_lengths, bounds = parted(filled(pack, shape), shape)
    count = len(pack.ids)
    assert list(ids[:count]) == list(pack.ids) and list(positions[:count]) == list(pack.positions)
    assert list(text_of[:count]) == list(pack.texts) and set(text_of[count:]) <= {shape.texts}
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
            return normalise(forward.compute(torch.from_numpy(filled(pack, shape)), shape)[: len(pack)]).numpy()

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
    found = normalise(forward.compute(torch.from_numpy(filled(pack, shape)), shape))
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


# ---- recorded once, replayed


class Tape:
    """In place of CUDA graphs: a replay computes into the tensor of the recording, from what its inputs hold by then."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.recorded, self.replayed, self.forgotten = 0, 0, 0

    def record(self, compute: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        if self.error is not None:
            raise self.error
        self.recorded += 1
        written = compute()

        def replay() -> None:
            self.replayed += 1
            written.copy_(compute())

        return replay, written

    def forget(self) -> None:
        self.forgotten += 1


@pytest.fixture
def recorded(tmp_path, on_cuda, monkeypatch) -> tuple[Encoder, Encoder, Tape]:
    """An encoder that replays, one that computes the same plainly, and what the first records with."""
    layout = Layout.read(MAKERS["bert"](tmp_path))
    plain = Encoder(layout, device="cpu", dtype="float32")
    tape = Tape()
    monkeypatch.setattr(
        "workers.encoder.ways.ways",
        lambda model, pooled: [("packed", lambda name: GraphedForward(name, PackedModel(model), pooled, CPU, tape))],
    )
    return Encoder(layout, device="cpu", dtype="float32", max_batch_tokens=4096), plain, tape


def texts_of(*lengths: int) -> Batch:
    random = np.random.default_rng(len(lengths))
    return Batch.of([random.integers(0, 250, length, dtype=np.int32) for length in lengths])


def same(recorded: Encoder, plain: Encoder, batch: Batch, dim: int | None = None) -> bool:
    return bool(np.abs(recorded.encode(batch, dim) - plain.encode(batch, dim)).max() <= 5e-6)


def test_a_shape_is_recorded_once_whatever_is_asked_of_it(recorded):
    encoder, plain, tape = recorded
    assert encoder.way == "packed, in graphs"
    before = tape.replayed
    for batch in (texts_of(120, 80, 5), texts_of(120, 3), texts_of(*20 * [100]), texts_of(110, 60, 60)):
        for dim in (None, 8, 32):
            assert same(encoder, plain, batch, dim)
    assert tape.recorded == 2, "1,024 tokens of 16 texts, which the trial met; 2,048 of 32"
    assert tape.replayed == before + 12


def test_a_pass_is_read_before_the_next_one_writes(recorded):
    encoder, plain, _ = recorded
    assert same(encoder, plain, texts_of(*80 * [100]))  # two passes of one shape in one call


def test_what_fills_a_shape_counts_as_padding(recorded):
    encoder, _, _ = recorded
    encoder.encode(texts_of(100, 100, 40))
    assert encoder.stats == Stats(240, 1024 - 240)


def test_after_a_recording_that_fails_passes_are_computed_as_they_come(recorded, caplog):
    encoder, plain, tape = recorded
    kept = tape.forgotten
    tape.error = torch.AcceleratorError("CUDA error: operation not permitted when stream is capturing\nmore")
    for _ in range(2):
        assert same(encoder, plain, texts_of(*20 * [100]))
    assert encoder.way == "packed" and tape.forgotten == kept + 1
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "not recorded from now on way=packed" in caplog.text and "stream is capturing more" in caplog.text
    replayed = tape.replayed
    assert same(encoder, plain, texts_of(120, 80, 5)), "of a shape that was recorded"
    assert tape.replayed == replayed


def test_a_recording_without_memory_makes_passes_smaller(recorded, caplog):
    encoder, plain, tape = recorded
    tape.error, record = torch.OutOfMemoryError("CUDA out of memory"), tape.record
    kept = tape.forgotten

    def once(compute):
        try:
            return record(compute)
        finally:
            tape.error = None

    tape.record = once
    assert same(encoder, plain, texts_of(*20 * [100]))
    assert encoder.way == "packed, in graphs" and encoder.stats.halved == 1
    assert tape.forgotten == kept + 1, "recordings hold memory"


def test_a_transformer_that_fails_outside_a_recording_too_gives_place_to_the_padded_way(recorded, monkeypatch, caplog):
    encoder, plain, _ = recorded
    monkeypatch.setattr("workers.encoder.graphs.GraphedForward.compute", lambda *_: 1 / 0)
    assert same(encoder, plain, texts_of(*20 * [100])) and encoder.way == "padded"
    assert "padded from now on" in caplog.text


def test_recordings_are_not_kept_without_end(recorded, monkeypatch):
    encoder, plain, tape = recorded
    monkeypatch.setattr("workers.encoder.graphs.MOST_SHAPES", 2)
    kept, before = tape.forgotten, tape.recorded
    for count in (1, 20, 40, 1, 20):
        assert same(encoder, plain, texts_of(*count * [100]))
        assert len(encoder._forward._recorded) <= 2
    assert tape.forgotten > kept and tape.recorded > before + 2


# ---- on a GPU

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="only CUDA records graphs")


def close(found: np.ndarray, expected: np.ndarray) -> bool:
    found, expected = found.astype(np.float64), expected.astype(np.float64)
    return bool((1 - (found * expected).sum(axis=1)).max() <= 3e-3)


@pytest.mark.gpu
@gpu
@pytest.mark.parametrize("kind", ["gemma", "bert"])
def test_cuda_replays_what_it_recorded(tmp_path: Path, kind: str):
    layout = Layout.read(MAKERS[kind](tmp_path))
    encoder = Encoder(layout, device="cuda", dtype="bfloat16", max_batch_tokens=4096)
    assert "in graphs" in encoder.way and ("compiled" in encoder.way) == (kind == "gemma")
    exact = Encoder(layout, device="cpu", dtype="float32")
    random = np.random.default_rng(2)
    for count in (3, 40, 200, 40, 3):  # shapes met again, and again after others
        batch = texts_of(*random.integers(1, layout.max_tokens, count))
        assert close(encoder.encode(batch), exact.encode(batch))
    encoder._forward.forget()
    assert close(encoder.encode(batch), exact.encode(batch)), "recorded anew"


@pytest.mark.gpu
@gpu
def test_a_recording_that_cuda_refuses_is_passed_over(tmp_path: Path):
    """The real thing: a copy to the host, which no graph holds. Torch has to compute and to allocate afterwards."""
    layout = Layout.read(MAKERS["bert"](tmp_path))
    encoder = Encoder(layout, device="cuda", dtype="bfloat16", max_batch_tokens=4096)
    exact = Encoder(layout, device="cpu", dtype="float32")
    forward = encoder._forward
    hidden = forward._hidden

    def copies(*arguments):
        found = hidden(*arguments)
        float(found.sum())
        return found

    before = torch.cuda.current_stream()
    forward._hidden = copies
    for count in (60, 200, 3):
        batch = texts_of(*count * [100])
        assert close(encoder.encode(batch), exact.encode(batch))
    assert torch.cuda.current_stream() == before
    assert encoder.way == "packed, library" and not encoder.padded
    torch.cuda.empty_cache()


@pytest.mark.gpu
@gpu
def test_two_encoders_of_one_process_keep_apart(tmp_path: Path):
    layouts = [Layout.read(MAKERS[kind](tmp_path / kind)) for kind in ("gemma", "bert")]
    exact = [Encoder(layout, device="cpu", dtype="float32") for layout in layouts]
    # The second GPU where there is one: what is current is the first.
    devices = ("cuda:0", f"cuda:{torch.cuda.device_count() - 1}")
    found = [
        Encoder(layout, device=device, dtype="bfloat16", max_batch_tokens=4096)
        for layout, device in zip(layouts, devices, strict=True)
    ]
    for count in (3, 40, 3, 200, 40):
        batch = texts_of(*count * [60])
        assert all(close(one.encode(batch), other.encode(batch)) for one, other in zip(found, exact, strict=True))
    found.pop(0)
    assert close(found[0].encode(batch), exact[1].encode(batch)), "its workspace is its own"


@pytest.mark.gpu
@gpu
def test_a_kernel_that_fails_loses_the_device(tmp_path: Path):
    """In a process of its own, which is of no more use afterwards."""
    MAKERS["bert"](tmp_path)
    code = f"""
import numpy as np
from pathlib import Path
from workers.encoder.encoder import Encoder, Stats
from workers.encoder.layout import Layout
from workers.errors import DeviceLost
from workers.records import Batch
encoder = Encoder(Layout.read(Path({str(tmp_path)!r})), device="cuda", dtype="bfloat16")
encoder._check = lambda batch: None
try:
    encoder.encode(Batch.of([np.array([10**6, 1, 2], np.int32)]))
except DeviceLost:
    print("lost")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200, check=False)
    assert done.stdout.strip() == "lost", done.stderr[-2000:]
