"""A tokenizer that cuts what is too long, instead of its end.

Comes in: texts. Goes out: for each its parts, with the tokens of each. Never here: where a text is cut, which
:mod:`workers.text.chunks` says, or how many threads: one per instance.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from workers.errors import PoisonError
from workers.records import Tokens
from workers.text.boundaries import whole_character
from workers.text.chunks import Piece, Windows, cut_text, trimmed, type_positions
from workers.text.tokenizer import Tokenizer

# A long text's tokens are looked for in parts of so many characters, some at a time, so that they take little memory.
_SEGMENT = 1 << 16
_SEGMENTS = 8
# A part ends at white space, if there is some so near to its end.
_NEAR = 1 << 10


class ChunkingTokenizer(Tokenizer):
    """A :class:`workers.text.tokenizer.Tokenizer` whose limit is a chunk's."""

    def __init__(
        self,
        folder: Path,
        *,
        windows: Windows,
        prompt: str = "",
        lower_case: bool = False,
        vocabulary: int | None = None,
    ) -> None:
        """As there; ``windows``: how long texts are cut."""
        super().__init__(folder, max_tokens=windows.tokens, prompt=prompt, lower_case=lower_case, vocabulary=vocabulary)
        self._windows = windows

    def chunks(self, texts: Sequence[str], prompts: Sequence[str | None]) -> list[list[Piece] | PoisonError]:
        """Cut texts into parts of at most ``windows.tokens`` tokens, each with its text's prompt before it.

        A text that fits is one part. White space around a part is not in it; a text of nothing else is one part without a
        character. What :meth:`encode` makes of a part's characters is what is given here as its tokens.

        Args:
            texts: any strings that UTF-8 can carry.
            prompts: each text's own prompt, None for the one of all.

        Returns:
            For each text its parts, in order; or why it has none: what :meth:`encode` says, ``no_room`` for one whose prompt
            takes it, or ``too_many_chunks``.
        """
        spans = [trimmed(text) for text in texts]
        whole = self.encode([text[start:end] for text, (start, end) in zip(texts, spans, strict=True)], prompts)
        found: list[list[Piece] | PoisonError] = []
        for text, prompt, (start, end), tokens in zip(texts, prompts, spans, whole, strict=True):
            if isinstance(tokens, PoisonError):
                found.append(tokens)
            elif tokens.truncated:
                found.append(self._cut(text, prompt))
            else:
                found.append([Piece(start, end, tokens)])
        return found

    def _cut(self, text: str, prompt: str | None) -> list[Piece] | PoisonError:
        (overhead,) = self.encode([""], [prompt])
        if isinstance(overhead, PoisonError):
            return overhead
        places = self._places(text)
        if isinstance(places, PoisonError):
            return places
        room = self._windows.tokens - overhead.total

        def encode(parts: Sequence[str]) -> list[Tokens | PoisonError]:
            return self.encode(parts, [prompt] * len(parts))

        return cut_text(text, *places, encode, room, self._windows)

    def _places(self, text: str) -> tuple[type_positions, type_positions] | PoisonError:
        """Where the tokens of a text begin and end."""
        segments = list(_segments(text))
        found: list[type_positions] = []
        for number in range(0, len(segments), _SEGMENTS):
            some = segments[number : number + _SEGMENTS]
            offsets = self.offsets([text[start:end] for start, end in some])
            if isinstance(offsets, PoisonError):
                return offsets
            found += [each + start for each, (start, _) in zip(offsets, some, strict=True)]
        starts, ends = np.concatenate(found).T
        return starts, ends


def _segments(text: str) -> Iterator[tuple[int, int]]:
    start = 0
    while start < len(text):
        end = min(start + _SEGMENT, len(text))
        if end < len(text):
            near = next((at for at in range(end, end - _NEAR, -1) if text[at].isspace()), None)
            end = whole_character(text, end) if near is None else near
        yield start, end
        start = end
