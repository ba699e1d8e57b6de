"""Ids as sentence-transformers makes them: prompt, special tokens, truncation; and the cut of long texts.

How a tokenizer is loaded and kept is in ``test_tokenizer_files.py``.
"""

import functools
import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import normalizers

from tests.tiny_model import GEMMA_PROMPTS, MAKERS, documents, make_tiny_gemma
from workers.encoder.layout import resolve
from workers.errors import EnvironmentFault, PoisonError, SettingsError
from workers.text import tokenizer as room
from workers.text.tokenizer import Tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:::transformers")

TEXTS = [
    "",
    "a",
    "Hello, world!",
    " leading",
    "trailing\n",
    "NUL \0 é e\u0301 ﬁ 日本語 🙂 \u200b \ufeff",
    "<eos> [SEP] <pad> </s> <|endoftext|>",
    "ÄÖÜ İstanbul ΣΑΣ ǅ",
    "x" * 3000,
    "   " * 900,
]


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory) -> Iterator[None]:
    """A cache of the tests' own, so that they neither read nor fill the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module", params=["minilm", *MAKERS])
def model(request, tmp_path_factory) -> Path:
    if request.param == "minilm":
        return resolve("all-MiniLM-L6-v2")
    return MAKERS[request.param](tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def gemma(tmp_path_factory) -> Path:
    return make_tiny_gemma(tmp_path_factory.mktemp("gemma"))


@functools.cache
def transformers_tokenizer(folder: Path):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def reference(folder: Path, texts: list[str], max_tokens: int) -> list[list[int]]:
    whole = transformers_tokenizer(folder)
    return whole(texts, truncation=True, max_length=max_tokens)["input_ids"]


@pytest.mark.parametrize("max_tokens", [8, 128])
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
        ("x" * 200 + " ") * 200,  # few tokens per character, in some vocabularies: the first cut is too short
        ("a" + " " * 300) * 100,
    ]
    results = Tokenizer(model, max_tokens=32).encode(texts)
    assert [tokens.ids.tolist() for tokens in results] == reference(model, texts, 32)
    whole = reference(model, texts, 1_000_000)
    assert [tokens.truncated for tokens in results] == [len(ids) > 32 for ids in whole]
    assert results[0].total < len(whole[0])  # the premise: it was cut


@settings(deadline=None, max_examples=60)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=400), st.integers(1, 8))
def test_any_text(tmp_path_factory, text, times):
    for name in MAKERS:
        folder = tmp_path_factory.getbasetemp() / f"any-{name}"
        if not folder.exists():
            MAKERS[name](folder)
        (tokens,) = _tokenizer_of_eight(folder).encode([text * times])
        assert tokens.ids.tolist() == reference(folder, [text * times], 8)[0]
        assert len(tokens.ids) <= 8 and tokens.total >= len(tokens.ids)


@functools.cache
def _tokenizer_of_eight(folder: Path) -> Tokenizer:
    return Tokenizer(folder, max_tokens=8)


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
    with pytest.raises(ValueError, match="shorter"):
        plain.encode(["one"], [])


def test_lower_case_is_not_put_before_what_lowers_already():
    """A tokenizer may decompose before it lowers, which makes one letter of İ less than the other order."""
    lowers = normalizers.Sequence([normalizers.NFD(), normalizers.Lowercase()])
    assert room._lowering(lowers) is lowers
    for other in (None, normalizers.NFC(), normalizers.Sequence([normalizers.NFC(), normalizers.Strip()])):
        assert room._lowering(other).normalize_str("ÄB") == "äb"


def test_each_text_may_have_a_prompt_of_its_own(gemma):
    own = Tokenizer(gemma, max_tokens=64, prompt="query: ")
    texts, prompts = ["one", "two", "three"], [None, "title: 2 | text: ", ""]
    expected = reference(gemma, ["query: one", "title: 2 | text: two", "three"], 64)
    assert [tokens.ids.tolist() for tokens in own.encode(texts, prompts)] == expected
    assert own.encode(texts, [None] * 3)[1].ids.tolist() == own.encode(texts)[1].ids.tolist() != expected[1]
    (long,) = own.encode(["text"], ["word " * 100])
    assert long.truncated and len(long.ids) == 64  # a prompt counts towards the limit


@pytest.mark.parametrize(("prompts", "text"), [(None, "query: secret"), (["query: "], "query:secret")])
def test_a_text_that_brings_its_prompt_along_is_said_once(gemma, caplog, monkeypatch, prompts, text):
    monkeypatch.setattr(logging.getLogger("stream_embedder"), "propagate", True)
    tokenizer = Tokenizer(gemma, max_tokens=64, prompt="query: ")
    tokenizer.encode(["a question", "a query: later"], prompts and prompts * 2)
    assert not caplog.records
    for _ in range(3):
        tokenizer.encode([text], prompts)
    (record,) = caplog.records
    assert "begins with the prompt already" in record.message and "secret" not in record.message


def test_nothing_is_said_where_there_is_no_prompt(gemma, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("stream_embedder"), "propagate", True)
    Tokenizer(gemma, max_tokens=64).encode(["", "query: a"])
    assert not caplog.records


def test_a_text_that_fails_is_refused_alone(gemma, monkeypatch):
    """Together with others and alone; what is wrong is not quoted, and a lack of memory is nobody's fault."""
    tokenizer = Tokenizer(gemma, max_tokens=64)
    expected = [tokens.ids.tolist() for tokens in tokenizer.encode(["one", "two"])]

    class Failing:
        error: Exception = Exception("WordPiece error: secret")

        def __init__(self, whole):
            self._whole = whole

        def encode_batch_fast(self, texts):
            if any("secret" in text for text in texts):
                raise self.error
            return self._whole.encode_batch_fast(texts)

    tokenizer._tokenizer = Failing(tokenizer._tokenizer)
    one, refused, two = tokenizer.encode(["one", "a secret", "two"])
    assert [one.ids.tolist(), two.ids.tolist()] == expected
    assert isinstance(refused, PoisonError) and (refused.stage, refused.reason) == ("tokenize", "tokenizer_raised")
    assert "secret" not in str(refused)
    with pytest.raises(PoisonError):
        tokenizer.ids(["one", "a secret"])
    assert tokenizer.canary().tolist() == tokenizer.ids(["canary"])[0].tolist()
    monkeypatch.setattr(Failing, "error", MemoryError())
    with pytest.raises(MemoryError):
        tokenizer.encode(["one", "a secret"])


def test_a_prompt_that_fails_is_a_setting(gemma, monkeypatch):
    backend, facts = room.load(gemma)

    class Failing:
        def __getattr__(self, name):
            return getattr(backend, name)

        def encode(self, text):
            raise Exception("WordPiece error")

    monkeypatch.setattr(room, "load", lambda folder: (Failing(), facts))
    with pytest.raises(SettingsError, match=r"fails at the prompt; .* model\.prompt_text"):
        Tokenizer(gemma, max_tokens=64, prompt="query: ")


def test_a_token_that_the_model_does_not_have_refuses_its_text(gemma):
    whole = Tokenizer(gemma, max_tokens=64)
    words = whole._tokenizer.get_vocab_size(with_added_tokens=False)
    whole._tokenizer.add_tokens(["<new>"])
    for vocabulary, refused in ((None, False), (words, True), (words + 1, False)):
        whole._vocabulary = vocabulary
        plain, new = whole.encode(["a text", "a <new> text"])
        assert not isinstance(plain, PoisonError)
        assert (isinstance(new, PoisonError) and new.reason == "unknown_token") is refused
    assert Tokenizer(gemma, max_tokens=64, vocabulary=words).encode(["a text"])
    with pytest.raises(EnvironmentFault, match=f"has {words} words and the model {words - 1}; .* different models"):
        Tokenizer(gemma, max_tokens=64, vocabulary=words - 1)


def test_threads_with_limits_of_their_own_do_not_meet(gemma):
    """A tokenizer's limit is state; shared, one thread's text comes back with another's length, silently."""
    texts = ["a longer text, " * 40] * 16
    made = {limit: Tokenizer(gemma, max_tokens=limit) for limit in (8, 16, 32, 64)}
    wrong: list[int] = []

    def work(limit: int) -> None:
        for _ in range(40):
            wrong.extend(len(found.ids) for found in made[limit].encode(texts) if len(found.ids) != limit)

    threads = [threading.Thread(target=work, args=(limit,)) for limit in made]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
