"""The model on its device: token ids in, unit vectors out.

Comes in: a ``Batch`` of token ids. Goes out: float32 vectors, in the batch's order. Never here: text, prompts, retries; no
error quotes an id. Not thread-safe: one thread calls ``encode``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from workers.encoder.head import Head
from workers.encoder.layout import Layout
from workers.encoder.loading import load
from workers.encoder.packing import split
from workers.encoder.pooling import pool
from workers.errors import EnvironmentFault, SettingsError
from workers.records import Batch, type_ids, type_vectors

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# How far a text's vector may move with its company (1 − cosine). float32 moves by 1e-12, bfloat16 by 1e-4, measured;
# a broken mask or window moves it by 1e-2 and more.
_INVARIANCE = {torch.float32: 1e-9, torch.bfloat16: 2e-3, torch.float16: 2e-3}


@dataclass(frozen=True, slots=True)
class Stats:
    """What an encoder has computed since it started: real ``tokens``, and ``padding`` beside them."""

    tokens: int = 0
    padding: int = 0


class Encoder:
    """One model, loaded once."""

    def __init__(
        self,
        layout: Layout,
        *,
        device: str = "auto",
        dtype: str = "auto",
        max_batch_tokens: int = 2048,
        prompt_tokens: int = 0,
        threads: int | None = None,
    ) -> None:
        """Load the weights.

        Args:
            layout: which model, by :meth:`Layout.read`.
            device: auto (CUDA where there is one), cpu, cuda, cuda:1, …
            dtype: auto (float32 on CPU, bfloat16 on CUDA), float32, bfloat16, float16.
            max_batch_tokens: budget of one forward pass, padding included; a longer text goes alone.
            prompt_tokens: the prompt's length; left out of pooling where the model's pooling says so.
            threads: CPU threads of torch, for the whole process.

        Raises:
            SettingsError: a dtype that the model cannot run in, or a device that torch does not know.
            EnvironmentFault: no such device here, or weights that are broken or incomplete.
        """
        if max_batch_tokens < 1 or prompt_tokens < 0:
            raise ValueError("max_batch_tokens is at least 1, prompt_tokens at least 0")
        if threads is not None:
            torch.set_num_threads(threads)
        self._layout = layout
        self._device = _device(device)
        self._dtype = _dtype(dtype, self._device, layout)
        self._max_batch_tokens = max_batch_tokens
        self._skip = 0 if layout.include_prompt else prompt_tokens
        self._model = load(layout, self._dtype).to(self._device)
        self._vocabulary = int(self._model.config.vocab_size)
        self._padding_id = int(self._model.config.pad_token_id or 0)
        self._head = Head(layout.head, self._device)
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
    def stats(self) -> Stats:
        """Tokens and padding computed so far, warm-up and self-test left out."""
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
        """
        width = self.dim if dim is None else dim
        if not 1 <= width <= self.dim:
            raise ValueError(f"dim {width} is not between 1 and {self.dim}")
        self._check(batch)
        vectors = np.empty((len(batch), width), np.float32)
        ends = np.cumsum(batch.lengths, dtype=np.int64)
        computed = 0
        for rows in split(batch.lengths, self._max_batch_tokens):
            texts = [batch.ids[ends[row] - batch.lengths[row] : ends[row]] for row in rows]
            vectors[rows] = self._forward(texts, width)
            computed += len(rows) * int(batch.lengths[rows].max())
        tokens, padding = self._stats.tokens + batch.tokens, self._stats.padding + computed - batch.tokens
        self._stats = Stats(tokens, padding)
        return vectors

    def warm_up(self) -> None:
        """Run the largest batches that the budget allows, so that a lack of memory shows now.

        Raises:
            EnvironmentFault: the device has too little memory for ``max_batch_tokens``.
        """
        longest = min(self._layout.max_tokens, self._max_batch_tokens)
        try:
            # The longest texts ask for the most attention memory, short ones for the most rows. The limit is the longest
            # text alone, which may be above the budget.
            for length in sorted({longest, min(16, longest), self._layout.max_tokens}):
                texts = self._sample([length] * max(1, self._max_batch_tokens // length))
                self._forward(texts, self.dim)
        except torch.OutOfMemoryError:
            raise EnvironmentFault(
                f"{self.device} has too little memory for pool.max_batch_tokens {self._max_batch_tokens}; lower it"
            ) from None

    def self_test(self) -> None:
        """Embed made-up texts together and alone.

        Raises:
            EnvironmentFault: a vector is not finite, not of unit length, or depends on its company.
        """
        shortest = self._skip + 3
        lengths = [min(length, self._layout.max_tokens) for length in (shortest, shortest + 14, 64, 160)]
        texts = self._sample([max(1, length) for length in lengths])
        together = self._forward(texts, self.dim).astype(np.float64)
        alone = np.concatenate([self._forward([text], self.dim) for text in texts]).astype(np.float64)
        if not (np.isfinite(together).all() and np.isfinite(alone).all()):
            raise EnvironmentFault(
                f"self-test: {self._layout.folder} gives vectors that are not finite in {_name(self._dtype)}; "
                "try model.dtype: float32"
            )
        if (worst := np.abs(np.linalg.norm(together, axis=1) - 1).max()) > 1e-5:
            raise EnvironmentFault(
                f"self-test: {self._layout.folder} gives vectors that are {worst:.1e} off unit length"
            )
        cosine = (together * alone).sum(axis=1) / np.linalg.norm(together, axis=1) / np.linalg.norm(alone, axis=1)
        if (worst := (1 - cosine).max()) > _INVARIANCE[self._dtype]:
            raise EnvironmentFault(
                f"self-test: a text's vector depends on its batch (1 - cosine is {worst:.1e} in {_name(self._dtype)}, "
                f"allowed {_INVARIANCE[self._dtype]:.0e}); the model mixes texts, or this version of torch runs it wrongly"
            )

    def _check(self, batch: Batch) -> None:
        # On CUDA an id out of range ends the process; a wrong sum would shift every text after it.
        if len(batch) == 0:
            return
        if int(batch.lengths.min()) < 1 or int(batch.lengths.sum(dtype=np.int64)) != len(batch.ids):
            raise ValueError("the batch's lengths do not match its ids")
        if int(batch.lengths.max()) > self._layout.max_tokens:
            raise ValueError(f"a text is longer than the model's {self._layout.max_tokens} tokens")
        if int(batch.ids.min()) < 0 or int(batch.ids.max()) >= self._vocabulary:
            raise ValueError("a token id is outside the model's vocabulary: another tokenizer made it")

    def _sample(self, lengths: list[int]) -> list[type_ids]:
        random = np.random.default_rng(0)
        return [random.integers(0, self._vocabulary, length, dtype=np.int32) for length in lengths]

    @torch.inference_mode()
    def _forward(self, texts: list[type_ids], dim: int) -> type_vectors:
        """One padded forward pass: float32 [len(texts), dim]."""
        lengths = np.array([len(ids) for ids in texts])
        padded = np.full((len(texts), int(lengths.max())), self._padding_id, np.int64)
        mask: npt.NDArray[np.bool_] = np.arange(padded.shape[1]) < lengths[:, None]
        padded[mask] = np.concatenate(texts)
        ids, real = (torch.from_numpy(array).to(self._device) for array in (padded, mask))
        hidden: Tensor = self._model(input_ids=ids, attention_mask=real.to(torch.int64)).last_hidden_state
        vectors = self._head(pool(hidden.to(torch.float32), real, self._layout.pooling, self._skip), dim)
        result: type_vectors = vectors.cpu().numpy()
        return result


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def has_cuda() -> bool:
    """Whether torch sees a GPU here."""
    return torch.cuda.is_available()


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise SettingsError(f"device {name!r} is not one that torch knows; use auto, cpu or cuda") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise EnvironmentFault(f"device {name} is wanted, but torch sees {torch.cuda.device_count()} CUDA devices here")
    return device


def _dtype(name: str, device: torch.device, layout: Layout) -> torch.dtype:
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if name not in _DTYPES:
        raise SettingsError(f"model.dtype {name!r} is not one of auto, {', '.join(_DTYPES)}")
    if name == "float16" and "gemma" in layout.model_type:
        raise SettingsError("model.dtype float16 overflows in Gemma models; use bfloat16 or float32")
    return _DTYPES[name]
