"""The ways to compute a model's vectors on a device, and the fastest of them that computes what the plainest does.

Comes in: a loaded model with its head, and made-up texts. Goes out: a forward pass. Never here: a list of models that a way
suits; each way is tried, and held against the padded one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from workers import log
from workers.encoder.forward import Forward, PackedForward, PackedModel, PaddedForward, Pooled
from workers.encoder.gemma import Gemma
from workers.encoder.graphs import GraphedForward
from workers.encoder.linear import reorder
from workers.encoder.packing import Pack

_logger = log.get(__name__)


def fastest(model: Any, pooled: Pooled, sample: Pack, dim: int, tolerance: float) -> Forward:
    """The first way whose vectors of the sample's texts, packed, are those of each text alone and unpacked.

    Args:
        model: on its device.
        pooled: what makes vectors of its hidden states.
        sample: texts that a wrong mask, window or position shows in.
        dim: of the vectors that are compared.
        tolerance: how far 1 − cosine may be from 0.
    """
    plain = PaddedForward(model, pooled)
    expected = vectors_of(plain, sample.alone(), dim)
    for way in ways(model, pooled):
        try:
            cosine = least_cosine(vectors_of(way, [sample], dim), expected)
        except Exception as error:  # noqa: BLE001 - whatever a model does not like about it, the plain way is there
            _logger.info("passed over %s", log.fields(way=way.name, error=type(error).__name__))
            continue
        if 1 - cosine <= tolerance:
            return way
        _logger.info("passed over %s", log.fields(way=way.name, cosine=cosine))
    return plain


def ways(model: Any, pooled: Pooled) -> Iterator[Forward]:
    """Packed forward passes that may suit the model and its device, the fastest first.

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


@torch.inference_mode()
def vectors_of(forward: Forward, parts: Sequence[Pack], dim: int) -> npt.NDArray[np.float64]:
    """Vectors [texts, dim], in the packs' order."""
    return np.concatenate([forward(pack, dim).cpu().numpy() for pack in parts]).astype(np.float64)


def least_cosine(found: npt.NDArray[np.float64], expected: npt.NDArray[np.float64]) -> float:
    """The smallest cosine of two rows; a row that is not finite has none, which counts as -1."""
    lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    return float(np.nan_to_num((found * expected).sum(axis=1) / lengths, nan=-1.0).min())
