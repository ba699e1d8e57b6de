"""The ways to compute a model's vectors on a device, and the fastest of them that computes what the plainest does.

Comes in: a loaded model with its head, and made-up texts. Goes out: a forward pass. Never here: a list of models that a way
suits; each way is tried, and held against the padded one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from workers import log
from workers.encoder.attention import FLASH
from workers.encoder.faults import require_device
from workers.encoder.forward import Forward, PackedForward, PackedModel, PaddedForward, Pooled
from workers.encoder.gemma import Gemma
from workers.encoder.graphs import GraphedForward
from workers.encoder.linear import reorder
from workers.encoder.packing import Pack
from workers.errors import in_one_line

_logger = log.get(__name__)


def fastest(model: Any, pooled: Pooled, sample: Pack, dim: int, tolerance: float) -> Forward | None:
    """The first way whose vectors of the sample's texts, together, are those of each text alone in the model as it came.

    Args:
        model: on its device; it may be changed on the way.
        pooled: what makes vectors of its hidden states.
        sample: texts that a wrong mask, window or position shows in.
        dim: of the vectors that are compared.
        tolerance: how far 1 − cosine may be from 0.

    Returns:
        None where not even the plainest does, so that only the model as it came is right.

    Raises:
        DeviceLost: by a way that was tried.
    """
    expected = vectors_of(PaddedForward(model, pooled), sample.alone(), dim)
    device: torch.device = model.device
    # On a GPU each of them is worth much.
    level = logging.WARNING if device.type == "cuda" else logging.INFO
    for name, made in ways(model, pooled):
        try:
            way = made(name)
            cosine = least_cosine(vectors_of(way, [sample], dim), expected)
        except Exception as error:  # noqa: BLE001 - whatever a model does not like about it, the plain way is there
            require_device(device, error)
            _logger.log(level, "passed over %s", log.fields(way=name, error=in_one_line(error)))
            continue
        if 1 - cosine <= tolerance:
            return way
        _logger.log(level, "passed over %s", log.fields(way=name, cosine=cosine))
    return None


def ways(model: Any, pooled: Pooled) -> Iterator[tuple[str, Callable[[str], Forward]]]:
    """Ways that may suit the model and its device, by name, the fastest first, the plainest last; each is made when asked.

    joined: by our own code, some of its layers' weights side by side; library: by transformers' code.
    """
    device: torch.device = model.device
    gemma = model.config.model_type == "gemma3_text"
    if device.type == "cuda" and model.dtype in FLASH:
        recorded = partial(GraphedForward, pooled=pooled, device=device)
        if gemma:
            yield "packed, joined, compiled", lambda name: recorded(name, Gemma(model, compiled))
            yield "packed, joined", lambda name: recorded(name, Gemma(model))
        yield "packed, library", lambda name: recorded(name, PackedModel(model))
    # Elsewhere, and where flash attention does not run, each length of texts attends in a call of its own.
    if gemma:
        yield "packed, joined", lambda name: PackedForward(name, Gemma(model), pooled, device)
    reorder(model)  # only on a CPU; the model's own layers, which serve both of the following
    yield "packed, library", lambda name: PackedForward(name, PackedModel(model), pooled, device)
    yield "padded", lambda _: PaddedForward(model, pooled)


def compiled(function: Any) -> Any:
    """A function made one kernel where it can be, for any number of tokens; in this process alone, not in dozens beside it."""
    return torch.compile(function, dynamic=True, fullgraph=True, options={"compile_threads": 1})


@torch.inference_mode()
def vectors_of(forward: Forward, parts: Sequence[Pack], dim: int) -> npt.NDArray[np.float64]:
    """Vectors [texts, dim], in the packs' order."""
    return np.concatenate([forward(pack, dim).cpu().numpy() for pack in parts]).astype(np.float64)


def least_cosine(found: npt.NDArray[np.float64], expected: npt.NDArray[np.float64]) -> float:
    """The smallest cosine of two rows; a row that is not finite has none, which counts as -1."""
    lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    return float(np.nan_to_num((found * expected).sum(axis=1) / lengths, nan=-1.0).min())
