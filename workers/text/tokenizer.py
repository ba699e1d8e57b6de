"""From text to the ids that the model reads, as sentence-transformers makes them.

Comes in: texts without lone surrogates. Goes out: ``Tokens``, prompt and special tokens included, cut to the limit. Never
here: torch, and never a change of the tokenizer after the constructor. One thread per instance.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import transformers

from workers.errors import EnvironmentFault, SettingsError
from workers.records import Tokens

# A text is cut before it is tokenised once it has this many characters per token that fits: a megabyte of text takes
# seconds to tokenise, for 2048 ids. The cut is at white space, and holds only if the part gives this many ids to spare,
# so that what a merge across the cut could change is past the limit.
_CHARACTERS_PER_TOKEN = 16
_SPARE_TOKENS = 16

_VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model")


class Tokenizer:
    """A model's tokenizer with one prompt and one limit, both fixed."""

    def __init__(self, folder: Path, *, max_tokens: int, prompt: str = "", lower_case: bool = False) -> None:
        """Load the tokenizer and fix how it works.

        Args:
            folder: with the tokenizer's files.
            max_tokens: longest result, special tokens and prompt included.
            prompt: put before every text, as it is.
            lower_case: lower every text first.

        Raises:
            EnvironmentFault: the files are broken, or do not add the special tokens that they declare.
            SettingsError: the prompt leaves no room for a text.
        """
        whole = _load(folder)
        self._tokenizer: tokenizers.Tokenizer = whole.backend_tokenizer
        self._prompt = prompt
        self._max_tokens = max_tokens
        if lower_case:
            first = tokenizers.normalizers.Lowercase()
            then = self._tokenizer.normalizer
            steps = [first] if then is None else [first, then]
            self._tokenizer.normalizer = tokenizers.normalizers.Sequence(steps)
        # The file may have padding and a limit of its own baked in.
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._specials = self._tokenizer.num_special_tokens_to_add(is_pair=False)
        _require_declared(folder, whole, self._tokenizer.encode("x").ids)
        self._prompt_tokens = self._measure(prompt, set(whole.all_special_ids))
        if (taken := max(self._prompt_tokens, self._specials)) >= max_tokens:
            raise SettingsError(f"prompt and special tokens take {taken} of model.max_tokens {max_tokens}")
        self._tokenizer.enable_truncation(max_tokens)

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt alone, without a special token at its end: what pooling may be told to leave out."""
        return self._prompt_tokens

    def encode(self, texts: Sequence[str]) -> list[Tokens]:
        """Tokenise texts, each with the prompt before it.

        ``total`` is exact for a text that fits. For one that was cut it is larger than the limit: exact up to
        16 × ``max_tokens`` characters, and a lower bound for longer texts, whose end is not looked at.

        Args:
            texts: any strings that UTF-8 can carry.

        Returns:
            One ``Tokens`` per text, in order, each of 1 to ``max_tokens`` int32 ids.
        """
        whole = [self._prompt + text for text in texts]
        limit = _CHARACTERS_PER_TOKEN * self._max_tokens
        parts = [_cut(text, limit) for text in whole]
        results = [self._tokens(encoding) for encoding in self._tokenizer.encode_batch_fast(parts)]
        for index, text in enumerate(whole):
            if len(parts[index]) < len(text) and results[index].total < self._max_tokens + _SPARE_TOKENS:
                results[index] = self._longer(text, 4 * limit)
        return results

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


def _load(folder: Path) -> Any:
    # Without any of these, transformers makes an empty tokenizer of the right class, to which every word is unknown.
    if not any(path for pattern in _VOCABULARIES for path in folder.glob(pattern)):
        raise EnvironmentFault(f"{folder} has no tokenizer.json")
    transformers.utils.logging.set_verbosity_error()
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        why = (str(error).strip().splitlines() or [""])[0]
        raise EnvironmentFault(f"{folder} has no tokenizer that loads: {type(error).__name__}: {why}") from error
    if not getattr(tokenizer, "is_fast", False):
        raise EnvironmentFault(f"{folder} has no tokenizer.json; save it with a fast tokenizer")
    return tokenizer


def _require_declared(folder: Path, whole: Any, ids: list[int]) -> None:
    """Raise unless the bos and eos that the configuration promises are really put around a text.

    transformers takes what is added from tokenizer.json and drops the promise; vectors would be off without a word.
    """
    path = folder / "tokenizer_config.json"
    try:
        declared = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError:
        raise EnvironmentFault(f"{path} cannot be read as JSON") from None
    for name, place in (("bos", 0), ("eos", -1)):
        wanted = getattr(whole, f"{name}_token_id", None)
        if declared.get(f"add_{name}_token") is True and wanted is not None and ids[place] != wanted:
            raise EnvironmentFault(
                f"{path} declares add_{name}_token, but tokenizer.json does not add it; mend its post_processor"
            )
