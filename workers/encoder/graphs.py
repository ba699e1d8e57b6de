"""Packed forward passes of fixed shapes, recorded once as CUDA graphs and replayed.

Comes in: packs, and a transformer to record. Goes out: their vectors; a replay costs one launch instead of a thousand. Never
here: what is computed, which is the transformer's and the pooling's; or how work is recorded (``recorder``).

A pack is filled up to a shape: so many tokens, so many texts, a longest text of so many tokens. Filling tokens belong to no
text: nobody attends to them, and what becomes of them is in a row that is dropped, the one after the texts'.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from workers import log
from workers.encoder.attention import Segments
from workers.encoder.faults import is_out_of_memory, require_device
from workers.encoder.forward import Pooled, type_hidden
from workers.encoder.head import cut
from workers.encoder.packing import Pack
from workers.encoder.recorder import Recorder
from workers.errors import in_one_line

_logger = log.get(__name__)

# Steps of 1,024 tokens fill up 512 on average, 3 % of a budget of 16,384; the other two cost little when they are large.
TOKEN_STEP = 1024
FEWEST_TEXTS = 16
SHORTEST = 32
# Budget and windows of one stream make fewer shapes than this; what each keeps on the device is small, but is kept.
MOST_SHAPES = 256


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
    flat = np.zeros(3 * shape.tokens + 2 * shape.texts + 1, np.int32)
    ids, text_of, positions, lengths, bounds = parted(flat, shape)
    count, drop_row = len(pack.ids), shape.texts
    ids[:count], text_of[:count], positions[:count] = pack.ids, pack.texts, pack.positions
    text_of[count:] = drop_row
    lengths[: len(pack)] = pack.lengths
    bounds[1 : len(pack) + 1] = pack.ends
    bounds[len(pack) + 1 :] = count
    return flat


def parted(flat: Any, shape: Shape) -> tuple[Any, Any, Any, Any, Any]:
    """The parts of what :func:`filled` made, as views."""
    cuts = np.cumsum([0, shape.tokens, shape.tokens, shape.tokens, shape.texts, shape.texts + 1])
    ids, text_of, positions, lengths, bounds = (flat[start:stop] for start, stop in itertools.pairwise(cuts))
    return ids, text_of, positions, lengths, bounds


@dataclass(frozen=True, slots=True)
class _Recorded:
    """A recorded pass: what begins it, what it reads, and what it writes."""

    replay: Callable[[], None]
    inputs: Tensor
    vectors: Tensor


class GraphedForward:
    """A packed forward pass whose shapes are recorded when they are first met.

    When a shape cannot be recorded, none is from then on, and all passes are launched step by step.
    """

    padded = False

    def __init__(
        self, name: str, hidden: type_hidden, pooled: Pooled, device: torch.device, recorder: Recorder | None = None
    ) -> None:
        """``hidden`` must be one that a CUDA graph can hold: no copy to the host, no shape that depends on values."""
        self._name = name
        self._hidden = hidden
        self._pooled = pooled
        self._device = device
        self._recorder: Recorder | None = recorder or Recorder(device)
        self._recorded: dict[Shape, _Recorded] = {}

    @property
    def name(self) -> str:
        """With a word on whether its passes are recorded."""
        return self._name if self._recorder is None else f"{self._name}, in graphs"

    def __call__(self, pack: Pack, dim: int) -> Tensor:
        """Vectors of a pack's texts; of a recorded shape they are begun, not waited for."""
        shape = Shape.of(pack)
        inputs = torch.from_numpy(filled(pack, shape))
        if self._device.type == "cuda":
            inputs = inputs.pin_memory()
        recorded = self._recorded.get(shape) or self._record(inputs, shape)
        if recorded is None:
            vectors = self.compute(inputs.to(self._device, non_blocking=True), shape)
        else:
            recorded.inputs.copy_(inputs, non_blocking=True)
            recorded.replay()
            vectors = recorded.vectors
        return cut(vectors[: len(pack)], dim)  # which copies them: the next replay writes where this one did

    def cost(self, pack: Pack) -> int:
        """Tokens of the shape."""
        return Shape.of(pack).tokens

    def forget(self) -> None:
        """Give back all recordings and their memory; shapes are recorded anew when they are met."""
        if self._recorder is not None and self._recorded:
            self._recorder.forget()
        self._recorded.clear()

    def _record(self, inputs: Tensor, shape: Shape) -> _Recorded | None:
        if self._recorder is None:
            return None
        if len(self._recorded) >= MOST_SHAPES:
            self.forget()
        kept = inputs.to(self._device)
        try:
            replay, vectors = self._recorder.record(lambda: self.compute(kept, shape))
        except Exception as error:  # whatever cannot be recorded can be computed
            if is_out_of_memory(error):
                raise
            require_device(self._device, error)
            why = in_one_line(error)
        else:
            recorded = self._recorded[shape] = _Recorded(replay, kept, vectors)
            return recorded
        # Outside the handler: the error holds the tensors of the pass.
        _logger.warning("passes are not recorded from now on %s", log.fields(way=self._name, shape=shape, error=why))
        self.forget()
        self._recorder = None
        return None

    def compute(self, inputs: Tensor, shape: Shape) -> Tensor:
        """What is recorded: vectors [texts of the shape, width], whole and not normalised; of the pack's texts first."""
        ids, text_of, positions, lengths, bounds = parted(inputs, shape)
        places = positions.to(torch.int64)
        hidden = self._hidden(ids.to(torch.int64), places, Segments(shape.longest, bounds=bounds))
        return self._pooled.whole(hidden, text_of.to(torch.int64), places, lengths.to(torch.int64))
