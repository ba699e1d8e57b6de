"""The model on its device: token ids in, unit vectors out.

Comes in: a ``Batch`` of token ids. Goes out: float32 vectors, in the batch's order. Never here: text, prompts, retries; no
error quotes an id. Not thread-safe: one thread calls ``encode``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from workers import log
from workers.encoder.device import device_of, dtypes_of, has_cuda
from workers.encoder.faults import give_back, is_out_of_memory, require_device
from workers.encoder.forward import Forward, PaddedForward, Pooled
from workers.encoder.head import Head
from workers.encoder.layout import Layout
from workers.encoder.loading import load
from workers.encoder.packing import Pack, packs
from workers.encoder.samples import Samples
from workers.encoder.soundness import TOLERANCE, require_sound
from workers.encoder.ways import fastest, least_cosine, vectors_of
from workers.errors import EnvironmentFault, RetryableError, StreamEmbedderError, in_one_line
from workers.records import Batch, type_vectors

__all__ = ["Encoder", "Stats", "has_cuda"]

_logger = log.get(__name__)

# bfloat16 is taken only where its vectors have at least this cosine to float32's.
_GATE = 0.999
# Longest text of a warm-up on a CPU, in tokens: attention costs their square, which is half a minute for 32,768.
_CPU_WARM_UP = 4096

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Stats:
    """What an encoder has computed since it started.

    Real ``tokens``; ``padding`` beside them; and how often memory ran out, so that a forward pass was ``halved``.
    """

    tokens: int = 0
    padding: int = 0
    halved: int = 0


class Encoder:
    """One model, loaded once, which only ever goes down from where it starts.

    - from fast (packed, where that is right) to padded, when the fast way raises;
    - in either, to half the budget per pass, whenever memory runs out.
    """

    def __init__(
        self,
        layout: Layout,
        *,
        device: str = "auto",
        dtype: str = "auto",
        max_batch_tokens: int = 4096,
        prompt_tokens: int = 0,
        threads: int | None = None,
        padded: bool = False,
    ) -> None:
        """Load the weights, and choose how to compute: in bfloat16 or float32, packed or padded.

        Args:
            layout: which model, by :meth:`Layout.read`.
            device: auto (CUDA where there is one), cpu, cuda, cuda:1, …
            dtype: float32, bfloat16, float16; or auto: bfloat16 where the hardware multiplies it and the model's vectors
                stay within a cosine of 0.999 of float32's, else float32.
            max_batch_tokens: budget of one forward pass, without what fills it up; a longer text goes alone.
            prompt_tokens: the prompt's length; left out of pooling where the model's pooling says so.
            threads: CPU threads of torch, for the whole process.
            padded: pad all texts to the longest, which is slower; what packed texts are compared with.

        Raises:
            SettingsError: a dtype that the model cannot run in, or a device that torch does not know.
            EnvironmentFault: no such device here, or weights that are broken or incomplete.
        """
        if max_batch_tokens < 1 or prompt_tokens < 0:
            raise ValueError("max_batch_tokens is at least 1, prompt_tokens at least 0")
        if threads is not None:
            torch.set_num_threads(threads)
        self._layout = layout
        self._device = device_of(device)
        self._budget = max_batch_tokens
        self._skip = 0 if layout.include_prompt else prompt_tokens
        if self._device.type == "cuda":
            # Torch 2.15 would take cuDNN's attention for some shapes, and plan anew for each; what is tried at the start is
            # the flash kernel, which is one for all.
            torch.backends.cuda.enable_cudnn_sdp(False)
        self._dtype, self._forward, self._samples = self._choose(dtypes_of(dtype, self._device, layout), padded)
        self._stats = Stats()

    @property
    def dim(self) -> int:
        """Width of the model's vectors."""
        return self._layout.dim

    @property
    def device(self) -> str:
        """Where the model is, such as ``cpu`` or ``cuda:0``."""
        return str(self._device)

    @property
    def dtype(self) -> str:
        """What the forward pass runs in, such as ``float32``."""
        return str(self._dtype).removeprefix("torch.")

    @property
    def way(self) -> str:
        """How it is computed, such as ``packed, library``."""
        return self._forward.name

    @property
    def padded(self) -> bool:
        """Whether texts are padded, because the model cannot take them packed, or has failed on them."""
        return self._forward.padded

    @property
    def stats(self) -> Stats:
        """What was computed so far, warm-up and self-test left out."""
        return self._stats

    def encode(self, batch: Batch, dim: int | None = None) -> type_vectors:
        """Embed a batch, in as many forward passes as the token budget asks for.

        Args:
            batch: n texts, each of 1 to the layout's ``max_tokens`` ids.
            dim: width of the result; default all of it.

        Returns:
            float32 [n, dim] in the batch's order, rows of unit length. A row that the model gave no finite vector for is
            NaN throughout; the caller refuses that text, its neighbours are sound.

        Raises:
            ValueError: a dim that the model does not have, or a batch that is not one of its tokenizer's.
            RetryableError: a text needs more memory than there is, alone.
            DeviceLost: the GPU is of no more use to this process.
        """
        width = self.dim if dim is None else dim
        if not 1 <= width <= self.dim:
            raise ValueError(f"dim {width} is not between 1 and {self.dim}")
        self._check(batch)
        return self._surely(lambda: self._encode(batch, width))

    def warm_up(self) -> None:
        """Run the largest batches that the budget allows, so that a lack of memory shows now.

        Raises:
            EnvironmentFault: the device has too little memory for ``max_batch_tokens``.
            DeviceLost: the GPU is of no more use to this process.
        """
        self._surely(self._warm_up)

    def _warm_up(self) -> None:
        limit = self._layout.max_tokens
        limit = min(limit, _CPU_WARM_UP) if self._device.type == "cpu" else limit
        longest = min(limit, self._budget)
        # The longest texts ask for the most attention memory, short ones for the most rows. The limit is the longest text
        # alone, which may be above the budget.
        for length in sorted({longest, min(16, longest), limit}):
            if self._try(self._samples.pack([length] * max(1, self._budget // length)), self.dim) is None:
                budget = f"pool.max_batch_tokens {self._budget}; lower it"
                asked = budget if length <= self._budget else f"a text of {length} tokens; set model.max_tokens"
                raise EnvironmentFault(f"{self.device} has too little memory for {asked}")

    def self_test(self) -> None:
        """Embed made-up texts together and alone.

        Raises:
            EnvironmentFault: a vector is not finite, not of unit length, or depends on its company.
            DeviceLost: the GPU is of no more use to this process.
        """
        shortest = self._skip + 3
        lengths = [min(length, self._layout.max_tokens) for length in (shortest, shortest + 14, 64, 160)]
        pack = self._samples.pack([max(1, length) for length in lengths])
        together, alone = self._surely(
            lambda: [vectors_of(self._forward, parts, self.dim) for parts in ([pack], pack.alone())]
        )
        require_sound(together, alone, self._layout.folder, self._dtype)

    # ---- choices

    def _choose(self, dtypes: tuple[torch.dtype, ...], padded: bool) -> tuple[torch.dtype, Forward, Samples]:
        """The first dtype, unless its vectors are too far from those of the second."""
        forward, samples = self._open(dtypes[0], padded)
        if len(dtypes) == 1:
            return dtypes[0], forward, samples
        pack = samples.telling()
        exact = vectors_of(self._open(dtypes[1], padded=True)[0], pack.alone(), self.dim)
        cosine = least_cosine(vectors_of(forward, [pack], self.dim), exact)
        if cosine >= _GATE:
            return dtypes[0], forward, samples
        _logger.warning(
            "not precise enough %s",
            log.fields(folder=self._layout.folder, dtype=dtypes[0], cosine=cosine, gate=_GATE, taken=dtypes[1]),
        )
        return dtypes[1], *self._open(dtypes[1], padded)

    def _open(self, dtype: torch.dtype, padded: bool) -> tuple[Forward, Samples]:
        """The model in ``dtype``, computed in the fastest way that is right, and texts to try it with."""
        model = load(self._layout, dtype).to(self._device)
        window = getattr(model.config, "sliding_window", None)
        samples = Samples(int(model.config.vocab_size), window, self._skip, self._layout.max_tokens)
        pooled = Pooled(self._layout.pooling, self._skip, Head(self._layout.head, self._device))
        if padded:
            return PaddedForward(model, pooled), samples
        way = fastest(model, pooled, samples.telling(), self.dim, TOLERANCE[dtype])
        # None: its layers were replaced on the way, and are right only as they came.
        return (way, samples) if way is not None else self._open(dtype, padded=True)

    # ---- computing

    def _check(self, batch: Batch) -> None:
        # On CUDA an id out of range ends the process; a wrong sum would shift every text after it.
        if len(batch) == 0:
            return
        if int(batch.lengths.min()) < 1 or int(batch.lengths.sum(dtype=np.int64)) != len(batch.ids):
            raise ValueError("the batch's lengths do not match its ids")
        if int(batch.lengths.max()) > self._layout.max_tokens:
            raise ValueError(f"a text is longer than the model's {self._layout.max_tokens} tokens")
        if int(batch.ids.min()) < 0 or int(batch.ids.max()) >= self._samples.vocabulary:
            raise ValueError("a token id is outside the model's vocabulary: another tokenizer made it")

    def _surely(self, compute: Callable[[], _T]) -> _T:
        """What ``compute`` returns; where the way of computing is what fails, texts are padded from then on."""
        try:
            return compute()
        except StreamEmbedderError:
            raise
        except Exception as error:
            require_device(self._device, error)
            if self.padded or is_out_of_memory(error):
                raise
            why = in_one_line(error)
        # Outside the handler: the error holds the tensors of the pass.
        failed = self._forward
        failed.forget()
        self._forward, _ = self._open(self._dtype, padded=True)
        try:
            found = compute()
        except Exception as error:
            require_device(self._device, error)
            self._forward = failed  # which was not to blame
            raise
        _logger.warning("padded from now on %s", log.fields(way=failed.name, error=why))
        return found

    def _encode(self, batch: Batch, dim: int) -> type_vectors:
        vectors = np.empty((len(batch), dim), np.float32)
        # Recorded passes are only begun here, so that the next one is prepared meanwhile.
        done = [part for pack in packs(batch, self._budget, padded=self.padded) for part in self._run(pack, dim)]
        for pack, part in done:
            vectors[pack.rows] = part.cpu().numpy()
        computed = sum(self._forward.cost(pack) for pack, _ in done)
        now = self._stats
        self._stats = Stats(now.tokens + batch.tokens, now.padding + computed - batch.tokens, now.halved)
        return vectors

    def _run(self, pack: Pack, dim: int) -> list[tuple[Pack, Tensor]]:
        """The pack's vectors; in halves, and smaller packs from now on, when memory runs out."""
        found = self._try(pack, dim)
        if found is not None:
            return [(pack, found)]
        if len(pack) == 1:
            raise RetryableError(f"{self.device} has too little memory for a text of {len(pack.ids)} tokens")
        self._budget = max(1, min(self._budget, len(pack.ids)) // 2)
        now = self._stats
        self._stats = Stats(now.tokens, now.padding, now.halved + 1)
        _logger.warning(
            "out of memory %s", log.fields(device=self.device, texts=len(pack), tokens_from_now=self._budget)
        )
        return [part for half in pack.halves() for part in self._run(half, dim)]

    @torch.inference_mode()
    def _try(self, pack: Pack, dim: int) -> Tensor | None:
        """The pack's vectors, or None when there is too little memory for them."""
        try:
            return self._forward(pack, dim)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        # Outside the handler: the error holds the tensors that took the memory.
        self._forward.forget()
        give_back(self._device)
        return None
