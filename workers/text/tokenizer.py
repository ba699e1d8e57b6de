"""From text to the ids that the model reads, as sentence-transformers makes them.

Comes in: texts without lone surrogates. Goes out: ``Tokens``, prompt and special tokens included, cut to the limit. Never
here: torch, and never a change of the tokenizer after the constructor. One thread per instance.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import normalizers

from workers import log
from workers.errors import SettingsError
from workers.records import Tokens
from workers.text.tokenizer_files import load

_logger = log.get(__name__)

# A text is cut before it is tokenised once it has this many characters per token that fits: a megabyte of text takes
# seconds to tokenise, for 2048 ids. The cut is at white space, and holds only if the part gives this many ids to spare,
# so that what a merge across the cut could change is past the limit.
_CHARACTERS_PER_TOKEN = 16
_SPARE_TOKENS = 16


class Tokenizer:
    """A model's tokenizer with one prompt and one limit, both fixed."""

    def __init__(self, folder: Path, *, max_tokens: int, prompt: str = "", lower_case: bool = False) -> None:
        """Load the tokenizer and fix how it works.

        Args:
            folder: with the tokenizer's files.
            max_tokens: longest result, special tokens and prompt included.
            prompt: put before every text that has none of its own, as it is.
            lower_case: lower every text first.

        Raises:
            EnvironmentFault: the files are broken, or do not add the special tokens that they declare.
            SettingsError: the prompt leaves no room for a text.
        """
        self._tokenizer, facts = load(folder)
        self._prompt = prompt
        self._max_tokens = max_tokens
        self._cut_left = facts.cut_left
        self._warned = False
        if lower_case:
            self._tokenizer.normalizer = _lowering(self._tokenizer.normalizer)
        self._specials = self._tokenizer.num_special_tokens_to_add(is_pair=False)
        self._prompt_tokens = self._measure(prompt, set(facts.special_ids))
        if (taken := max(self._prompt_tokens, self._specials)) >= max_tokens:
            raise SettingsError(f"prompt and special tokens take {taken} of model.max_tokens {max_tokens}")
        self._tokenizer.enable_truncation(max_tokens, direction="left" if facts.cut_left else "right")

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt alone, without a special token at its end: what pooling may be told to leave out."""
        return self._prompt_tokens

    def encode(self, texts: Sequence[str], prompts: Sequence[str | None] | None = None) -> list[Tokens]:
        """Tokenise texts, each with its prompt before it.

        ``total`` is exact for a text that fits. For one that was cut it is larger than the limit: exact up to
        16 × ``max_tokens`` characters, and a lower bound for longer texts, whose end is not looked at.

        Args:
            texts: any strings that UTF-8 can carry.
            prompts: each text's own prompt, None for the one of all; default: that for each. It counts towards the limit
                as the text does.

        Returns:
            One ``Tokens`` per text, in order, each of at most ``max_tokens`` int32 ids. There are none for an empty text,
            if the tokenizer adds no special tokens.
        """
        own = [None] * len(texts) if prompts is None else prompts
        before = [self._prompt if prompt is None else prompt for prompt in own]
        self._warn_prefixed(texts, before)
        whole = [prompt + text for prompt, text in zip(before, texts, strict=True)]
        limit = _CHARACTERS_PER_TOKEN * self._max_tokens
        # What is cut on the left needs its end, so it is tokenised whole.
        parts = whole if self._cut_left else [_cut(text, limit) for text in whole]
        results = [self._tokens(encoding) for encoding in self._tokenizer.encode_batch_fast(parts)]
        for index, text in enumerate(whole):
            if len(parts[index]) < len(text) and results[index].total < self._max_tokens + _SPARE_TOKENS:
                results[index] = self._longer(text, 4 * limit)
        return results

    def _warn_prefixed(self, texts: Sequence[str], prompts: Sequence[str]) -> None:
        """Say once that a text brings the prompt along already, so that the model reads it twice."""
        for text, prompt in zip(texts, prompts, strict=True):
            if self._warned:
                return
            if prompt.strip() and text.startswith(prompt.rstrip()):
                self._warned = True
                _logger.warning("a text begins with the prompt already; it is put before it once more")

    def _longer(self, text: str, limit: int) -> Tokens:
        """Tokenise a text that has few tokens per character, by ever larger parts."""
        while True:
            part = _cut(text, limit)
            tokens = self._tokens(self._tokenizer.encode_batch_fast([part])[0])
            if len(part) == len(text) or tokens.total >= self._max_tokens + _SPARE_TOKENS:
                return tokens
            limit *= 4

    def _tokens(self, encoding: tokenizers.Encoding) -> Tokens:
        cut_off = sum(len(rest.ids) - self._specials for rest in encoding.overflowing)
        return Tokens(np.array(encoding.ids, dtype=np.int32), len(encoding.ids) + cut_off)

    def _measure(self, prompt: str, special_ids: set[int]) -> int:
        # Measured on the prompt alone, as sentence-transformers does, though its last token may merge with the text.
        if not prompt:
            return 0
        ids = self._tokenizer.encode(prompt).ids
        return len(ids) - (ids[-1] in special_ids)


def _cut(text: str, limit: int) -> str:
    """The text up to the last white space within ``limit`` characters that follows something else; else all of it."""
    end = limit
    if len(text) <= limit:
        return text
    while end > 0 and not (text[end].isspace() and not text[end - 1].isspace()):
        end -= 1
    return text[:end] if end else text


def _lowering(normalizer: normalizers.Normalizer | None) -> normalizers.Normalizer:
    """Lower case first, then what was there; as it was, if it lowers already."""
    steps = [] if normalizer is None else [normalizer]
    if isinstance(normalizer, normalizers.Sequence):
        steps = [normalizer[index] for index in range(len(normalizer))]
    if normalizer is not None and any(isinstance(step, normalizers.Lowercase) for step in steps):
        return normalizer
    return normalizers.Sequence([normalizers.Lowercase(), *steps])
