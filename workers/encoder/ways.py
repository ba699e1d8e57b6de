"""The ways to compute a model's vectors on a device, the fastest first.

Comes in: a loaded model with its head. Goes out: forward passes to try. Never here: whether one computes what it should;
whoever takes one holds it against the padded way (``encoder``).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from workers.encoder.forward import Forward, PackedForward, PackedModel, Pooled
from workers.encoder.gemma import Gemma
from workers.encoder.graphs import GraphedForward
from workers.encoder.linear import reorder


def ways(model: Any, pooled: Pooled) -> Iterator[Forward]:
    """Packed forward passes that may suit the model and its device.

    On a CPU the model's own linear layers are reordered on the way, which serves the padded forward pass as well.
    """
    device: torch.device = model.device
    gemma = model.config.model_type == "gemma3_text"
    if device.type == "cuda":
        if gemma:
            # Each part of a layer is compiled once, for any number of tokens, and serves all layers.
            fused = Gemma(model, partial(torch.compile, dynamic=True, fullgraph=True))
            yield GraphedForward("packed, compiled, in graphs", fused, pooled, device)
            joined = Gemma(model)
            yield GraphedForward("packed, in graphs", joined, pooled, device)
            yield PackedForward("packed", joined, pooled, device)
        yield GraphedForward("packed, in graphs", PackedModel(model), pooled, device)
    else:
        if gemma:
            yield PackedForward("packed", Gemma(model), pooled, device)
        reorder(model)
    yield PackedForward("packed", PackedModel(model), pooled, device)
