"""Tiny models with random weights, in sentence-transformers' layout: the shapes and traps of the real ones, in seconds.

``python -m tests.tiny_model bert|gemma FOLDER`` writes one.
"""

from __future__ import annotations

import argparse
import inspect
import json
import math
import string
import textwrap
from pathlib import Path

GEMMA_PROMPTS = {"query": "task: search result | query: ", "document": "title: none | text: "}


def make_tiny_gemma(folder: Path, seed: int = 0) -> Path:
    """EmbeddingGemma in small: bidirectional, window 16 and full layers, two Dense, Normalize; 64 wide, 256 tokens."""
    from transformers import Gemma3TextConfig, Gemma3TextModel, GemmaTokenizer

    vocabulary, merges = _byte_fallback_bpe(600)
    tokenizer = GemmaTokenizer(
        vocab=vocabulary, merges=merges, add_bos_token=True, add_eos_token=True, model_max_length=256
    )
    tokenizer.save_pretrained(folder)
    declared = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    _write(folder / "tokenizer_config.json", declared | {"add_bos_token": True, "add_eos_token": True})
    config = Gemma3TextConfig(
        vocab_size=len(vocabulary),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        layer_types=["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        query_pre_attn_scalar=32,
        max_position_embeddings=256,
        sliding_window=16,
        use_bidirectional_attention=True,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
    )
    model = Gemma3TextModel(config)
    _save(model, seed, folder)
    _write(folder / "sentence_bert_config.json", {"max_seq_length": 256, "do_lower_case": False})
    options = {"prompts": GEMMA_PROMPTS, "default_prompt_name": None, "similarity_fn_name": "cosine"}
    _write(folder / "config_sentence_transformers.json", options)
    _pooling(folder / "1_Pooling", 64)
    _dense(folder / "2_Dense", 64, 256, seed + 1)
    _dense(folder / "3_Dense", 256, 64, seed + 2)
    _modules(folder, ["", "1_Pooling", "2_Dense", "3_Dense", "4_Normalize"])
    return folder


def make_tiny_bert(folder: Path, seed: int = 0) -> Path:
    """MiniLM in small: two layers, 32 wide, 128 tokens, mean pooling, Normalize. Loads at once."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel

    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = string.ascii_lowercase + string.digits
    words = sorted({word.strip(string.punctuation).lower() for word in _corpus().split()} - {""})[:500]
    pieces = [*specials, *string.punctuation, *letters, *("##" + letter for letter in letters)]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys([*pieces, *words]))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=128,
        pad_token_id=0,
    )
    model = BertModel(config, add_pooling_layer=False)
    _save(model, seed, folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = ("pad", "unk", "cls", "sep", "mask")
    tokens = {f"{name}_token": token for name, token in zip(names, specials, strict=True)}
    _write(folder / "tokenizer_config.json", {"tokenizer_class": "BertTokenizer", "model_max_length": 128, **tokens})
    _write(folder / "sentence_bert_config.json", {"max_seq_length": 128, "do_lower_case": False})
    _pooling(folder / "1_Pooling", 32)
    _modules(folder, ["", "1_Pooling", "2_Normalize"])
    return folder


def documents(count: int) -> list[str]:
    """Real text of mixed length: docstrings of the standard library, short ones and long ones, always the same."""
    modules = (argparse, inspect, json, math, string, textwrap)
    found = [inspect.getdoc(value) or "" for module in modules for _, value in sorted(vars(module).items())]
    texts = sorted({text for text in found if text}, key=lambda text: (len(text), text))
    cuts = [text[: 1 + (37 * index) % 900] for index, text in enumerate(texts * (1 + count // len(texts)))]
    step = max(1, len(cuts) // count)
    return cuts[::step][:count]


def _corpus() -> str:
    return "\n".join(documents(80))


def _save(model, seed: int, folder: Path) -> None:
    """Write weights of the size 1/√fan-in, norm weights around one, and a padding row that is not zero."""
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    generator = torch.Generator().manual_seed(seed)
    gemma = "gemma" in type(model).__name__.lower()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if weight.ndim == 1:
                # Gemma's norms scale by 1 + weight. Small biases: a mean over tokens would keep them and lose the rest.
                bias = name.endswith("bias")
                weight.copy_((0.0 if bias or gemma else 1.0) + (0.05 if bias else 0.3) * noise)
            else:
                rare = "position_embeddings" in name or "token_type" in name
                weight.copy_(
                    noise * 0.1 if rare else noise / math.sqrt(weight.shape[-1] if gemma or "embed" not in name else 1)
                )
    model.save_pretrained(folder)


def _byte_fallback_bpe(learned: int) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges of the kind that Gemma has: specials, then 256 bytes, then pieces with ▁ for a space."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    trained.train_from_iterator([_corpus()], trainers.BpeTrainer(vocab_size=learned, show_progress=False))
    state = json.loads(trained.to_str())["model"]
    pieces = sorted(state["vocab"], key=state["vocab"].__getitem__)
    bytes_ = [f"<0x{value:02X}>" for value in range(256)]
    every = dict.fromkeys(["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *bytes_, "▁", *pieces])
    return {piece: index for index, piece in enumerate(every)}, [tuple(pair) for pair in state["merges"]]


def _pooling(folder: Path, width: int) -> None:
    modes = {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": False}
    _write(folder / "config.json", {"word_embedding_dimension": width, **modes, "include_prompt": True})


def _dense(folder: Path, wants: int, gives: int, seed: int) -> None:
    import torch
    from safetensors.torch import save_file

    identity = "torch.nn.modules.linear.Identity"
    config = {"in_features": wants, "out_features": gives, "bias": False, "activation_function": identity}
    _write(folder / "config.json", config)
    weight = torch.randn(gives, wants, generator=torch.Generator().manual_seed(seed)) / math.sqrt(wants)
    save_file({"linear.weight": weight}, folder / "model.safetensors")


def _modules(folder: Path, paths: list[str]) -> None:
    kinds = [path.partition("_")[2] or "Transformer" for path in paths]
    listed = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (path, kind) in enumerate(zip(paths, kinds, strict=True))
    ]
    _write(folder / "modules.json", listed)


def _write(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=("bert", "gemma"))
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    print((make_tiny_bert if arguments.kind == "bert" else make_tiny_gemma)(arguments.folder, 0))
