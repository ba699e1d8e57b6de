"""Tiny models with random weights, in sentence-transformers' layout: the shapes and traps of the real ones, in seconds.

``python -m tests.tiny_model bert|gemma|… FOLDER`` writes one.
"""

from __future__ import annotations

import argparse
import inspect
import json
import math
import string
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.tiny_tokenizer import byte_fallback_bpe, make_byte_level, make_unigram, make_wordpiece

GEMMA_PROMPTS = {"query": "task: search result | query: ", "document": "title: none | text: "}
BERT_SPECIALS = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
ROBERTA_SPECIALS = {"bos": "<s>", "pad": "<pad>", "eos": "</s>", "unk": "<unk>"}


def make_tiny_gemma(folder: Path, seed: int = 0) -> Path:
    """EmbeddingGemma in small: bidirectional, window 16 and full layers, two Dense, Normalize; 64 wide, 256 tokens."""
    from transformers import Gemma3TextConfig, Gemma3TextModel, GemmaTokenizer

    vocabulary, merges = byte_fallback_bpe(_corpus(), 600)
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
    save(Gemma3TextModel(config), seed, folder)
    _write(folder / "sentence_bert_config.json", {"max_seq_length": 256, "do_lower_case": False})
    options = {"prompts": GEMMA_PROMPTS, "default_prompt_name": None, "similarity_fn_name": "cosine"}
    _write(folder / "config_sentence_transformers.json", options)
    pooling(folder / "1_Pooling", 64)
    dense(folder / "2_Dense", 64, 256, seed + 1)
    dense(folder / "3_Dense", 256, 64, seed + 2)
    modules(folder, ["", "1_Pooling", "2_Dense", "3_Dense", "4_Normalize"])
    return folder


def make_tiny_bert(folder: Path, seed: int = 0, width: int = 32) -> Path:
    """MiniLM in small: two layers, 32 wide, 128 tokens, mean pooling, Normalize. Loads at once."""
    from transformers import BertConfig, BertModel

    size = make_wordpiece(folder, _corpus(), BERT_SPECIALS, tokenizer_class="BertTokenizer", model_max_length=128)
    config = BertConfig(**_small(size, hidden_size=width, max_position_embeddings=128, pad_token_id=0))
    save(BertModel(config, add_pooling_layer=False), seed, folder)
    _write(folder / "sentence_bert_config.json", {"max_seq_length": 128, "do_lower_case": False})
    return layout_around(folder, ("mean",), width)


def make_tiny_xlmr(folder: Path, seed: int = 0) -> Path:
    """XLM-RoBERTa in small: Unigram, positions that begin after the padding id, cls pooling."""
    from transformers import XLMRobertaConfig, XLMRobertaModel

    size = make_unigram(folder, _corpus(), ROBERTA_SPECIALS, tokenizer_class="XLMRobertaTokenizer", model_max_length=96)
    config = XLMRobertaConfig(**_small(size, max_position_embeddings=98, pad_token_id=1, type_vocab_size=1))
    save(XLMRobertaModel(config, add_pooling_layer=False), seed, folder)
    return layout_around(folder, ("cls",))


def make_tiny_mpnet(folder: Path, seed: int = 0) -> Path:
    """MPNet in small: learned and relative positions together, <s> and </s> around WordPiece; a limit of its own."""
    from transformers import MPNetConfig, MPNetModel

    specials = {"cls": "<s>", "pad": "<pad>", "sep": "</s>", "unk": "[UNK]", "mask": "<mask>"}
    declared = {"tokenizer_class": "MPNetTokenizer", "bos_token": "<s>", "eos_token": "</s>", "model_max_length": 512}
    size = make_wordpiece(folder, _corpus(), specials, **declared)
    config = MPNetConfig(**_small(size, max_position_embeddings=130, pad_token_id=1))
    save(MPNetModel(config, add_pooling_layer=False), seed, folder)
    _write(folder / "sentence_bert_config.json", {"max_seq_length": 120, "do_lower_case": False})
    return layout_around(folder, ("mean",))


def make_tiny_modernbert(folder: Path, seed: int = 0) -> Path:
    """ModernBERT in small: rotary, a window of ±8 in every second layer; cls and mean pooling, one after the other."""
    from transformers import ModernBertConfig, ModernBertModel

    size = make_byte_level(folder, _corpus(), BERT_SPECIALS, "cls", "sep", tokenizer_class="PreTrainedTokenizerFast")
    config = ModernBertConfig(
        **_small(size, num_hidden_layers=4, max_position_embeddings=256, pad_token_id=0),
        local_attention=16,
        global_attn_every_n_layers=2,
        cls_token_id=2,
        sep_token_id=3,
        bos_token_id=2,
        eos_token_id=3,
    )
    save(ModernBertModel(config), seed, folder)
    return layout_around(folder, ("cls", "mean"))


def make_tiny_qwen3(folder: Path, seed: int = 0) -> Path:
    """Qwen3-Embedding in small: causal, one end token behind the text, padding on the left, last-token pooling, prompts."""
    from transformers import Qwen3Config, Qwen3Model

    specials = {"pad": "<|endoftext|>"}
    declared = {
        "tokenizer_class": "Qwen2Tokenizer",
        "padding_side": "left",
        "model_max_length": 4096,
        "eos_token": "<|im_end|>",
    }
    size = make_byte_level(folder, _corpus(), specials, None, "pad", **declared)
    config = Qwen3Config(
        **_small(size, max_position_embeddings=256, pad_token_id=None), num_key_value_heads=1, head_dim=16
    )
    save(Qwen3Model(config), seed, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    _write(folder / "config.json", config | {"architectures": ["Qwen3ForCausalLM"]})
    prompts = {"query": "Instruct: find what answers it\nQuery:", "document": ""}
    _write(folder / "config_sentence_transformers.json", {"prompts": prompts, "default_prompt_name": None})
    return layout_around(folder, ("lasttoken",))


MAKERS = {
    "bert": make_tiny_bert,
    "gemma": make_tiny_gemma,
    "xlmr": make_tiny_xlmr,
    "mpnet": make_tiny_mpnet,
    "modernbert": make_tiny_modernbert,
    "qwen3": make_tiny_qwen3,
}


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


def save(model: Any, seed: int, folder: Path) -> None:
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


def _small(size: int, **values: Any) -> dict[str, Any]:
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    return {"vocab_size": size, **small, **values}


def layout_around(folder: Path, modes: Sequence[str], width: int = 32) -> Path:
    """The modules around a transformer of ``width`` numbers: Pooling and Normalize."""
    pooling(folder / "1_Pooling", width, modes)
    modules(folder, ["", "1_Pooling", "2_Normalize"])
    return folder


def pooling(folder: Path, width: int, modes: Sequence[str] = ("mean",), include_prompt: bool = True) -> None:
    """A Pooling module, in the keys of older files."""
    key = {"mean": "mean_tokens", "cls": "cls_token", "max": "max_tokens", "weightedmean": "weightedmean_tokens"}
    chosen = {f"pooling_mode_{key.get(mode, mode)}": True for mode in modes}
    every = {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": False, "pooling_mode_max_tokens": False}
    _write(
        folder / "config.json", {"word_embedding_dimension": width, **every, **chosen, "include_prompt": include_prompt}
    )


def dense(folder: Path, wants: int, gives: int, seed: int) -> None:
    """A Dense module without bias or activation."""
    import torch
    from safetensors.torch import save_file

    identity = "torch.nn.modules.linear.Identity"
    config = {"in_features": wants, "out_features": gives, "bias": False, "activation_function": identity}
    _write(folder / "config.json", config)
    weight = torch.randn(gives, wants, generator=torch.Generator().manual_seed(seed)) / math.sqrt(wants)
    save_file({"linear.weight": weight}, folder / "model.safetensors")


def modules(folder: Path, paths: Sequence[str]) -> None:
    """``modules.json`` over folders such as ``1_Pooling``, whose names say what they are."""
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
    parser.add_argument("kind", choices=MAKERS)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    print(MAKERS[arguments.kind](arguments.folder, 0))
