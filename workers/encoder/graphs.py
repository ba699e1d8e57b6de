"""Packed forward passes of fixed shapes, recorded once as CUDA graphs and replayed.

Comes in: packs, and a transformer to record. Goes out: their vectors; a replay costs one launch instead of a thousand. Never
here: what is computed, which is the transformer's and the pooling's.

A pack is filled up to a shape: so many tokens, so many texts, a longest text of so many tokens. Filling tokens belong to no
text: nobody attends to them, and what becomes of them is in a row that is dropped.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from workers.encoder.attention import Segments
from workers.encoder.forward import Pooled, type_hidden
from workers.encoder.packing import Pack

# Steps of 1,024 tokens fill up 512 on average, 3 % of a budget of 16,384; the other two cost little when they are large.
TOKEN_STEP = 1024
FEWEST_TEXTS = 16
SHORTEST = 32


class Shape(NamedTuple):
    """What a graph was recorded for."""

    tokens: int
    texts: int
    longest: int

    @classmethod
    def of(cls, pack: Pack) -> Shape:
        """The smallest shape that holds the pack."""
        tokens = -(-len(pack.ids) // TOKEN_STEP) * TOKEN_STEP
        return cls(tokens, max(FEWEST_TEXTS, _power(len(pack))), max(SHORTEST, _power(pack.longest)))


def _power(number: int) -> int:
    return 1 << (number - 1).bit_length()


def filled(pack: Pack, shape: Shape) -> npt.NDArray[np.int32]:
    """All that a pass needs to know, in one array: ids, texts, positions, then each text's length, then the bounds."""
    tokens, texts, _ = shape
    flat = np.zeros(3 * tokens + 2 * texts + 1, np.int32)
    ids, text_of, positions, lengths, bounds = parted(flat, shape)
    count = len(pack.ids)
    ids[:count], text_of[:count], positions[:count] = pack.ids, pack.texts, pack.positions
    text_of[count:] = texts  # one more than there are
    lengths[: len(pack)] = pack.lengths
    bounds[1 : len(pack) + 1] = pack.ends
    bounds[len(pack) + 1 :] = count
    return flat


def parted(flat: Any, shape: Shape) -> tuple[Any, Any, Any, Any, Any]:
    """The parts of what :func:`filled` made, as views."""
    tokens, texts, _ = shape
    cuts = np.cumsum([0, tokens, tokens, tokens, texts, texts + 1])
    ids, text_of, positions, lengths, bounds = (flat[start:stop] for start, stop in itertools.pairwise(cuts))
    return ids, text_of, positions, lengths, bounds


@dataclass(frozen=True, slots=True)
class _Recorded:
    """A graph, what it reads, and what it writes."""

    graph: Any
    inputs: Tensor
    vectors: Tensor


class GraphedForward:
    """A packed forward pass whose shapes are recorded when they are first met."""

    padded = False

    def __init__(self, name: str, hidden: type_hidden, pooled: Pooled, device: torch.device) -> None:
        """``hidden`` must be one that a CUDA graph can hold: no copy to the host, no shape that depends on values."""
        self.name = name
        self._hidden = hidden
        self._pooled = pooled
        self._device = device
        self._recorded: dict[tuple[Shape, int], _Recorded] = {}
        self._memory: Any = None

    def __call__(self, pack: Pack, dim: int) -> Tensor:
        """Vectors of a pack's texts; the copy and the replay are begun, not waited for."""
        shape = Shape.of(pack)
        inputs = torch.from_numpy(filled(pack, shape)).pin_memory()
        recorded = self._recorded.get((shape, dim))
        if recorded is None:
            recorded = self._recorded[shape, dim] = self._record(inputs.to(self._device), shape, dim)
        recorded.inputs.copy_(inputs, non_blocking=True)
        recorded.graph.replay()
        return recorded.vectors[: len(pack)].clone()  # the next replay writes there

    def _record(self, inputs: Tensor, shape: Shape, dim: int) -> _Recorded:
        # Two passes outside: kernels are compiled and libraries make their workspaces, which no graph can hold.
        aside = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(aside):
            for _ in range(2):
                self.compute(inputs, shape, dim)
        torch.cuda.current_stream(self._device).wait_stream(aside)
        if self._memory is None:
            self._memory = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        # One pool for all: they never run at the same time, and what one leaves is copied before the next.
        with torch.cuda.graph(graph, pool=self._memory):
            vectors = self.compute(inputs, shape, dim)
        return _Recorded(graph, inputs, vectors)

    def compute(self, inputs: Tensor, shape: Shape, dim: int) -> Tensor:
        """Vectors [texts of the shape, dim], of which those beyond the pack's are NaN: what is recorded."""
        ids, texts, positions, lengths, bounds = parted(inputs, shape)
        places = positions.to(torch.int64)
        hidden = self._hidden(ids.to(torch.int64), places, Segments(shape.longest, bounds=bounds))
        return self._pooled(hidden, texts.to(torch.int64), places, lengths.to(torch.int64), dim)
