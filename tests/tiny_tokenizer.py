"""Tokenizers of the kinds that embedding models have, learned from the tiny corpus: WordPiece, Unigram, byte-level BPE.

Each writes ``tokenizer.json`` and ``tokenizer_config.json`` into a folder and returns the size of its vocabulary.
"""

from __future__ import annotations

import json
import string
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def make_wordpiece(folder: Path, corpus: str, specials: Mapping[str, str], **declared: object) -> int:
    """BERT's and MPNet's: words in small letters, pieces behind ##; ``specials`` in the order of their ids."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    letters = string.ascii_lowercase + string.digits
    words = sorted({word.strip(string.punctuation).lower() for word in corpus.split()} - {""})[:500]
    pieces = [*specials.values(), *string.punctuation, *letters, *("##" + letter for letter in letters), *words]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=specials["unk"]))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return _write(folder, tokenizer, specials, before="cls", after="sep", declared=declared)


def make_unigram(folder: Path, corpus: str, specials: Mapping[str, str], **declared: object) -> int:
    """XLM-RoBERTa's: pieces with ▁ for a space, by their likelihood."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace("  ", " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=400, special_tokens=list(specials.values()), unk_token=specials["unk"], show_progress=False
    )
    tokenizer.train_from_iterator([corpus], trainer)
    return _write(folder, tokenizer, specials, before="bos", after="eos", declared=declared)


def make_byte_level(
    folder: Path, corpus: str, specials: Mapping[str, str], before: str | None, after: str, **declared: object
) -> int:
    """ModernBERT's and Qwen's: bytes, and merges of them."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=list(specials.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([corpus], trainer)
    return _write(folder, tokenizer, specials, before=before, after=after, declared=declared)


def byte_fallback_bpe(corpus: str, learned: int) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges of the kind that Gemma has: specials, then 256 bytes, then pieces with ▁ for a space."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    trained.train_from_iterator([corpus], trainers.BpeTrainer(vocab_size=learned, show_progress=False))
    state = json.loads(trained.to_str())["model"]
    pieces = sorted(state["vocab"], key=state["vocab"].__getitem__)
    bytes_ = [f"<0x{value:02X}>" for value in range(256)]
    every = dict.fromkeys(["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *bytes_, "▁", *pieces])
    return {piece: index for index, piece in enumerate(every)}, [tuple(pair) for pair in state["merges"]]


def _write(
    folder: Path,
    tokenizer: Any,
    specials: Mapping[str, str],
    before: str | None,
    after: str,
    declared: Mapping[str, Any],
) -> int:
    from tokenizers import processors

    ends = [specials[name] for name in _named(before, after)]
    single = " ".join([*([specials[before]] if before else []), "$A", specials[after]])
    ids = [(token, tokenizer.token_to_id(token)) for token in ends]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single, pair=f"{single} $B {specials[after]}", special_tokens=ids
    )
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {f"{name}_token": token for name, token in specials.items()}
    (folder / "tokenizer_config.json").write_text(json.dumps({**named, **declared}, indent=1), encoding="utf-8")
    return int(tokenizer.get_vocab_size())


def _named(*names: str | None) -> Iterable[str]:
    return dict.fromkeys(name for name in names if name is not None)
