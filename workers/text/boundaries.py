"""Where a text may be cut: at the ends of its paragraphs, sentences, lines and words, and never inside of a character.

Comes in: a text. Goes out: positions in it, in code points, at which the next unit begins. Never here: tokens, or a window.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Literal, get_args

type_cut = Literal["paragraph", "sentence", "line", "word", "token"]

# From the coarsest to the finest; a token's end is one that its tokenizer knows.
LEVELS: tuple[type_cut, ...] = get_args(type_cut)

# Each match ends where the next unit begins. All of them are linear: what may repeat cannot begin a match anew.
_PARAGRAPH = re.compile(r"\n[^\S\n]*\n\s*|\u2029\s*|\f\s*")
_LINE = re.compile(r"\n\s*")
# Behind a full stop there are closing quotes and brackets, and white space; in Chinese and Japanese there is none.
_CLOSING = "[\"')\\]\u00bb\u201d\u2019\u300d\u300f\uff09\u3011]*"
_SENTENCE = re.compile(f"[.!?\u2026\u061f\u06d4\u0964\u0965]{_CLOSING}\\s+|[\u3002\uff01\uff1f\uff61]{_CLOSING}\\s*")
# A cut that has combining marks behind it moves back to their letter, but not for ever.
_MOST_MARKS = 32


class Boundaries:
    """The boundaries of one text; of each level they are looked for when it is asked for."""

    def __init__(self, text: str) -> None:
        self._text = text

    def last(self, level: type_cut, low: int, high: int) -> int | None:
        """The last boundary of a level behind ``low``, up to ``high`` itself."""
        if level == "word":
            return next((at for at in range(high, low, -1) if self._begins_a_word(at)), None)
        found = self._of(level)
        at = bisect_right(found, high) - 1
        return found[at] if at >= 0 and found[at] > low else None

    def first(self, level: type_cut, low: int, high: int) -> int | None:
        """The first boundary of a level from ``low`` on, before ``high``."""
        if level == "word":
            return next((at for at in range(low, high) if self._begins_a_word(at)), None)
        found = self._of(level)
        at = bisect_left(found, low)
        return found[at] if at < len(found) and found[at] < high else None

    def _of(self, level: type_cut) -> Sequence[int]:
        match level:
            case "paragraph":
                return self._paragraphs
            case "sentence":
                return self._sentences
            case "line":
                return self._lines
        return ()

    @cached_property
    def _paragraphs(self) -> list[int]:
        return [match.end() for match in _PARAGRAPH.finditer(self._text)]

    @cached_property
    def _sentences(self) -> list[int]:
        return sorted({*_sentences(self._text), *self._paragraphs})

    @cached_property
    def _lines(self) -> list[int]:
        return [match.end() for match in _LINE.finditer(self._text)]

    def _begins_a_word(self, at: int) -> bool:
        # There are too many of them for a list.
        return 0 < at < len(self._text) and self._text[at - 1].isspace() and not self._text[at].isspace()


def _sentences(text: str) -> Iterator[int]:
    for match in _SENTENCE.finditer(text):
        end = match.end()
        # "e.g. this": what goes on in small letters has not ended.
        if end < len(text) and not text[end].islower():
            yield end


def whole_character(text: str, at: int) -> int:
    """The nearest position up to ``at`` that is inside of no character: no letter and its marks, no emoji, no flag.

    The rules of Unicode's extended grapheme clusters (UAX 29) that matter in practice, not all of them.
    """
    found = at
    while 0 < found < len(text) and at - found < _MOST_MARKS:
        if not _joined(text, found):
            return found
        found -= 1
    return found if found == 0 or at - found < _MOST_MARKS else at


def _joined(text: str, at: int) -> bool:
    before, after = text[at - 1], text[at]
    if after < "\u0300":
        return before == "\r" and after == "\n"
    code = ord(after)
    if unicodedata.category(after)[0] == "M" or after == "\u200d" or before == "\u200d":
        return True
    if 0x1F3FB <= code <= 0x1F3FF or 0x1160 <= code <= 0x11FF:  # skin tones; vowels and finals of Hangul
        return True
    if _is_regional(after) and _is_regional(before):
        start = at
        while start > 0 and at - start < _MOST_MARKS and _is_regional(text[start - 1]):
            start -= 1
        return (at - start) % 2 == 1
    return False


def _is_regional(character: str) -> bool:
    return "\U0001f1e6" <= character <= "\U0001f1ff"
