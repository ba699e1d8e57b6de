"""Own encoder == sentence-transformers, on real text of mixed length, whatever the model is made of.

Wrong variants are far outside the tolerance: ``tests/golden/test_traps.py`` springs them one by one.
"""

import json
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tiny_model import MAKERS, dense, documents, modules, pooling
from workers.encoder.encoder import Encoder
from workers.encoder.layout import Layout, prompt_for, resolve
from workers.encoder.quantize import project
from workers.records import Batch, Origin, Record
from workers.text.tokenizer import Tokenizer

pytestmark = pytest.mark.filterwarnings("ignore")  # two libraries that warn about each other; none of it is ours

SAME = 1e-6  # float32, same batches, max |difference|
OTHER_BATCH = 5e-6  # as two batches differ from each other
MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")


@pytest.fixture(scope="session")
def texts() -> list[str]:
    found = documents(34)
    return [*found, "", "a", " leading space", "é ﬁ 日本語 🙂\n", "<eos> [SEP] <pad> \0", " ".join(found[-4:])]


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> Callable[[str], Path]:
    """``model(kind)`` → a folder, made once."""
    made: dict[str, Path] = {}

    def folder(kind: str) -> Path:
        if kind not in made:
            made[kind] = (
                resolve("all-MiniLM-L6-v2") if kind == "minilm" else MAKERS[kind](tmp_path_factory.mktemp(kind))
            )
        return made[kind]

    return folder


@cache
def theirs(folder: Path) -> Any:
    from sentence_transformers import SentenceTransformer

    found = SentenceTransformer(str(folder), device="cpu").eval()
    found.tokenizer.padding_side = "right"  # as ours; on the left, rotary positions round differently
    return found


def expected(reference: Any, texts: list[str], prompt: str = "", **options: Any) -> np.ndarray:
    """Their vectors of these texts as one batch, in this order; ``encode`` would sort by characters first."""
    import torch

    with torch.inference_mode():
        vectors = reference(reference.preprocess(texts, prompt=prompt, **options), **options)["sentence_embedding"]
        return torch.nn.functional.normalize(vectors, dim=1).numpy()


class Ours:
    """Tokenizer and encoder of a folder, put together as the pipelines do."""

    def __init__(self, folder: Path, prompt: str = "", task: str | None = None, **changes: Any) -> None:
        layout = replace(Layout.read(folder, task=task), **changes)
        self.layout = layout if layout.head else replace(layout, dim=layout.hidden * len(layout.pooling))
        limit, lower_case = self.layout.max_tokens, self.layout.lower_case
        self.tokenizer = Tokenizer(self.layout.transformer, max_tokens=limit, prompt=prompt, lower_case=lower_case)
        count = self.tokenizer.prompt_tokens
        self.encoder = Encoder(self.layout, device="cpu", dtype="float32", prompt_tokens=count, max_batch_tokens=10**6)

    def tokens(self, texts: list[str]) -> Batch:
        return Batch.of([tokens.ids for tokens in self.tokenizer.encode(texts)])

    def __call__(self, texts: list[str], dim: int | None = None) -> np.ndarray:
        return self.encoder.encode(self.tokens(texts), dim)


def longest_first(own: Ours, texts: list[str]) -> list[str]:
    """The order in which the encoder runs a batch; in another, the same sums round differently."""
    lengths = own.tokens(texts).lengths
    return [texts[row] for row in np.argsort(-lengths, kind="stable")]


def assert_same(folder: Path, texts: list[str], prompt: str = "", **options: Any) -> np.ndarray:
    own = Ours(folder, prompt, **options)
    ordered = longest_first(own, texts)
    vectors = own(ordered)
    reference = expected(theirs(folder), ordered, prompt, **options)
    assert vectors.shape == reference.shape == (len(texts), own.layout.dim)
    assert np.abs(vectors - reference).max() <= SAME
    return vectors


@pytest.mark.parametrize("kind", ["minilm", *MAKERS])
def test_equal_on_every_kind_of_model(model, texts, kind):
    """Short texts and empty ones, some over the limit and longer than any window; whole and cut to a dim."""
    folder = model(kind)
    own, reference = Ours(folder), theirs(folder)
    assert own.layout.max_tokens == reference.max_seq_length
    batch = own.tokens(texts)
    assert (batch.lengths == own.layout.max_tokens).any() and batch.lengths.min() <= 2  # the premise
    assert np.linalg.matrix_rank(assert_same(folder, texts)) > len(texts) // 2  # the premise: vectors of their own
    dim = own.layout.dim // 4
    cut = reference.encode(texts, truncate_dim=dim, normalize_embeddings=True)  # in batches of its own
    whole = own(texts)
    assert np.abs(own(texts, dim) - cut).max() <= OTHER_BATCH
    assert np.abs(project(whole, dim, "float32") - cut).max() <= OTHER_BATCH
    assert np.abs(whole[:, :dim] - cut).max() > 1e-2  # a slice is no unit vector


@pytest.mark.parametrize("include_prompt", [True, False])
@pytest.mark.parametrize("mode", [*MODES, MODES, ("lasttoken", "cls")], ids=str)
@pytest.mark.parametrize("kind", ["gemma", "qwen3", "bert"])
def test_equal_with_every_pooling_and_a_prompt(model, texts, kind, mode, include_prompt):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    modes = (mode,) if isinstance(mode, str) else mode
    own = Ours(model(kind), "the text: ", pooling=modes, include_prompt=include_prompt, head=())
    pooled = Pooling(own.layout.hidden, modes, include_prompt=include_prompt)
    reference = SentenceTransformer(modules=[theirs(model(kind))[0], pooled], device="cpu").eval()
    ordered = longest_first(own, [text for text in texts[::2] if text])
    assert np.abs(own(ordered) - expected(reference, ordered, "the text: ")).max() <= SAME


@pytest.mark.parametrize("name", ["query", "document"])
def test_equal_with_a_prompt_of_the_table(model, texts, name):
    prompt = prompt_for(Layout.read(model("gemma")), name, None)
    reference = theirs(model("gemma")).encode(texts, prompt_name=name)
    assert np.abs(Ours(model("gemma"), prompt)(texts) - reference).max() <= OTHER_BATCH


def test_equal_with_a_title_of_each_record(model, texts):
    """EmbeddingGemma's document prompt: ``title: {title|none} | text: ``."""
    from workers.codecs import decoder_for
    from workers.settings import Settings

    settings = Settings(model={"prompt_text": "title: {title|none} | text: "}, source={"empty": "embed"})
    decoder = decoder_for(settings)
    titles = ["a title", None, "{braces}", "日本語"]
    values = [{"text": text, "title": titles[row % 4]} for row, text in enumerate(texts[::2])]
    found = [decoder.decode(Record(Origin("t", 0, 0, 0), b"k", json.dumps(value).encode(), 0)) for value in values]
    own = Ours(model("gemma"))
    tokens = own.tokenizer.encode([document.text for document in found], [document.prompt for document in found])
    vectors = own.encoder.encode(Batch.of([each.ids for each in tokens]))
    reference = theirs(model("gemma"))
    for row, value in list(enumerate(values))[::6]:
        alone = reference.encode(value["text"], prompt=f"title: {value['title'] or 'none'} | text: ")
        assert np.abs(vectors[row] - alone).max() <= OTHER_BATCH


def test_equal_on_a_text_of_a_megabyte(model):
    words = " ".join(documents(60))
    text = (words * (1 + (1 << 20) // len(words)))[: 1 << 20]
    for kind in ("minilm", "gemma"):
        assert np.abs(Ours(model(kind))([text]) - expected(theirs(model(kind)), [text])).max() <= SAME


def test_equal_in_four_threads_at_once(model, texts):
    """Each with a tokenizer and an encoder of its own, and a limit of its own: none sees another's."""
    reference = theirs.__wrapped__(model("gemma"))  # its limit is changed here
    wanted = {}
    for limit in (16, 24, 40, 64):
        reference.max_seq_length = limit
        wanted[limit] = reference.encode(texts)
    worst: dict[int, float] = {}

    def work(limit: int) -> None:
        layout = Layout.read(model("gemma"))
        tokenizer = Tokenizer(layout.transformer, max_tokens=limit)
        encoder = Encoder(layout, device="cpu", dtype="float32")
        for _ in range(3):
            batch = Batch.of([tokens.ids for tokens in tokenizer.encode(texts)])
            worst[limit] = max(worst.get(limit, 0), np.abs(encoder.encode(batch) - wanted[limit]).max())

    threads = [threading.Thread(target=work, args=(limit,)) for limit in wanted]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(worst) == 4 and max(worst.values()) <= OTHER_BATCH


@pytest.mark.parametrize("kind", ["minilm", "gemma", "modernbert", "qwen3"])
def test_a_vector_does_not_depend_on_its_batch(model, texts, kind):
    own = Ours(model(kind))
    batch = own.tokens(texts[::2])
    together = own.encoder.encode(batch).astype(np.float64)
    alone = np.concatenate([own.encoder.encode(batch.slice(row, row + 1)) for row in range(len(batch))])
    assert np.abs(together - alone).max() <= OTHER_BATCH
    assert (1 - (together * alone).sum(axis=1) / np.linalg.norm(together, axis=1)).max() <= 1e-6


@pytest.mark.parametrize("kind", ["gemma", "qwen3"])
def test_their_padding_on_the_left_does_not_matter(model, texts, kind):
    reference = theirs.__wrapped__(model(kind))
    reference.tokenizer.padding_side = "left"
    assert np.abs(Ours(model(kind))(texts) - reference.encode(texts, normalize_embeddings=True)).max() <= OTHER_BATCH


def test_a_model_that_they_saved_reads_the_same(model, texts, tmp_path):
    for kind in ("gemma", "modernbert"):
        theirs(model(kind)).save_pretrained(str(tmp_path / kind))
        assert Layout.read(tmp_path / kind).max_tokens == 256
        assert_same(tmp_path / kind, texts)


def test_equal_with_layers_after_a_normalize(model, texts, tmp_path):
    import torch
    from safetensors.torch import save_file

    folder = shutil.copytree(model("gemma"), tmp_path / "model")
    (folder / "5_LayerNorm").mkdir()
    save_file({"norm.weight": torch.rand(64), "norm.bias": torch.rand(64)}, folder / "5_LayerNorm/model.safetensors")
    (folder / "5_LayerNorm/config.json").write_text('{"dimension": 64}')
    (folder / "6_Dropout").mkdir()
    (folder / "6_Dropout/config.json").write_text('{"dropout": 0.5}')
    config = json.loads((folder / "3_Dense/config.json").read_text())
    tanh = config | {"activation_function": "torch.nn.modules.activation.Tanh"}
    (folder / "3_Dense/config.json").write_text(json.dumps(tanh))
    modules(folder, ["", "1_Pooling", "2_Dense", "4_Normalize", "3_Dense", "6_Dropout", "5_LayerNorm", "7_Normalize"])
    assert_same(folder, texts[::2])


@pytest.mark.parametrize("kind", ["bert", "qwen3"])
def test_equal_without_modules_json(model, texts, tmp_path, kind):
    folder = shutil.copytree(model(kind), tmp_path / "model")
    (folder / "modules.json").unlink()
    assert Layout.read(folder).pooling == ({"bert": "mean", "qwen3": "lasttoken"}[kind],)
    assert_same(folder, texts[::2])


def test_equal_on_each_route_of_a_router(model, texts, tmp_path):
    """A route for queries and one for documents, each with an end of its own, as sentence-transformers saves it."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Router, Transformer

    bert = Transformer(str(model("bert")))
    ends = [[Dense(32, 16), Normalize()] for _ in range(2)]
    router = Router.for_query_document([bert, Pooling(32), *ends[0]], [bert, Pooling(32, "max"), *ends[1]])
    folder = tmp_path / "model"
    SentenceTransformer(modules=[router], device="cpu").save_pretrained(str(folder))
    found = {task: assert_same(folder, texts[::2], task=task) for task in ("query", "document")}
    by_default = Ours(folder)
    ordered = longest_first(by_default, texts[::2])
    assert np.array_equal(by_default(ordered), found["document"])
    assert np.abs(found["query"] - found["document"]).max() > 1e-2


def test_equal_on_a_router_behind_the_pooling(model, texts, tmp_path):
    """As Asym was used and saved: one transformer, one Dense for each task."""
    folder = shutil.copytree(model("bert"), tmp_path / "model")
    for seed, route in enumerate(("query", "document")):
        dense(folder / "2_Asym" / f"{route}_0_Dense", 32, 24, seed)
    types = {f"{route}_0_Dense": "sentence_transformers.models.Dense" for route in ("query", "document")}
    structure = {route: [f"{route}_0_Dense"] for route in ("query", "document")}
    config = {"types": types, "structure": structure, "parameters": {"allow_empty_key": True}}
    (folder / "2_Asym/config.json").write_text(json.dumps(config))
    modules(folder, ["", "1_Pooling", "2_Asym", "3_Normalize"])
    for task in ("query", "document"):
        assert_same(folder, texts[::2], task=task)


def test_equal_with_the_pooling_of_older_files(model, texts, tmp_path):
    folder = shutil.copytree(model("mpnet"), tmp_path / "model")
    pooling(folder / "1_Pooling", 32, ("max", "cls", "weightedmean"))
    assert Layout.read(folder).pooling == ("cls", "max", "weightedmean")
    assert_same(folder, texts)


def test_lower_case_comes_first(model, texts, tmp_path):
    folder = shutil.copytree(model("gemma"), tmp_path / "model")
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 256, "do_lower_case": true}')
    lower = assert_same(folder, texts[::2])
    assert np.abs(lower - assert_same(model("gemma"), texts[::2])).max() > 1e-2
