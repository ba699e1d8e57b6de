"""A model of EmbeddingGemma-300M's shape with random weights, for the speed of it where the real one is not to be had.

Comes in: a folder. Goes out: sentence-transformers' layout in it, with a tokenizer of made-up words of one token each, so
that gathers from the embedding table are spread as with real text. Never here: torch. Vectors mean nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors

LAYERS, VOCABULARY = 24, 262144
HIDDEN, HEADS, KV_HEADS, HEAD_DIM, FEED_FORWARD, DENSE = 768, 3, 1, 256, 1152, 3072
MAX_TOKENS, WINDOW = 2048, 512
SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>")

type_weights = dict[str, npt.NDArray[np.float32]]


def words(vocabulary: int = VOCABULARY) -> list[str]:
    """The words that the tokenizer knows."""
    return [f"w{index}" for index in range(len(SPECIAL), vocabulary)]


def write(folder: Path, *, layers: int = LAYERS, vocabulary: int = VOCABULARY, seed: int = 0) -> Path:
    """Write the model: 1.2 GB at full size, a few seconds.

    Args:
        folder: made if it is not there.
        layers: transformer layers; every sixth one attends to the whole text, the others to a window.
        vocabulary: rows of the embedding table.
        seed: of the weights.

    Returns:
        The folder.
    """
    random = np.random.default_rng(seed)
    _json(folder / "config.json", _config(layers, vocabulary))
    save_file(dict(_transformer(random, layers, vocabulary)), folder / "model.safetensors", {"format": "pt"})
    _json(folder / "1_Pooling/config.json", {"word_embedding_dimension": HIDDEN, "pooling_mode_mean_tokens": True})
    for path, wants, gives in (("2_Dense", HIDDEN, DENSE), ("3_Dense", DENSE, HIDDEN)):
        activation = "torch.nn.modules.linear.Identity"
        sizes = {"in_features": wants, "out_features": gives, "bias": False, "activation_function": activation}
        _json(folder / path / "config.json", sizes)
        save_file({"linear.weight": _matrix(random, gives, wants)}, folder / path / "model.safetensors")
    (folder / "4_Normalize").mkdir(exist_ok=True)
    kinds = {
        "": "Transformer",
        "1_Pooling": "Pooling",
        "2_Dense": "Dense",
        "3_Dense": "Dense",
        "4_Normalize": "Normalize",
    }
    listed = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (path, kind) in enumerate(kinds.items())
    ]
    _json(folder / "modules.json", listed)
    _json(folder / "sentence_bert_config.json", {"max_seq_length": MAX_TOKENS, "do_lower_case": False})
    _tokenizer(folder, vocabulary)
    return folder


def _config(layers: int, vocabulary: int) -> dict[str, Any]:
    kinds = ["full_attention" if (index + 1) % 6 == 0 else "sliding_attention" for index in range(layers)]
    return {
        "architectures": ["Gemma3TextModel"],
        "model_type": "gemma3_text",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 2,
        "dtype": "float32",
        "eos_token_id": 1,
        "head_dim": HEAD_DIM,
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": HIDDEN,
        "intermediate_size": FEED_FORWARD,
        "layer_types": kinds,
        "max_position_embeddings": MAX_TOKENS,
        "num_attention_heads": HEADS,
        "num_hidden_layers": layers,
        "num_key_value_heads": KV_HEADS,
        "pad_token_id": 0,
        "query_pre_attn_scalar": HEAD_DIM,
        "rms_norm_eps": 1e-06,
        "rope_local_base_freq": 10000.0,
        "rope_theta": 1000000.0,
        "sliding_window": WINDOW,
        "use_bidirectional_attention": True,
        "use_cache": False,
        "vocab_size": vocabulary,
    }


def _transformer(
    random: np.random.Generator, layers: int, vocabulary: int
) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
    """Names as transformers saves a Gemma3TextModel. Norms are zero, for Gemma scales by 1 + weight."""
    yield "embed_tokens.weight", _matrix(random, vocabulary, HIDDEN)
    for index in range(layers):
        layer = f"layers.{index}"
        for name in ("input", "post_attention", "pre_feedforward", "post_feedforward"):
            yield f"{layer}.{name}_layernorm.weight", np.zeros(HIDDEN, np.float32)
        yield f"{layer}.self_attn.q_proj.weight", _matrix(random, HEADS * HEAD_DIM, HIDDEN)
        yield f"{layer}.self_attn.k_proj.weight", _matrix(random, KV_HEADS * HEAD_DIM, HIDDEN)
        yield f"{layer}.self_attn.v_proj.weight", _matrix(random, KV_HEADS * HEAD_DIM, HIDDEN)
        yield f"{layer}.self_attn.o_proj.weight", _matrix(random, HIDDEN, HEADS * HEAD_DIM)
        for name in ("q_norm", "k_norm"):
            yield f"{layer}.self_attn.{name}.weight", np.zeros(HEAD_DIM, np.float32)
        yield f"{layer}.mlp.gate_proj.weight", _matrix(random, FEED_FORWARD, HIDDEN)
        yield f"{layer}.mlp.up_proj.weight", _matrix(random, FEED_FORWARD, HIDDEN)
        yield f"{layer}.mlp.down_proj.weight", _matrix(random, HIDDEN, FEED_FORWARD)
    yield "norm.weight", np.zeros(HIDDEN, np.float32)


def _matrix(random: np.random.Generator, rows: int, columns: int) -> npt.NDArray[np.float32]:
    """Weights that keep the size of what goes through them."""
    matrix = random.standard_normal((rows, columns), np.float32)
    matrix *= np.float32(1 / math.sqrt(columns))
    return matrix


def _tokenizer(folder: Path, vocabulary: int) -> None:
    known = {word: index for index, word in enumerate([*SPECIAL, *words(vocabulary)])}
    tokenizer = Tokenizer(models.WordLevel(known, unk_token=SPECIAL[3]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", pair="<bos> $A <eos> $B <eos>", special_tokens=[("<bos>", 2), ("<eos>", 1)]
    )
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    named = {f"{name}_token": f"<{name}>" for name in ("pad", "eos", "bos", "unk")}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": MAX_TOKENS, **named}
    _json(folder / "tokenizer_config.json", config)


def _json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")
