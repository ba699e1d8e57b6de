"""The encoder: order, budget, invariance, refusals, and a self-test that notices what is wrong."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.tiny_model import GEMMA_PROMPTS, MAKERS, documents, make_tiny_bert, make_tiny_gemma
from workers.encoder.encoder import Encoder, Stats
from workers.encoder.layout import Layout
from workers.encoder.linear import repeating
from workers.encoder.packing import packs
from workers.errors import DeviceLost, EnvironmentFault, RetryableError
from workers.records import Batch
from workers.text.tokenizer import Tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:::transformers")


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> Path:
    return make_tiny_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def gemma(tmp_path_factory) -> Path:
    return make_tiny_gemma(tmp_path_factory.mktemp("gemma"))


@pytest.fixture(params=["bert", "gemma"])
def model(request) -> Path:
    return request.getfixturevalue(request.param)


@pytest.fixture
def copy(gemma, tmp_path) -> Path:
    return shutil.copytree(gemma, tmp_path / "model")


def tokenised(folder: Path, texts: list[str], prompt: str = "") -> Batch:
    layout = Layout.read(folder)
    tokenizer = Tokenizer(layout.transformer, max_tokens=layout.max_tokens, prompt=prompt)
    return Batch.of([tokens.ids for tokens in tokenizer.encode(texts)])


def load(folder: Path, **options) -> Encoder:
    return Encoder(Layout.read(folder), device="cpu", **({"dtype": "float32"} | options))


def test_order_shape_and_length(model):
    encoder = load(model, max_batch_tokens=300)
    batch = tokenised(model, documents(40))
    vectors = encoder.encode(batch)
    assert vectors.shape == (40, encoder.dim) and vectors.dtype == np.float32
    assert np.abs(np.linalg.norm(vectors.astype(np.float64), axis=1) - 1).max() < 1e-6
    for index in (0, 17, 39):
        alone = encoder.encode(batch.slice(index, index + 1))
        assert np.abs(alone[0] - vectors[index]).max() <= 5e-6
    assert np.linalg.matrix_rank(vectors[:8]) == 8  # the premise: texts have vectors of their own


@pytest.mark.parametrize("budget", [1, 1000, 100_000])
def test_the_budget_moves_a_vector_by_rounding_only(model, budget):
    batch = tokenised(model, documents(20))
    expected = load(model).encode(batch).astype(np.float64)
    vectors = load(model, max_batch_tokens=budget).encode(batch).astype(np.float64)
    assert np.abs(vectors - expected).max() <= 5e-6
    assert (1 - (vectors * expected).sum(axis=1) / np.linalg.norm(vectors, axis=1)).max() <= 1e-6


def test_bfloat16_invariance(gemma):
    batch = tokenised(gemma, documents(12))  # few: bfloat16 on CPU prepares a kernel for each shape, slowly
    exact = load(gemma).encode(batch).astype(np.float64)
    wide = load(gemma, dtype="bfloat16").encode(batch).astype(np.float64)
    alone = load(gemma, dtype="bfloat16", max_batch_tokens=1).encode(batch).astype(np.float64)
    assert np.abs(np.linalg.norm(wide, axis=1) - 1).max() <= 1e-5
    assert (1 - (wide * alone).sum(axis=1)).max() <= 1e-3
    assert 1e-7 < (1 - (wide * exact).sum(axis=1)).max() <= 3e-3


def test_dim_is_truncated_then_normalised(gemma):
    encoder = load(gemma)
    batch = tokenised(gemma, documents(10))
    whole, part = encoder.encode(batch), encoder.encode(batch, 16)
    assert np.abs(np.linalg.norm(part, axis=1) - 1).max() < 1e-6
    sliced = whole[:, :16]
    assert np.abs(sliced / np.linalg.norm(sliced, axis=1, keepdims=True) - part).max() <= 2e-7
    for wrong in (0, -1, 65):
        with pytest.raises(ValueError, match="not between 1 and 64"):
            encoder.encode(batch, wrong)


def test_include_prompt_false_leaves_the_prompt_out(gemma, copy):
    config = json.loads((copy / "1_Pooling/config.json").read_text())
    (copy / "1_Pooling/config.json").write_text(json.dumps(config | {"include_prompt": False}))
    prompt = GEMMA_PROMPTS["query"]
    batch = tokenised(copy, documents(5), prompt)
    count = Tokenizer(copy, max_tokens=256, prompt=prompt).prompt_tokens
    left_out = load(copy, prompt_tokens=count).encode(batch)
    counted = load(gemma, prompt_tokens=count).encode(batch)
    assert np.abs(left_out - counted).max() > 1e-2
    load(copy, prompt_tokens=count).self_test()


@pytest.mark.parametrize("padded", [False, True])
def test_stats(bert, padded):
    encoder = load(bert, max_batch_tokens=100, padded=padded)
    batch = Batch.of([np.full(length, 7, np.int32) for length in (10, 10, 10, 8, 50, 40, 20)])
    assert encoder.stats == Stats(0, 0)
    encoder.warm_up()
    encoder.self_test()
    encoder.encode(batch)
    passes = packs(batch, 100, padded=padded)
    padding = sum(len(p) * p.longest if padded else repeating(len(p.ids)) for p in passes) - batch.tokens
    assert encoder.padded == padded and padding > 0
    assert encoder.stats == Stats(148, padding)
    encoder.encode(batch)
    assert encoder.stats == Stats(296, 2 * padding)


def test_nothing(bert):
    assert load(bert).encode(Batch.of([])).shape == (0, 32)


@pytest.mark.parametrize(
    ("ids", "lengths", "sentence"),
    [
        ([1, 2, 3], [2], "do not match"),
        ([1, 2, 3], [3, 0], "do not match"),
        ([1, 99_999], [2], "outside the model's vocabulary"),
        ([-1, 1], [2], "outside the model's vocabulary"),
        ([1] * 129, [129], "longer than the model's 128"),
    ],
)
def test_refuses_batches_of_another_tokenizer(bert, ids, lengths, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        load(bert).encode(Batch(np.array(ids, np.int32), np.array(lengths, np.int32)))
    assert "99999" not in str(error.value)


def test_nan_stays_in_its_row(bert, monkeypatch):
    encoder = load(bert)
    batch = tokenised(bert, documents(8))
    (pack,) = packs(batch, 2048)
    expected = encoder.encode(batch)
    embeddings = encoder._forward._hidden._model.embeddings
    embed = embeddings.forward

    def spoil(*arguments, **options):
        hidden = embed(*arguments, **options)
        hidden[0, pack.ends[1] if hidden.shape[1] >= batch.tokens else 0] = float("nan")  # the third longest text
        return hidden

    monkeypatch.setattr(embeddings, "forward", spoil)
    vectors = encoder.encode(batch)
    spoiled = pack.rows[2]
    assert np.isnan(vectors[spoiled]).all()
    rest = np.arange(8) != spoiled
    assert np.array_equal(vectors[rest], expected[rest])
    with pytest.raises(EnvironmentFault, match="not finite"):
        encoder.self_test()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_self_test_and_warm_up_pass(model, dtype):
    encoder = load(model, dtype=dtype)
    encoder.warm_up()
    encoder.self_test()


def test_self_test_notices_a_mask_that_is_not_used(gemma, monkeypatch):
    encoder = load(gemma, padded=True)
    model = encoder._forward._model
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda input_ids, attention_mask: forward(input_ids=input_ids))
    with pytest.raises(EnvironmentFault, match="depends on its batch"):
        encoder.self_test()


def test_self_test_notices_a_missing_normalisation(gemma, monkeypatch):
    monkeypatch.setattr("workers.encoder.head.normalise", lambda vectors: vectors)
    with pytest.raises(EnvironmentFault, match="off unit length"):
        load(gemma).self_test()


# ---- how it computes


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", [kind for kind in MAKERS if kind != "mpnet"])
def test_packed_is_padded(tmp_path, kind, dtype):
    layout = Layout.read(MAKERS[kind](tmp_path))
    packed, padded = (Encoder(layout, device="cpu", dtype=dtype, padded=choice) for choice in (False, True))
    assert not packed.padded and padded.padded
    random = np.random.default_rng(5)
    lengths = [*random.integers(1, layout.max_tokens + 1, 12), layout.max_tokens, 1, 1, 40, 40, 40]
    batch = Batch.of([random.integers(0, packed._samples.vocabulary, length, dtype=np.int32) for length in lengths])
    found, expected = (encoder.encode(batch).astype(np.float64) for encoder in (packed, padded))
    assert (1 - (found * expected).sum(axis=1)).max() <= (1e-6 if dtype == "float32" else 1e-3)
    assert packed.stats.padding == repeating(batch.tokens) - batch.tokens


def test_gemma_has_a_way_of_its_own(gemma):
    assert type(load(gemma)._forward._hidden).__name__ == "Gemma"


def test_a_model_that_cannot_be_packed_is_padded(tmp_path):
    encoder = load(MAKERS["mpnet"](tmp_path))
    assert encoder.padded
    encoder.self_test()


def test_a_packed_way_that_computes_something_else_is_not_taken(bert, monkeypatch, caplog):
    monkeypatch.setattr("workers.encoder.attention.attend", lambda query, key, value, segments, **_: value)
    with caplog.at_level("INFO"):
        encoder = load(bert)
    assert encoder.padded
    assert "passed over" in caplog.text
    monkeypatch.setattr("workers.encoder.attention.attend", lambda *_, **__: 1 / 0)
    assert load(bert).padded


def test_a_model_whose_layers_were_replaced_wrongly_is_loaded_again(bert, monkeypatch, caplog):
    batch = tokenised(bert, documents(8))
    expected = load(bert, padded=True).encode(batch)

    def wrongly(model):
        model.encoder.layer[1].output.dense.weight.mul_(1.5)  # the second layer; the first is right

    monkeypatch.setattr("workers.encoder.ways.reorder", wrongly)
    with caplog.at_level("INFO"):
        encoder = load(bert)
    assert encoder.padded and "way=padded" in caplog.text
    assert np.array_equal(encoder.encode(batch), expected)


def test_bfloat16_is_taken_where_it_is_fast_and_close_enough(bert, monkeypatch, caplog):
    monkeypatch.setattr("workers.encoder.device.has_bfloat16", lambda device: True)
    assert load(bert, dtype="auto").dtype == "bfloat16"
    monkeypatch.setattr("workers.encoder.encoder._GATE", 1.0)
    encoder = load(bert, dtype="auto")
    assert encoder.dtype == "float32" and "not precise enough" in caplog.text
    assert load(bert, dtype="bfloat16").dtype == "bfloat16", "who asks for it gets it"
    monkeypatch.setattr("workers.encoder.device.has_bfloat16", lambda device: False)
    assert load(bert, dtype="auto").dtype == "float32"


# ---- too little memory


class Memory:
    """A forward pass that has room for so many tokens."""

    def __init__(self, encoder: Encoder, tokens: int, error: BaseException) -> None:
        self._forward, self.tokens, self.error = encoder._forward, tokens, error
        self.name, self.padded, self.cost = "a way", False, self._forward.cost
        self.passes: list[int] = []
        self.forgotten = 0

    def __call__(self, pack, dim):
        self.passes.append(len(pack.ids))
        if len(pack.ids) > self.tokens:
            raise self.error
        return self._forward(pack, dim)

    def forget(self):
        self.forgotten += 1


ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory"),
    torch.AcceleratorError("CUDA error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
]


@pytest.mark.parametrize("error", ERRORS)
def test_a_pass_without_memory_is_halved_and_so_are_those_that_follow(bert, error, caplog):
    encoder = load(bert, max_batch_tokens=400)
    batch = Batch.of([np.full(40, 7 + n, np.int32) for n in range(10)])
    expected = encoder.encode(batch)
    encoder._forward = memory = Memory(encoder, 100, error)
    assert np.abs(encoder.encode(batch) - expected).max() <= 5e-6
    assert memory.passes == [400, 200, 80, 120, 40, 80, 200, 80, 120, 40, 80]
    assert encoder.stats == Stats(800, 2 * (repeating(40) - 40), 5) and memory.forgotten == 5
    assert "out of memory" in caplog.text
    memory.passes.clear()
    encoder.encode(batch)
    assert max(memory.passes) <= 100, "the budget stays lower"


def test_a_text_that_needs_more_than_there_is_is_said(bert):
    encoder = load(bert)
    encoder._forward = Memory(encoder, 30, ERRORS[0])
    with pytest.raises(RetryableError, match="too little memory for a text of 40 tokens"):
        encoder.encode(Batch.of([np.full(40, 7, np.int32)]))


@pytest.mark.parametrize("error", ERRORS)
def test_warm_up_says_what_to_lower(bert, error):
    encoder = load(bert)
    encoder._forward = Memory(encoder, 1000, error)
    with pytest.raises(EnvironmentFault, match=r"too little memory for pool.max_batch_tokens 4096"):
        encoder.warm_up()


def test_warm_up_fills_the_budget(bert):
    encoder = load(bert, max_batch_tokens=1000)
    encoder._forward = memory = Memory(encoder, 10_000, ERRORS[0])
    encoder.warm_up()
    assert [size for size in memory.passes if size > 870] == memory.passes


def test_warm_up_on_a_cpu_has_an_end(gemma):
    encoder = Encoder(
        replace(Layout.read(gemma), max_tokens=2**20), device="cpu", dtype="float32", max_batch_tokens=600
    )
    encoder._forward = memory = Memory(encoder, 10_000, ERRORS[0])
    encoder.warm_up()
    assert sorted(memory.passes) == [592, 600, 4096]


def test_warm_up_says_which_text_is_too_long(bert):
    encoder = load(bert, max_batch_tokens=100)
    encoder._forward = Memory(encoder, 100, ERRORS[0])
    with pytest.raises(EnvironmentFault, match=r"too little memory for a text of 128 tokens; set model\.max_tokens"):
        encoder.warm_up()


@pytest.mark.parametrize(("dtype", "advice"), [("float32", "weights are damaged"), ("bfloat16", "dtype: float32")])
def test_vectors_that_are_not_finite_get_advice_that_helps(bert, tmp_path, dtype, advice):
    folder = shutil.copytree(bert, tmp_path / "model")
    weights = {name: torch.zeros_like(weight) for name, weight in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(EnvironmentFault, match=f"not finite in {dtype}; .*{advice}"):
        load(folder, dtype=dtype, padded=True).self_test()


# ---- a way that fails later


@pytest.mark.parametrize("begin", ["encode", "warm_up", "self_test"])
def test_a_way_that_fails_later_gives_place_to_the_padded_one(gemma, caplog, begin):
    batch = tokenised(gemma, documents(20))
    expected = load(gemma).encode(batch)
    encoder = load(gemma, max_batch_tokens=700)
    encoder._forward = failing = Memory(encoder, 0, RuntimeError("Triton Error: launch failed\nand more"))
    if begin != "encode":
        getattr(encoder, begin)()
        assert encoder.padded
    assert np.abs(encoder.encode(batch) - expected).max() <= 5e-6
    assert encoder.padded and encoder.way == "padded" and len(failing.passes) == failing.forgotten == 1
    assert "padded from now on" in caplog.text and "launch failed and more" in caplog.text
    padding = sum(len(pack) * pack.longest for pack in packs(batch, 700, padded=True)) - batch.tokens
    assert encoder.stats == Stats(batch.tokens, padding, 0), "it is no lack of memory, and packs are those for padding"


def test_a_way_is_kept_when_the_padded_one_fails_as_well(bert, monkeypatch, caplog):
    batch = Batch.of([np.full(40, 7, np.int32)])
    encoder = load(bert)
    encoder._forward = way = Memory(encoder, 30, RuntimeError("something else"))
    with monkeypatch.context() as patch:
        patch.setattr("workers.encoder.forward.PaddedForward.__call__", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            encoder.encode(batch)
    assert encoder._forward is way and "from now on" not in caplog.text


def test_a_lost_device_is_not_tried_again(bert, monkeypatch):
    def lost(device, error):
        raise DeviceLost(f"{device} is lost") from error

    encoder = load(bert)
    encoder._forward = way = Memory(encoder, 30, torch.AcceleratorError("CUDA error: an illegal memory access"))
    monkeypatch.setattr("workers.encoder.encoder.require_device", lost)
    with pytest.raises(DeviceLost, match="cpu is lost"):
        encoder.encode(Batch.of([np.full(40, 7, np.int32)]))
    assert encoder._forward is way and way.passes == [40]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="only CUDA computes so")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_cuda_is_as_good_as_cpu(model, dtype):
    batch = tokenised(model, documents(60))
    exact = load(model).encode(batch).astype(np.float64)
    encoder = Encoder(Layout.read(model), device="cuda", dtype=dtype, max_batch_tokens=16_384)
    encoder.warm_up()
    encoder.self_test()
    vectors = encoder.encode(batch).astype(np.float64)
    assert not encoder.padded and ("in graphs" in encoder.way) == (dtype == "bfloat16")
    assert not torch.backends.cuda.cudnn_sdp_enabled()
    assert (1 - (vectors * exact).sum(axis=1)).max() <= (1e-6 if dtype == "float32" else 3e-3)
    cut = exact[:, :16] / np.linalg.norm(exact[:, :16], axis=1, keepdims=True)
    assert (1 - (encoder.encode(batch, 16) * cut).sum(axis=1)).max() <= (1e-6 if dtype == "float32" else 1e-2)
