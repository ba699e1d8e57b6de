"""Own encoder == sentence-transformers, on real text of mixed length; and each wrong variant is far outside the tolerance."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tiny_model import documents, make_tiny_bert, make_tiny_gemma
from workers.encoder.encoder import Encoder
from workers.encoder.layout import Layout, prompt_for, resolve
from workers.encoder.quantize import project
from workers.records import Batch
from workers.text.tokenizer import Tokenizer

pytestmark = pytest.mark.filterwarnings("ignore")  # two libraries that warn about each other; none of it is ours

SAME = 1e-6  # float32, max |difference|: measured 1e-7 to 9e-7, whatever the batches
WRONG = 1e-2  # what a wrong mask, window, prompt, or order moves at least


@pytest.fixture(scope="module")
def texts() -> list[str]:
    found = documents(195)
    return [*found, "", "a", " leading space", "é ﬁ 日本語 🙂\n", " ".join(found[-8:])]


@pytest.fixture(scope="module", params=["minilm", "gemma", "bert"])
def folder(request, tmp_path_factory) -> Path:
    match request.param:
        case "gemma":
            return make_tiny_gemma(tmp_path_factory.mktemp("gemma"))
        case "bert":
            return make_tiny_bert(tmp_path_factory.mktemp("bert"))
    return resolve("all-MiniLM-L6-v2")


@pytest.fixture(scope="module")
def gemma(tmp_path_factory) -> Path:
    return make_tiny_gemma(tmp_path_factory.mktemp("gemma"))


def theirs(folder: Path) -> Any:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), device="cpu")


def tokenised(layout: Layout, texts: list[str], prompt: str = "") -> tuple[Batch, int]:
    tokenizer = Tokenizer(layout.transformer, max_tokens=layout.max_tokens, prompt=prompt, lower_case=layout.lower_case)
    return Batch.of([tokens.ids for tokens in tokenizer.encode(texts)]), tokenizer.prompt_tokens


def ours(folder: Path, texts: list[str], prompt: str = "", dim: int | None = None) -> np.ndarray:
    layout = Layout.read(folder)
    batch, prompt_tokens = tokenised(layout, texts, prompt)
    return Encoder(layout, device="cpu", prompt_tokens=prompt_tokens).encode(batch, dim)


def test_equal_at_full_and_truncated_dim(folder, texts, record_property):
    reference = theirs(folder)
    layout = Layout.read(folder)
    batch, _ = tokenised(layout, texts)
    assert (
        batch.lengths == layout.max_tokens
    ).any() and batch.lengths.min() <= 3  # the premise: mixed, and over the limit
    encoder = Encoder(layout, device="cpu")
    whole = encoder.encode(batch)
    full = reference.encode(texts)
    assert whole.shape == full.shape == (200, layout.dim)
    differences = {layout.dim: np.abs(whole - full).max()}
    for dim in (layout.dim // 4,):
        expected = reference.encode(texts, truncate_dim=dim, normalize_embeddings=True)
        differences[dim] = max(
            np.abs(encoder.encode(batch, dim) - expected).max(), np.abs(project(whole, dim, "float32") - expected).max()
        )
        assert np.abs(whole[:, :dim] - expected).max() > WRONG  # renormalise missing
    record_property("differences", str(differences))
    assert max(differences.values()) <= SAME


def test_equal_in_the_same_batch(folder, texts):
    reference = theirs(folder)
    layout = Layout.read(folder)
    encoder = Encoder(layout, device="cpu", max_batch_tokens=10**6)
    for part in (texts[:8], texts[-8:]):
        batch, _ = tokenised(layout, part)
        assert np.abs(encoder.encode(batch) - reference.encode(part)).max() <= SAME


@pytest.mark.parametrize("name", ["query", "document"])
def test_equal_with_a_prompt(gemma, texts, name):
    prompt = prompt_for(Layout.read(gemma), name, None)
    expected = theirs(gemma).encode(texts, prompt_name=name)
    assert np.abs(ours(gemma, texts, prompt) - expected).max() <= SAME
    assert np.abs(ours(gemma, texts) - expected).max() > WRONG  # prompt forgotten


@pytest.mark.parametrize("mode", ["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"])
def test_equal_with_other_pooling_and_the_prompt_left_out(gemma, texts, tmp_path, mode):
    folder = shutil.copytree(gemma, tmp_path / "model")
    pooling = {"embedding_dimension": 64, "pooling_mode": mode, "include_prompt": False}
    (folder / "1_Pooling/config.json").write_text(json.dumps(pooling))
    expected = theirs(folder).encode(texts[:60], prompt="text: ")
    assert np.abs(ours(folder, texts[:60], "text: ") - expected).max() <= SAME


def test_a_model_that_they_saved_reads_the_same(gemma, texts, tmp_path):
    reference = theirs(gemma)
    reference.save_pretrained(str(tmp_path / "saved"))
    assert Layout.read(tmp_path / "saved").max_tokens == 256
    assert np.abs(ours(tmp_path / "saved", texts[:40]) - reference.encode(texts[:40])).max() <= SAME


def no_eos(folder: Path, batch: Batch) -> Batch:
    ends = np.cumsum(batch.lengths)
    return Batch(np.delete(batch.ids, ends - 1), batch.lengths - 1)


def swap_ids(folder: Path, batch: Batch) -> Batch:
    ends = np.cumsum(batch.lengths)
    return Batch.of(
        [batch.ids[end - length : end][::-1].copy() for end, length in zip(ends, batch.lengths, strict=True)]
    )


def change_config(**values: object) -> Callable[[Path, Batch], Batch]:
    def change(folder: Path, batch: Batch) -> Batch:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))
        return batch

    return change


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(no_eos, id="eos dropped"),
        pytest.param(swap_ids, id="order of tokens"),
        pytest.param(change_config(sliding_window=18), id="window one wider"),
        pytest.param(change_config(sliding_window=14), id="window one narrower"),
        pytest.param(change_config(layer_types=["sliding_attention"] * 4), id="no full attention"),
    ],
)
def test_a_wrong_variant_does_not_pass(gemma, texts, tmp_path, spoil):
    expected = ours(gemma, texts)
    folder = shutil.copytree(gemma, tmp_path / "model")
    batch, _ = tokenised(Layout.read(folder), [text or "a" for text in texts])
    batch = spoil(folder, batch)
    assert np.abs(Encoder(Layout.read(folder), device="cpu").encode(batch) - expected).max() > WRONG


def test_a_head_left_out_does_not_pass(gemma, texts):
    layout = Layout.read(gemma)
    batch, _ = tokenised(layout, texts[:40])
    expected = Encoder(layout, device="cpu").encode(batch)
    assert np.abs(Encoder(replace(layout, head=()), device="cpu").encode(batch) - expected).max() > WRONG
