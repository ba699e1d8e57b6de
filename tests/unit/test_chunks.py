"""Texts in windows: what is not white space is in one of them, each fits, and each is what it would be by itself."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.tiny_model import MAKERS, documents
from workers.encoder.layout import resolve
from workers.errors import PoisonError
from workers.records import Tokens
from workers.text.boundaries import LEVELS, Boundaries, whole_character
from workers.text.chunking import ChunkingTokenizer
from workers.text.chunks import Piece, Windows, cut_text, trimmed

pytestmark = pytest.mark.filterwarnings("ignore:::transformers")

FAMILY = "\U0001f468\u200d\U0001f469\u200d\U0001f467"
UNITS = [
    "a",
    "Word",
    "é",
    "e\u0301",
    "日本語",
    "。",
    ".",
    "!",
    "?",
    '"',
    "\n",
    "\n\n",
    " ",
    "  ",
    "\u2029",
    "\t",
    "🙂",
    "🇩🇪",
    "\u200b",
    FAMILY,
]
type_offsets = tuple[np.ndarray, np.ndarray]

any_text = st.lists(st.sampled_from(UNITS), max_size=120).map("".join)
any_windows = st.builds(
    Windows, tokens=st.integers(1, 12), overlap=st.integers(0, 12), cut=st.sampled_from(LEVELS), most=st.just(10_000)
)


# ---- where a text may be cut


@pytest.mark.parametrize(
    ("level", "text", "expected"),
    [
        ("paragraph", "one\ntwo\n\nthree\n \t\n four\r\n\r\nfive\u2029six", ["three", "four", "five", "six"]),
        ("sentence", 'One. Two? "Three!" Four… five. (Six.) Seven', ["Two?", '"Three', "Four…", "(Six.)", "Seven"]),
        ("sentence", "e.g. this one, v1.5 and a.b.\n\nNext\nline", ["Next"]),
        ("sentence", "今日。明日！「何?」 次", ["明日", "「何", "次"]),
        ("line", "one\n  two\n\nthree. four", ["two", "three"]),
        ("word", "one  two\nthree", ["two", "three"]),
    ],
)
def test_boundaries(level, text, expected):
    found, at = [], 0
    boundaries = Boundaries(text)
    while (next_one := boundaries.first(level, at, len(text))) is not None:
        found.append(text[next_one:])
        at = next_one + 1
    assert [rest.startswith(start) for rest, start in zip(found, expected, strict=True)] == [True] * len(expected)
    if found:
        assert boundaries.last(level, 0, len(text)) == len(text) - len(found[-1])
        assert boundaries.last(level, len(text) - len(found[-1]), len(text)) is None


@pytest.mark.parametrize(
    "character", ["e\u0301", "🇩🇪", "👍🏽", FAMILY, "\u1112\u1161\u11ab", "❤\ufe0f", "\r\n", "n\u0303\u0301"]
)
def test_a_character_is_whole(character):
    text = f"ab{character}cd"
    inside = range(3, 2 + len(character))
    assert inside, "the premise: it has more than one code point"
    assert [whole_character(text, at) for at in inside] == [2] * len(inside)
    assert whole_character(text, 2) == 2 and whole_character(text, 2 + len(character)) == 2 + len(character)


def test_flags_in_a_row_and_marks_without_end():
    assert [whole_character("🇩🇪🇫🇷", at) for at in range(1, 5)] == [0, 2, 2, 4]
    assert whole_character("a" + "\u0301" * 500, 400) == 400
    assert whole_character("\u0301" * 10, 5) == 0


# ---- windows over a made-up tokenizer: a token for each character but white space


def places(text: str) -> type_offsets:
    starts = np.array([at for at, character in enumerate(text) if not character.isspace()], np.int64)
    return starts, starts + 1


def encoder(limit: int, extra: int = 0, calls: list[int] | None = None):
    def encode(parts: Sequence[str]) -> list[Tokens | PoisonError]:
        if calls is not None:
            calls.append(len(parts))
        found = []
        for part in parts:
            ids = np.array([ord(character) for character in part if not character.isspace()] + [0] * extra, np.int32)
            found.append(Tokens(ids[:limit], len(ids)))
        return found

    return encode


def cut(text: str, windows: Windows, extra: int = 0) -> list[Piece] | PoisonError:
    return cut_text(text, *places(text), encoder(windows.tokens, extra), windows.tokens, windows)


def parts(text: str, tokens: int, overlap: int = 0, level: str = "paragraph") -> list[str]:
    found = cut(text, Windows(tokens, overlap, level, 1000))
    assert not isinstance(found, PoisonError)
    return [text[piece.start : piece.end] for piece in found]


def require_covered(text: str, pieces: Sequence[Piece]) -> None:
    """In order, each with something new, and nothing but white space between them."""
    done = 0
    for number, piece in enumerate(pieces):
        assert piece.end > done and piece.start < piece.end
        assert not text[done : piece.start].strip(), "something was left out"
        assert not text[piece.start].isspace() and not text[piece.end - 1].isspace()
        assert number == 0 or piece.start > pieces[number - 1].start
        done = piece.end
    assert not text[done:].strip()


@settings(max_examples=300, deadline=None)
@given(any_text, any_windows, st.integers(0, 3))
@example("aaa bbb. Ccc ddd\n\neee", Windows(4, 12, "paragraph", 10_000), 0)
def test_all_of_a_text_is_in_windows_that_fit(text, windows, extra):
    found = cut(text, windows, extra)
    if isinstance(found, PoisonError):
        assert found.reason == "no_room" and extra >= windows.tokens and text.strip()
        return
    require_covered(text, found)
    for piece in found:
        assert len(piece.tokens.ids) == piece.tokens.total <= windows.tokens
        assert (
            encoder(windows.tokens, extra)([text[piece.start : piece.end]])[0].ids.tolist() == piece.tokens.ids.tolist()
        )
    if windows.overlap == 0:
        assert all(one.end <= other.start for one, other in itertools.pairwise(found))
    if not extra:
        # Windows are half full at least, so there are not many of them.
        assert len(found) <= 1 + 4 * len(places(text)[0]) / windows.tokens or windows.tokens < 4


def test_the_coarsest_end_in_the_second_half_of_a_window():
    text = "Aaaa bbbb.\n\nCccc. Dddd\neeee ffff gggg"
    assert parts(text, 15) == ["Aaaa bbbb.", "Cccc. Dddd", "eeee ffff gggg"]
    assert parts(text, 15, level="sentence") == ["Aaaa bbbb.\n\nCccc.", "Dddd\neeee ffff", "gggg"]
    assert parts(text, 20, level="line") == ["Aaaa bbbb.\n\nCccc. Dddd", "eeee ffff gggg"]
    assert parts(text, 20, level="word") == ["Aaaa bbbb.\n\nCccc. Dddd", "eeee ffff gggg"]
    assert parts(text, 7, level="word") == ["Aaaa", "bbbb.", "Cccc.", "Dddd", "eeee", "ffff", "gggg"]
    assert parts(text, 7, level="token") == ["Aaaa bbb", "b.\n\nCccc.", "Dddd\neee", "e ffff gg", "gg"]
    assert parts("x" * 25, 10) == ["x" * 10, "x" * 10, "x" * 5]
    assert parts("ab" + "e\u0301" * 4, 5) == ["abe\u0301", "e\u0301" * 2, "e\u0301"]


def test_windows_overlap_from_a_beginning_on():
    assert parts("aa bb cc dd ee ff gg", 6, 2) == ["aa bb cc", "cc dd ee", "ee ff gg"]
    assert parts("aa bb cc dd ee ff gg", 6, 3) == ["aa bb cc", "cc dd ee", "ee ff gg"]
    assert parts("aaaaaaaaaaaa", 6, 2, "token") == ["a" * 6, "a" * 6, "a" * 4]
    # A sentence's beginning is better than a word's, where it is near.
    assert parts("Aa bb. Cc dd ee ff gg hh", 10, 5) == ["Aa bb. Cc dd", "Cc dd ee ff gg", "ff gg hh"]
    # More than half of a window is never in the next one.
    assert parts("aa bb cc dd ee ff", 4, 4) == ["aa bb", "bb cc", "cc dd", "dd ee", "ee ff"]


def test_a_window_that_turns_out_too_long_is_cut_anew_a_few_times_at_most():
    text = "word " * 5_000
    calls: list[int] = []
    windows = Windows(40, 0, "word", 10_000)
    found = cut_text(text, *places(text), encoder(40, 9, calls), 40, windows)
    assert not isinstance(found, PoisonError)
    require_covered(text, found)
    assert len(found) < 800 and sum(calls) < 4 * len(found)


def test_what_cannot_be_cut_has_a_reason_and_no_text():
    many = cut("word " * 100, Windows(8, 0, "word", 5))
    assert isinstance(many, PoisonError) and many.reason == "too_many_chunks" and "word" not in many.message
    hopeless = cut_text("ab", *places("ab"), encoder(4, 9), 4, Windows(4, 0, "word", 5))
    assert isinstance(hopeless, PoisonError) and hopeless.reason == "no_room"
    full = cut_text("ab", *places("ab"), encoder(4), 0, Windows(4, 0, "word", 5))
    assert isinstance(full, PoisonError) and full.reason == "no_room"


def test_trimmed():
    assert [trimmed(text) for text in ("", " \n", " a b\t", "a")] == [(0, 0), (0, 0), (1, 4), (0, 1)]


# ---- real tokenizers


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """A cache of the tests' own, so that they neither read nor fill the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@functools.cache
def tokenizer(folder: Path, tokens: int, overlap: int, level: str, prompt: str = "") -> ChunkingTokenizer:
    return ChunkingTokenizer(folder, windows=Windows(tokens, overlap, level, 10_000), prompt=prompt)


@pytest.fixture(scope="module", params=["minilm", *MAKERS])
def model(request, tmp_path_factory) -> Path:
    if request.param == "minilm":
        return resolve("all-MiniLM-L6-v2")
    return MAKERS[request.param](tmp_path_factory.mktemp(request.param))


LONG = [
    "\n\n".join(documents(40)),
    " ".join(documents(30)).replace(" ", ""),
    " ".join(documents(30)).replace(" ", "   "),
    "日本語のテキスト。" * 60,
    "e\u0301\u0302" * 100,
    f"{FAMILY}🇩🇪" * 40,
    "x" * 3_000,
    "ﷺ \u200b" * 50,
    "   " * 900 + "a" + " " * 2_000 + "b",
    "<eos> [SEP] </s> <|endoftext|> " * 30,
]


@pytest.mark.parametrize(("tokens", "overlap", "level"), [(24, 0, "paragraph"), (48, 10, "sentence"), (32, 4, "token")])
def test_each_part_is_what_it_is_by_itself(model, tokens, overlap, level):
    chunking = tokenizer(model, tokens, overlap, level)
    texts = ["", " ", "short", " short\n", *LONG]
    found = chunking.chunks(texts, [None] * len(texts))
    for text, pieces in zip(texts, found, strict=True):
        assert not isinstance(pieces, PoisonError), (text[:20], pieces)
        if text.strip():
            require_covered(text, pieces)
        else:
            assert [(piece.start, piece.end) for piece in pieces] == [(0, 0)]
        alone = chunking.encode([text[piece.start : piece.end] for piece in pieces])
        for piece, tokens_alone in zip(pieces, alone, strict=True):
            assert isinstance(tokens_alone, Tokens) and not tokens_alone.truncated
            assert piece.tokens.ids.tolist() == tokens_alone.ids.tolist()
            assert len(piece.tokens.ids) <= tokens
    assert len(found[4]) > 10 and len(found[2]) == len(found[3]) == 1  # type: ignore[arg-type]


def test_characters_of_many_code_points_are_whole_in_all_tokenizers(model):
    (found,) = tokenizer(model, 32, 0, "token").chunks([LONG[4]], [None])
    assert not isinstance(found, PoisonError)
    assert {piece.start % 3 for piece in found} == {0} and len(found) >= 1


def test_a_prompt_stands_before_each_part_and_takes_of_its_room(model):
    texts = [LONG[0], LONG[0]]
    chunking = tokenizer(model, 32, 0, "word", "query: ")
    plain, own = chunking.chunks(texts, [None, "a title of some length: "])
    assert not isinstance(plain, PoisonError) and not isinstance(own, PoisonError)
    assert len(own) > len(plain) > 1
    for piece, prompt in ((plain[3], None), (own[3], "a title of some length: ")):
        (alone,) = chunking.encode([texts[0][piece.start : piece.end]], [prompt])
        assert piece.tokens.ids.tolist() == alone.ids.tolist()
    (refused,) = chunking.chunks(["a text " * 20], ["a prompt without an end " * 20])
    assert isinstance(refused, PoisonError) and refused.reason == "no_room"


@settings(max_examples=60, deadline=None)
@given(any_text, st.sampled_from([(4, 0, "paragraph"), (8, 3, "sentence"), (12, 2, "token")]))
def test_any_text(text, windows):
    chunking = tokenizer(resolve("all-MiniLM-L6-v2"), *windows)
    (found,) = chunking.chunks([text], [None])
    if isinstance(found, PoisonError):
        assert found.reason == "no_room"
    elif text.strip():
        require_covered(text, found)
        alone = chunking.encode([text[piece.start : piece.end] for piece in found])
        assert [each.ids.tolist() for each in alone] == [piece.tokens.ids.tolist() for piece in found]
