"""A text longer than the model takes, in windows of tokens, each cut where the text itself has an end.

Comes in: a text, where its tokens are, and what makes tokens of a part of it. Goes out: parts that fit, with their tokens; or
why there are none. Never here: a tokenizer, or a piece of the text in an error.

Where the tokens of the whole text are says how much fits into a window, but for a token or two: a part by itself may begin with
another token than inside of the text. So each part is tokenised by itself, which gives the ids that the model reads, and one
that turns out too long is cut anew, smaller. All of it is linear in the text's length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from workers.errors import PoisonError
from workers.records import Tokens
from workers.text.boundaries import LEVELS, Boundaries, type_cut, whole_character

type_positions = npt.NDArray[np.int64]
type_encode = Callable[[Sequence[str]], Sequence[Tokens | PoisonError]]

# A text's chunks follow from the settings and this: raise it when the same settings cut otherwise than before.
VERSION = 1
# Parts that are tokenised together: enough for the tokenizer's threads, few enough to be cut anew.
_GROUP = 32


@dataclass(frozen=True, slots=True)
class Windows:
    """How a text is cut.

    ``tokens``: of a chunk at most, prompt and special tokens included; ``overlap``: of them that may be the chunk's before;
    ``cut``: the coarsest unit whose end is looked for; ``most``: chunks of a text.
    """

    tokens: int
    overlap: int
    cut: type_cut
    most: int


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a text: its characters ``start`` to ``end`` (exclusive), and their tokens with prompt and special ones."""

    start: int
    end: int
    tokens: Tokens


def trimmed(text: str) -> tuple[int, int]:
    """Where a text begins and ends without the white space around it; (0, 0) where it is nothing else."""
    start = len(text) - len(text.lstrip())
    return (start, len(text.rstrip())) if start < len(text) else (0, 0)


def cut_text(
    text: str, starts: type_positions, ends: type_positions, encode: type_encode, room: int, windows: Windows
) -> list[Piece] | PoisonError:
    """Cut a text into parts that fit; every character that is not white space is in one of them.

    Args:
        text: the whole.
        starts: where each of its tokens begins, in code points, ascending; those of one character may share it.
        ends: where each ends, likewise.
        encode: tokenises parts, prompt and special tokens included; one of more than ``windows.tokens`` is truncated.
        room: tokens of a window that are not taken by prompt and special tokens.
        windows: how to cut.

    Returns:
        The parts in their order; or why the text has none: it makes more than ``windows.most``, or a single character of it does
        not fit beside the prompt, or ``encode`` says.
    """
    if room < 1:
        return _no_room(room, windows)
    cutter = _Cutter(text, starts, ends, windows)
    pieces: list[Piece] = []
    margin = 0
    while cutter.left(pieces[-1].end if pieces else 0):
        planned: list[tuple[int, int]] = []
        before = (pieces[-1].start, pieces[-1].end) if pieces else None
        while len(planned) < _GROUP and cutter.left(before[1] if before else 0):
            before = cutter.window(before, room - margin)
            planned.append(before)
        excess = 0
        for (start, end), tokens in zip(planned, encode([text[start:end] for start, end in planned]), strict=True):
            if isinstance(tokens, PoisonError):
                return tokens
            if tokens.truncated:
                excess = tokens.total - len(tokens.ids)
                break
            pieces.append(Piece(start, end, tokens))
            if len(pieces) > windows.most:
                return _too_many(windows)
        if not excess:
            margin //= 2
        elif margin == room - 1:
            return _no_room(room, windows)
        else:
            # Doubled, so that a strange text is tokenised a few times at most, and not once for each token of a window.
            margin = min(room - 1, max(2 * margin, margin + excess))
    return pieces


def _no_room(room: int, windows: Windows) -> PoisonError:
    if room < 1:
        message = f"prompt and special tokens take all of the {windows.tokens} tokens of a chunk"
    else:
        message = f"prompt and special tokens leave {room} of the {windows.tokens} tokens of a chunk, and a character takes more"
    return PoisonError("tokenize", "no_room", message)


def _too_many(windows: Windows) -> PoisonError:
    message = f"the text makes more than {windows.most} chunks (model.chunk.most) of {windows.tokens} tokens"
    return PoisonError("tokenize", "too_many_chunks", message)


class _Cutter:
    """Where the windows of one text begin and end."""

    def __init__(self, text: str, starts: type_positions, ends: type_positions, windows: Windows) -> None:
        self._text = text
        self._starts = np.maximum.accumulate(starts)
        self._ends = np.maximum.accumulate(ends)
        self._overlap = windows.overlap
        self._levels = LEVELS[LEVELS.index(windows.cut) : -1]  # where there is none of these, a token's end is there
        self._boundaries = Boundaries(text)
        self._finish = len(text.rstrip())

    def left(self, done: int) -> bool:
        """Whether there is something behind ``done``."""
        return done < self._finish

    def window(self, before: tuple[int, int] | None, budget: int) -> tuple[int, int]:
        """The window after the one ``before``, of about ``budget`` tokens; it ends behind that one, whatever the budget."""
        fresh = self._skip(0 if before is None else before[1])
        start = fresh if before is None else self._overlapping(*before, fresh)
        high = self._high(start, budget)
        if high <= fresh:  # a budget that the overlap alone would use up
            start, high = fresh, max(self._high(fresh, budget), fresh + 1)
        if high >= self._finish:
            return start, self._finish
        low = self._middle(fresh, high)
        end = next(
            (found for level in self._levels if (found := self._boundaries.last(level, low, high)) is not None), None
        )
        if end is None:
            end = whole_character(self._text, high)
            end = end if end > fresh else high
        while self._text[end - 1].isspace():
            end -= 1
        return start, end

    def _high(self, start: int, budget: int) -> int:
        """Where the first token begins that does not fit."""
        beyond = int(np.searchsorted(self._ends, start, "right")) + budget
        return self._skip(int(self._starts[beyond])) if beyond < len(self._starts) else self._finish

    def _middle(self, fresh: int, high: int) -> int:
        """The middle of what is new: ends are looked for behind it, so that chunks are half full at least."""
        first, last = np.searchsorted(self._ends, fresh, "right"), np.searchsorted(self._starts, high)
        return max(fresh, int(self._starts[(first + last) // 2]))

    def _overlapping(self, start: int, end: int, fresh: int) -> int:
        """Where the window begins that follows one from ``start`` to ``end``; half of that one at most is in both."""
        first, last = int(np.searchsorted(self._ends, start, "right")), int(np.searchsorted(self._starts, end))
        most = min(self._overlap, (last - first) // 2)
        if most < 1:
            return fresh
        low, middle = int(self._starts[last - most]), int(self._starts[last - most // 2 - 1])
        found = None
        for level in self._levels:
            # A word's beginning will do anywhere; of a larger unit it has to be worth it.
            found = self._boundaries.first(level, low, end if level == "word" else middle + 1)
            if found is not None:
                break
        if found is None:
            found = whole_character(self._text, low)
        found = self._skip(found)
        return found if start < found < end else fresh

    def _skip(self, at: int) -> int:
        """The next position from ``at`` on that is not white space."""
        while at < self._finish and self._text[at].isspace():
            at += 1
        return at
