"""The engines, each behind the same four lines: load, prepare(setting), encode(texts), and counts() where it can count.

Comes in: texts. Goes out: vectors, [n, dim]. Each environment holds one of the engines and no package of ours, so this file
needs the standard library and numpy alone until a class is made. Never here: measuring.
"""
# ruff: noqa: PLC0415 - each environment has one of the engines

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

type_vectors = npt.NDArray[np.floating]

WINDOW_TEXTS = 2048


class Ours:
    """This project's encoder: what a pipeline does with a window of texts."""

    def __init__(self, load: dict[str, Any]) -> None:
        """Load tokenizer and weights."""
        from workers.encoder.encoder import Encoder
        from workers.encoder.layout import Layout
        from workers.records import Batch
        from workers.text.tokenizer import Tokenizer

        layout = Layout.read(Path(load["model"]))
        self._tokenizer = Tokenizer(layout.transformer, max_tokens=layout.max_tokens, lower_case=layout.lower_case)
        self._encoder = Encoder(
            layout,
            device=load["device"],
            dtype=load["dtype"],
            max_batch_tokens=load["setting"],
            threads=load["threads"],
        )
        self._batch = Batch.of
        self._ahead = load["device"] != "cpu"

    def prepare(self, setting: int) -> None:
        """Nothing: its setting is that of the load."""

    def encode(self, texts: Sequence[str]) -> type_vectors:
        """Texts to float32 [n, dim], by windows."""
        windows = [texts[start : start + WINDOW_TEXTS] for start in range(0, len(texts), WINDOW_TEXTS)]
        return np.concatenate([self._encoder.encode(batch) for batch in self._batches(windows)])

    def counts(self) -> tuple[int, int]:
        """Tokens and padding computed so far."""
        return self._encoder.stats.tokens, self._encoder.stats.padding

    def _tokenise(self, texts: Sequence[str]) -> Any:
        return self._batch(self._tokenizer.ids(texts))

    def _batches(self, windows: Sequence[Sequence[str]]) -> Iterator[Any]:
        if not self._ahead:
            yield from map(self._tokenise, windows)
            return
        # A GPU waits for nobody: the next windows are tokenised meanwhile, as a pipeline's readers do.
        with ThreadPoolExecutor(1) as thread:
            yield from thread.map(self._tokenise, windows)


class SentenceTransformers:
    """sentence-transformers' ``encode`` as it is called most; it sorts by characters and pads each batch to its longest."""

    def __init__(self, load: dict[str, Any]) -> None:
        """Load the model in the dtype."""
        import torch
        from sentence_transformers import SentenceTransformer

        torch.set_num_threads(load["threads"])
        self._model = SentenceTransformer(
            load["model"], device=load["device"], model_kwargs={"dtype": load["dtype"]}, local_files_only=True
        )

    def prepare(self, setting: int) -> None:
        """``setting``: texts per batch."""
        self._batch_size = setting

    def encode(self, texts: Sequence[str]) -> type_vectors:
        """Texts to [n, dim], without any prompt."""
        vectors: type_vectors = self._model.encode(
            list(texts), batch_size=self._batch_size, prompt="", show_progress_bar=False
        )
        return vectors


class Infinity:
    """infinity-emb's engine in process, without its server: it tokenises, computes and collects in three threads."""

    def __init__(self, load: dict[str, Any]) -> None:
        """Remember what to load; the batch size is fixed with the load."""
        os.environ |= {"INFINITY_ANONYMOUS_USAGE_STATS": "0", "INFINITY_QUEUE_SIZE": "1000000"}
        import torch

        torch.set_num_threads(load["threads"])
        self._load = load
        self._loop = asyncio.new_event_loop()
        self._engine: Any = None
        self._batch_size = 0
        self.prepare(load["setting"])

    def prepare(self, setting: int) -> None:
        """``setting``: texts per batch. Another one loads the model anew."""
        from infinity_emb import AsyncEmbeddingEngine, EngineArgs

        if setting == self._batch_size:
            return
        if self._engine is not None:
            self._loop.run_until_complete(self._engine.astop())
        self._batch_size = setting
        self._engine = AsyncEmbeddingEngine.from_args(
            EngineArgs(
                model_name_or_path=self._load["model"],
                batch_size=self._batch_size,
                engine="torch",
                device=self._load["device"],
                dtype=self._load["dtype"],
                trust_remote_code=False,
                model_warmup=False,
                bettertransformer=False,  # transformers' own attention is what replaced it
            )
        )
        self._loop.run_until_complete(self._engine.astart())

    def encode(self, texts: Sequence[str]) -> type_vectors:
        """Texts to [n, dim]."""
        vectors, _ = self._loop.run_until_complete(self._engine.embed(sentences=list(texts)))
        return np.stack(vectors)


class Fastembed:
    """fastembed on the exported model, whose last output is the pooled vector; it batches in the order of the texts."""

    def __init__(self, load: dict[str, Any]) -> None:
        """Register the exported model."""
        from fastembed import TextEmbedding
        from fastembed.common.model_description import ModelSource, PoolingType

        name = "local/model"
        TextEmbedding.add_custom_model(
            model=name,
            pooling=PoolingType.DISABLED,
            normalization=False,
            sources=ModelSource(hf=name),
            dim=load["dim"],
            model_file="model.onnx",
            output_name="sentence_embedding",
        )
        self._model = TextEmbedding(
            model_name=name, specific_model_path=load["onnx"], threads=load["threads"], cache_dir=tempfile.gettempdir()
        )

    def prepare(self, setting: int) -> None:
        """``setting``: texts per batch."""
        self._batch_size = setting

    def encode(self, texts: Sequence[str]) -> type_vectors:
        """Texts to [n, dim]."""
        return np.stack(list(self._model.embed(list(texts), batch_size=self._batch_size)))


class _Padded:
    """A runtime that computes padded batches: sorted by tokens, cut by a budget that counts the padding."""

    def __init__(self, load: dict[str, Any]) -> None:
        """Load the tokenizer, which knows its limit and does not pad."""
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_file(str(Path(load["onnx"], "tokenizer.json")))
        self._padding_id = load["padding_id"]
        self._budget = load["setting"]
        self._computed = (0, 0)

    def prepare(self, setting: int) -> None:
        """``setting``: tokens per batch, padding included."""
        self._budget = setting

    def encode(self, texts: Sequence[str]) -> type_vectors:
        """Texts to [n, dim]."""
        ids = [encoding.ids for encoding in self._tokenizer.encode_batch_fast(list(texts))]
        order = sorted(range(len(ids)), key=lambda row: -len(ids[row]))
        parts, start, computed = [], 0, 0
        while start < len(order):
            longest = len(ids[order[start]])
            rows = order[start : start + max(1, self._budget // longest)]
            padded = np.full((len(rows), longest), self._padding_id, np.int64)
            mask = np.zeros_like(padded)
            for place, row in enumerate(rows):
                padded[place, : len(ids[row])] = ids[row]
                mask[place, : len(ids[row])] = 1
            parts.append(self.run(padded, mask))
            start += len(rows)
            computed += padded.size
        tokens = sum(map(len, ids))
        self._computed = (self._computed[0] + tokens, self._computed[1] + computed - tokens)
        sorted_vectors = np.concatenate(parts)
        vectors = np.empty_like(sorted_vectors)
        vectors[order] = sorted_vectors
        return vectors

    def counts(self) -> tuple[int, int]:
        """Tokens and padding computed so far."""
        return self._computed

    def run(self, ids: npt.NDArray[np.int64], mask: npt.NDArray[np.int64]) -> type_vectors:
        """One batch, int64 [texts, tokens] both, to [texts, dim]."""
        raise NotImplementedError


class OnnxRuntime(_Padded):
    """ONNX Runtime on its CPU provider, every graph optimisation on."""

    def __init__(self, load: dict[str, Any]) -> None:
        """Open a session."""
        import onnxruntime

        super().__init__(load)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = load["threads"]
        options.inter_op_num_threads = 1
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        path = str(Path(load["onnx"], "model.onnx"))
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(self, ids: npt.NDArray[np.int64], mask: npt.NDArray[np.int64]) -> type_vectors:
        """One batch."""
        vectors: type_vectors = self._session.run(["sentence_embedding"], {"input_ids": ids, "attention_mask": mask})[0]
        return vectors


class OpenVino(_Padded):
    """OpenVINO on its CPU plugin, one stream on all the threads."""

    def __init__(self, load: dict[str, Any]) -> None:
        """Compile the model."""
        import openvino

        super().__init__(load)
        options = {
            "INFERENCE_NUM_THREADS": load["threads"],
            "NUM_STREAMS": 1,
            "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[load["dtype"]],
        }
        model = openvino.Core().compile_model(Path(load["onnx"], "model.onnx"), "CPU", options)
        self._request = model.create_infer_request()

    def run(self, ids: npt.NDArray[np.int64], mask: npt.NDArray[np.int64]) -> type_vectors:
        """One batch."""
        return np.array(self._request.infer({"input_ids": ids, "attention_mask": mask})[0])


ENGINES: dict[str, Any] = {
    "stream-embedder": Ours,
    "sentence-transformers": SentenceTransformers,
    "infinity-emb": Infinity,
    "fastembed": Fastembed,
    "onnxruntime": OnnxRuntime,
    "openvino": OpenVino,
}
