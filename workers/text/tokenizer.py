"""From text to the ids that the model reads, as sentence-transformers makes them.

Comes in: texts without lone surrogates. Goes out: ``Tokens``, prompt and special tokens included, cut to the limit; or
why a text has none. Never
here: torch, a piece of a text in an error, or a change of the tokenizer after the constructor. One thread per instance.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tokenizers
from tokenizers import normalizers

from workers import log
from workers.errors import EnvironmentFault, PoisonError, SettingsError
from workers.records import Tokens, type_ids
from workers.text.tokenizer_files import load

_logger = log.get(__name__)

# A text is cut before it is tokenised once it has this many characters per token that fits: a megabyte of text takes
# seconds to tokenise, for 2048 ids. The cut is at white space, and holds only if the part gives this many ids to spare,
# so that what a merge across the cut could change is past the limit.
_CHARACTERS_PER_TOKEN = 16
_SPARE_TOKENS = 16


class Tokenizer:
    """A model's tokenizer with one prompt and one limit, both fixed."""

    def __init__(
        self,
        folder: Path,
        *,
        max_tokens: int,
        prompt: str = "",
        lower_case: bool = False,
        vocabulary: int | None = None,
    ) -> None:
        """Load the tokenizer and fix how it works.

        Args:
            folder: with the tokenizer's files.
            max_tokens: longest result, special tokens and prompt included.
            prompt: put before every text that has none of its own, as it is.
            lower_case: lower every text first.
            vocabulary: how many token ids the model has; None: as many as the tokenizer.

        Raises:
            EnvironmentFault: the files are broken, do not add the special tokens that they declare, or are those of a
                model with a larger vocabulary.
            SettingsError: the prompt leaves no room for a text, or cannot be tokenised.
        """
        self._tokenizer, facts = load(folder)
        self._prompt = prompt
        self._max_tokens = max_tokens
        self._cut_left = facts.cut_left
        self._warned = False
        self._vocabulary = vocabulary
        if vocabulary is not None:
            _compare(folder, self._tokenizer, vocabulary)
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

    def encode(self, texts: Sequence[str], prompts: Sequence[str | None] | None = None) -> list[Tokens | PoisonError]:
        """Tokenise texts, each with its prompt before it.

        ``total`` is exact for a text that fits. For one that was cut it is larger than the limit: exact up to
        16 × ``max_tokens`` characters, and a lower bound for longer texts, whose end is not looked at.

        Args:
            texts: any strings that UTF-8 can carry.
            prompts: each text's own prompt, None for the one of all; default: that for each. It counts towards the limit
                as the text does.

        Returns:
            One ``Tokens`` per text, in order, each of at most ``max_tokens`` int32 ids; or for a text that the tokenizer
            fails at, or makes an id of that the model does not have, the reason. There are no ids for an empty text, if the
            tokenizer adds no special tokens.
        """
        own = [None] * len(texts) if prompts is None else prompts
        before = [self._prompt if prompt is None else prompt for prompt in own]
        self._warn_prefixed(texts, before)
        whole = [prompt + text for prompt, text in zip(before, texts, strict=True)]
        limit = _CHARACTERS_PER_TOKEN * self._max_tokens
        # What is cut on the left needs its end, so it is tokenised whole.
        parts = whole if self._cut_left else [_cut(text, limit) for text in whole]
        results = self._encoded(parts)
        for index, text in enumerate(whole):
            if len(parts[index]) < len(text) and not self._is_enough(results[index]):
                results[index] = self._longer(text, 4 * limit)
        return results

    def _encoded(self, parts: Sequence[str]) -> list[Tokens | PoisonError]:
        """Tokenise all at once; where that fails, one by one, so that a text is refused for what it does alone."""
        try:
            return [self._tokens(encoding) for encoding in self._tokenizer.encode_batch_fast(parts)]
        except MemoryError:
            raise
        except Exception:  # noqa: BLE001 - the library has no class of its own: a WordPiece without [UNK] raises this
            if len(parts) == 1:
                return [_fails()]
        return [found for part in parts for found in self._encoded([part])]

    def _is_enough(self, found: Tokens | PoisonError) -> bool:
        """Whether more of the text could not change it."""
        return isinstance(found, PoisonError) or found.total >= self._max_tokens + _SPARE_TOKENS

    def ids(self, texts: Sequence[str]) -> list[type_ids]:
        """The ids of texts that are known to have some.

        Raises:
            PoisonError: one has none.
        """
        found = self.encode(texts)
        for tokens in found:
            if isinstance(tokens, PoisonError):
                raise tokens
        return [tokens.ids for tokens in found if isinstance(tokens, Tokens)]

    def offsets(self, texts: Sequence[str]) -> list[npt.NDArray[np.int64]] | PoisonError:
        """Where the tokens of whole texts are, without prompt and special tokens; or why one of the texts has none.

        Returns:
            For each text int64 [tokens, 2]: the first character of each token, and the one behind it, in code points. Tokens of
            one character have the same; characters that no token is of are in none.
        """
        try:
            found = self._tokenizer.encode_batch(texts, add_special_tokens=False)
        except MemoryError:
            raise
        except Exception:  # noqa: BLE001 - as in _encoded
            return _fails()
        return [_offsets(encoding) for encoding in found]

    def canary(self) -> type_ids:
        """Ids of a text that nothing is wrong with.

        Raises:
            PoisonError: the tokenizer fails at every text.
        """
        try:
            return self.ids(["canary"])[0]
        except PoisonError:
            return self.ids([""])[0]  # special tokens alone: its vocabulary is not of letters

    def _warn_prefixed(self, texts: Sequence[str], prompts: Sequence[str]) -> None:
        """Say once that a text brings the prompt along already, so that the model reads it twice."""
        for text, prompt in zip(texts, prompts, strict=True):
            if self._warned:
                return
            if prompt.strip() and text.startswith(prompt.rstrip()):
                self._warned = True
                _logger.warning("a text begins with the prompt already; it is put before it once more")

    def _longer(self, text: str, limit: int) -> Tokens | PoisonError:
        """Tokenise a text that has few tokens per character, by ever larger parts."""
        while True:
            part = _cut(text, limit)
            (found,) = self._encoded([part])
            if len(part) == len(text) or self._is_enough(found):
                return found
            limit *= 4

    def _tokens(self, encoding: tokenizers.Encoding) -> Tokens | PoisonError:
        cut_off = sum(len(rest.ids) - self._specials for rest in encoding.overflowing)
        ids = np.array(encoding.ids, dtype=np.int32)
        if self._vocabulary is not None and ids.max(initial=0) >= self._vocabulary:
            return PoisonError(
                "tokenize", "unknown_token", "the text holds a token that the tokenizer has and the model not"
            )
        return Tokens(ids, len(ids) + cut_off)

    def _measure(self, prompt: str, special_ids: set[int]) -> int:
        # Measured on the prompt alone, as sentence-transformers does, though its last token may merge with the text.
        if not prompt:
            return 0
        try:
            ids = self._tokenizer.encode(prompt).ids
        except Exception as error:
            raise SettingsError(
                "the model's tokenizer fails at the prompt; set another with model.prompt_text"
            ) from error
        return len(ids) - (ids[-1] in special_ids)


def _compare(folder: Path, tokenizer: tokenizers.Tokenizer, vocabulary: int) -> None:
    """Raise EnvironmentFault for a tokenizer of another model; say it of tokens that were added and the model lacks.

    Models are published with a few of those, which no text holds in practice; a text that does is refused alone.
    """
    if (words := tokenizer.get_vocab_size(with_added_tokens=False)) > vocabulary:
        raise EnvironmentFault(
            f"{folder}: the tokenizer has {words} words and the model {vocabulary}; they belong to different models"
        )
    if beyond := sum(number >= vocabulary for number in tokenizer.get_added_tokens_decoder()):
        _logger.info("added tokens that the model does not have %s", log.fields(folder=folder, count=beyond))


def _fails() -> PoisonError:
    return PoisonError("tokenize", "tokenizer_raised", "the model's tokenizer fails at the text")


def _offsets(encoding: tokenizers.Encoding) -> npt.NDArray[np.int64]:
    """Of what the limit leaves over too; left to right, on whichever side it is cut."""
    parts = [np.array(each.offsets, np.int64).reshape(-1, 2) for each in (encoding, *encoding.overflowing)]
    return np.sort(np.concatenate(parts), axis=0)


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
