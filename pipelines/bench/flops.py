"""How much arithmetic a model asks for, and how much of a GPU's it uses.

Comes in: a model's config.json, texts' lengths, seconds. Goes out: FLOPs and shares. Never here: measuring.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

# Dense FLOP/s of the tensor cores in bfloat16, without sparsity, from NVIDIA's data sheets. The first name that is part of
# the device's wins, so a variant stands before its family. The SXM form where there are several.
PEAKS = (
    ("B200", 2250e12),
    ("GH200", 989e12),
    ("H200", 989e12),
    ("H100 NVL", 835e12),
    ("H100 PCIe", 756e12),
    ("H100", 989e12),
    ("A100", 312e12),
    ("A10G", 70e12),
    ("A10", 125e12),
    ("A30", 165e12),
    ("L40S", 362e12),
    ("L40", 181e12),
    ("L4", 121e12),
    ("RTX 4090", 165e12),
    ("RTX 3090", 71e12),
)

_TWO_MATRICES = {"bert", "roberta", "xlm-roberta", "camembert", "electra", "mpnet", "albert", "distilbert"}
_THREE_MATRICES = {"gemma3_text", "qwen3", "modernbert"}  # gate, up, down


def peak_of(device: str) -> float | None:
    """What a GPU can do at most, in FLOP/s of bfloat16, by its name; None for one that the table lacks."""
    return next((peak for name, peak in PEAKS if name.lower() in device.lower()), None)


def model_flops(
    config: Mapping[str, Any], lengths: npt.NDArray[np.integer], head: Sequence[tuple[int, int]] = ()
) -> float | None:
    """What one pass over the texts takes by the model's shape, whatever an implementation adds (padding above all).

    Two FLOPs per weight and token for the matrices of each layer (query, key, value, output, feed-forward), and for
    attention 4 × heads × head_dim per pair of a token and a token that it sees (a product with the keys, another with the
    values: Kaplan et al. 2020, "Scaling Laws for Neural Language Models", section 2.1, without the backward pass). Two per
    weight and text for the head. Gathers, norms and activations are left out, as usual.

    Args:
        config: the transformer's config.json.
        lengths: int [n], tokens per text.
        head: (in, out) of each dense layer after pooling.

    Returns:
        FLOPs, or None for a kind of model whose shape is not known here.
    """
    kind = config.get("model_type")
    if kind not in _TWO_MATRICES | _THREE_MATRICES:
        return None
    hidden = int(config.get("hidden_size") or config["dim"])
    layers = int(config.get("num_hidden_layers") or config["n_layers"])
    heads = int(config.get("num_attention_heads") or config["n_heads"])
    feed_forward = int(config.get("intermediate_size") or config["hidden_dim"])
    width = heads * int(config.get("head_dim") or hidden // heads)
    key_width = int(config.get("num_key_value_heads") or heads) * (width // heads)
    matrices = hidden * (2 * width + 2 * key_width) + hidden * feed_forward * (3 if kind in _THREE_MATRICES else 2)
    total = 2.0 * layers * matrices * float(lengths.sum())
    for radius in _radii(config, layers):
        total += 4.0 * width * float(pairs(lengths, radius).sum())
    return total + 2.0 * len(lengths) * sum(wants * gives for wants, gives in head)


def pairs(lengths: npt.NDArray[np.integer], radius: int | None) -> npt.NDArray[np.int64]:
    """How many (token, token that it sees) a text has, seeing ``radius`` to either side, or everything.

    n + 2 Σ min(i, radius) for i from 0 to n - 1, which is n² for a radius of n - 1 or more.
    """
    n = lengths.astype(np.int64)
    if radius is None:
        return n * n
    near = np.minimum(n, radius + 1)  # the first tokens have fewer neighbours than the radius
    seen: npt.NDArray[np.int64] = n + near * (near - 1) + 2 * (n - near) * radius
    return seen


def _radii(config: Mapping[str, Any], layers: int) -> list[int | None]:
    """How far each layer sees; None: everything."""
    kinds = config.get("layer_types")
    if config.get("model_type") == "modernbert":
        every, window = int(config.get("global_attn_every_n_layers", 3)), int(config.get("local_attention", 128))
        return [None if index % every == 0 else window // 2 for index in range(layers)]
    if kinds is None or config.get("sliding_window") is None:
        return [None] * layers
    window = int(config["sliding_window"])
    return [window // 2 if kind == "sliding_attention" else None for kind in kinds]


def busy_seconds(events: Sequence[Mapping[str, Any]]) -> float:
    """Seconds in which at least one kernel ran, by a trace of torch's profiler in Chrome's format (times in µs).

    Copies are no kernels. Kernels that overlap, on several streams, count once.
    """
    spans = sorted(
        (float(event["ts"]), float(event["ts"]) + float(event["dur"]))
        for event in events
        if event.get("cat") == "kernel"
    )
    busy, until = 0.0, float("-inf")
    for start, end in spans:
        busy += max(0.0, end - max(start, until))
        until = max(until, end)
    return busy / 1e6
