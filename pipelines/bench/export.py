"""A model as ONNX, for the runtimes that read nothing else: ``python -m pipelines.bench.export MODEL FOLDER``.

Comes in: a model folder. Goes out: a folder with ``model.onnx``, from token ids and mask to ``sentence_embedding``, float32,
pooling and head included, and the tokenizer, which knows its limit. Runs where ``onnxscript`` is. Never here: a comparison.
"""

from __future__ import annotations

import json
import logging
import shutil
import sys
import warnings
from pathlib import Path

import tokenizers
import torch
import transformers
from torch import Tensor, nn

from workers.encoder.head import Head
from workers.encoder.layout import Layout
from workers.encoder.pooling import pool


class _Whole(nn.Module):
    """Transformer, pooling, head."""

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        config = transformers.AutoConfig.from_pretrained(layout.transformer, local_files_only=True)
        config.use_cache = False
        self._model = transformers.AutoModel.from_pretrained(
            layout.transformer, config=config, dtype=torch.float32, use_safetensors=True, local_files_only=True
        )
        if getattr(self._model, "pooler", None) is not None:
            self._model.pooler = None
        self._head, self._layout = Head(layout.head), layout

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self._model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return self._head(pool(hidden, attention_mask.to(torch.bool), self._layout.pooling), self._layout.dim)


def export(model: Path, folder: Path) -> None:
    """Write the ONNX model and its tokenizer."""
    layout = Layout.read(model)
    ids = torch.randint(0, 100, (3, 11))  # sizes that no exporter takes for a constant
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    free = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    folder.mkdir(parents=True, exist_ok=True)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            _Whole(layout).eval(),
            (ids, mask),
            str(folder / "model.onnx"),
            input_names=["input_ids", "attention_mask"],
            output_names=["sentence_embedding"],
            dynamic_shapes={"input_ids": free, "attention_mask": free},
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    _tokenizer(layout, folder)


def _tokenizer(layout: Layout, folder: Path) -> None:
    whole = transformers.AutoTokenizer.from_pretrained(layout.transformer, local_files_only=True)
    backend = whole.backend_tokenizer
    backend.no_padding()
    backend.enable_truncation(layout.max_tokens)
    if layout.lower_case:
        steps = [tokenizers.normalizers.Lowercase(), *filter(None, [backend.normalizer])]
        backend.normalizer = tokenizers.normalizers.Sequence(steps)
    backend.save(str(folder / "tokenizer.json"))
    config = {"model_max_length": layout.max_tokens, "pad_token": whole.pad_token}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    shutil.copyfile(layout.transformer / "config.json", folder / "config.json")


if __name__ == "__main__":
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    export(Path(sys.argv[1]), Path(sys.argv[2]))
