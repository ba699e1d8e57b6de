"""Ids as sentence-transformers makes them: prompt, special tokens, truncation; and the cut of long texts."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tiny_model import GEMMA_PROMPTS, documents, make_tiny_bert, make_tiny_gemma
from workers.encoder.layout import resolve
from workers.errors import EnvironmentFault, SettingsError
from workers.text import tokenizer as room
from workers.text.tokenizer import Tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:::transformers")

TEXTS = [
    "",
    "a",
    "Hello, world!",
    " leading",
    "trailing\n",
    "NUL \0 é ﬁ 日本語 🙂",
    "<eos> [SEP] <pad>",
    "x" * 3000,
    "   " * 900,
]


@pytest.fixture(scope="module", params=["bert", "gemma", "minilm"])
def model(request, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    match request.param:
        case "bert":
            return make_tiny_bert(folder)
        case "gemma":
            return make_tiny_gemma(folder)
    return resolve("all-MiniLM-L6-v2")


@pytest.fixture(scope="module")
def gemma(tmp_path_factory) -> Path:
    return make_tiny_gemma(tmp_path_factory.mktemp("gemma"))


def reference(folder: Path, texts: list[str], max_tokens: int) -> list[list[int]]:
    from transformers import AutoTokenizer

    whole = AutoTokenizer.from_pretrained(folder)
    return whole(texts, truncation=True, max_length=max_tokens)["input_ids"]


@pytest.mark.parametrize("max_tokens", [8, 64, 128])
@pytest.mark.parametrize("prompt", ["", "query: "])
def test_ids_are_those_of_the_model(model, max_tokens, prompt):
    texts = [*TEXTS, *documents(60), documents(60)[-1] * 5]
    results = Tokenizer(model, max_tokens=max_tokens, prompt=prompt).encode(texts)
    expected = reference(model, [prompt + text for text in texts], max_tokens)
    whole = reference(model, [prompt + text for text in texts], 100_000)
    assert [tokens.ids.tolist() for tokens in results] == expected
    assert all(tokens.ids.dtype == np.int32 for tokens in results)
    assert [tokens.truncated for tokens in results] == [len(ids) > max_tokens for ids in whole]
    assert any(tokens.truncated for tokens in results) and not all(tokens.truncated for tokens in results)
    for tokens, ids, text in zip(results, whole, texts, strict=True):
        if len(prompt + text) <= 16 * max_tokens:
            assert tokens.total == len(ids)


def test_special_tokens_survive_truncation(gemma):
    (tokens,) = Tokenizer(gemma, max_tokens=16).encode(["word " * 40])
    assert (tokens.ids[0], tokens.ids[-1], len(tokens.ids)) == (2, 1, 16)
    assert tokens.total > 16


def test_long_texts_are_cut_first_and_come_out_the_same(model):
    words = " ".join(documents(120))
    texts = [
        words * 3,
        words.replace(" ", "  "),
        "x" * 50_000,
        "a " * 30_000,
        " " * 40_000 + words,
        words.replace(" ", ""),
    ]
    results = Tokenizer(model, max_tokens=32).encode(texts)
    assert [tokens.ids.tolist() for tokens in results] == reference(model, texts, 32)
    whole = reference(model, texts, 1_000_000)
    assert [tokens.truncated for tokens in results] == [len(ids) > 32 for ids in whole]
    assert results[0].total < len(whole[0])  # the premise: it was cut


@settings(deadline=None, max_examples=60)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=400), st.integers(1, 8))
def test_any_text(tmp_path_factory, text, times):
    for name in ("any-bert", "any-gemma"):
        folder = tmp_path_factory.getbasetemp() / name
        if not folder.exists():
            (make_tiny_bert if "bert" in name else make_tiny_gemma)(folder)
        tokenizer, _ = _cached(folder)
        (tokens,) = tokenizer.encode([text * times])
        assert tokens.ids.tolist() == reference(folder, [text * times], 8)[0]
        assert len(tokens.ids) <= 8 and tokens.total >= len(tokens.ids)


_made: dict[Path, tuple[Tokenizer, None]] = {}


def _cached(folder: Path) -> tuple[Tokenizer, None]:
    if folder not in _made:
        _made[folder] = (Tokenizer(folder, max_tokens=8), None)
    return _made[folder]


def test_a_cut_never_splits_a_word():
    assert room._cut("one two three", 9) == "one two"
    assert room._cut("one two three", 7) == "one two"
    assert room._cut("one   two", 5) == "one"
    assert room._cut("onetwothree", 5) == "onetwothree"
    assert room._cut("short", 5) == "short"


def test_baked_limits_of_the_file_are_gone():
    hi, long = Tokenizer(resolve("all-MiniLM-L6-v2"), max_tokens=256).encode(["hi", "word " * 400])
    assert (len(hi.ids), len(long.ids), long.total) == (3, 256, 402)


def test_prompt_tokens(gemma):
    assert Tokenizer(gemma, max_tokens=64).prompt_tokens == 0
    prompt = GEMMA_PROMPTS["query"]
    tokenizer = Tokenizer(gemma, max_tokens=64, prompt=prompt)
    assert tokenizer.prompt_tokens == len(reference(gemma, [prompt], 64)[0]) - 1  # without eos, with bos
    with pytest.raises(SettingsError, match="prompt and special tokens take"):
        Tokenizer(gemma, max_tokens=tokenizer.prompt_tokens, prompt=prompt)
    with pytest.raises(SettingsError, match="prompt and special tokens take 2"):
        Tokenizer(gemma, max_tokens=2)


def test_lower_case(gemma):
    plain, lower = Tokenizer(gemma, max_tokens=64), Tokenizer(gemma, max_tokens=64, lower_case=True)
    assert lower.encode(["HeLLo"])[0].ids.tolist() == plain.encode(["hello"])[0].ids.tolist()
    assert plain.encode(["HeLLo"])[0].ids.tolist() != plain.encode(["hello"])[0].ids.tolist()


@pytest.mark.parametrize("name", ["bos", "eos"])
def test_refuses_a_file_that_does_not_add_what_is_declared(gemma, tmp_path, name):
    folder = shutil.copytree(gemma, tmp_path / "model")
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    single = content["post_processor"]["single"]
    content["post_processor"]["single"] = [
        part for part in single if part.get("SpecialToken", {}).get("id") != f"<{name}>"
    ]
    path.write_text(json.dumps(content))
    with pytest.raises(EnvironmentFault, match=f"declares add_{name}_token"):
        Tokenizer(folder, max_tokens=64)


def test_refuses_a_folder_without_a_tokenizer(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(EnvironmentFault, match=r"no tokenizer\.json"):
        Tokenizer(tmp_path, max_tokens=64)
