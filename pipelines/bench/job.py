"""What is measured: a model, texts, a device, and how much of the machine everybody gets.

Comes in: the options. Goes out: a frozen ``Job`` with its files in a working folder. Never here: an engine.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.bench import shape, texts
from pipelines.bench.flops import model_flops
from pipelines.bench.machine import cores, pick
from pipelines.bench.options import SHAPE, EncoderOptions
from workers.encoder.layout import DenseLayer, Layout, resolve
from workers.errors import EnvironmentFault, SettingsError
from workers.records import type_ids

TEXTS_CPU, TEXTS_CUDA = 2000, 20_000
# A sweep needs enough texts for batches to be as even as with all of them.
SWEEP_SHARE, SWEEP_LEAST = 4, 200


@dataclass(frozen=True, slots=True)
class Job:
    """One comparison. ``lengths``: int32 [texts], tokens of each; ``cores`` are those that every engine may use.

    ``texts`` and ``sweep_texts`` are JSON files, lists of all texts and of the part that settings are tried on.
    """

    model: str
    layout: Layout
    config: Mapping[str, Any]
    device: str
    threads: int
    cores: tuple[int, ...]
    texts: Path
    sweep_texts: Path
    digest: str
    lengths: type_ids
    gate: float
    work: Path

    @property
    def cuda(self) -> bool:
        """Whether it is about a GPU."""
        return self.device != "cpu"

    @property
    def tokens(self) -> int:
        """Tokens of all texts, special ones included."""
        return int(self.lengths.sum())

    @property
    def flops(self) -> float | None:
        """What a pass over all texts takes, by the model's shape."""
        head = [(layer.in_features, layer.out_features) for layer in self.layout.head if isinstance(layer, DenseLayer)]
        return model_flops(self.config, self.lengths, head)


def prepare(options: EncoderOptions, work: Path) -> Job:
    """Find or make the model, and write the texts.

    Args:
        options: the command line.
        work: a folder for files that are wanted until the end.

    Raises:
        SettingsError: more threads than there are cores.
        EnvironmentFault: no such model, or no such device.
    """
    from workers.encoder.encoder import has_cuda  # noqa: PLC0415 - heavy
    from workers.text.tokenizer import Tokenizer  # noqa: PLC0415 - heavy

    device = options.device
    if device == "auto":
        device = "cuda" if has_cuda() else "cpu"
    elif device == "cuda" and not has_cuda():
        raise EnvironmentFault("--device cuda is wanted, but torch sees no GPU here")
    own = cores()
    threads = options.threads or (len(own) if device == "cuda" else 1)
    if threads > len(own):
        raise SettingsError(f"--threads {threads} is more than the {len(own)} cores that this process may use")
    count = options.texts or (TEXTS_CUDA if device == "cuda" else TEXTS_CPU)
    if options.model == SHAPE:
        layers, vocabulary = options.layers or shape.LAYERS, options.vocabulary or shape.VOCABULARY
        name = f"{SHAPE} (random weights, {layers} layers, {vocabulary:,} words)"
        folder = shape.write(work / "model", layers=layers, vocabulary=vocabulary)
        found = texts.random_words(count, shape.words(vocabulary))
    else:
        folder, name = resolve(options.model, options.revision), options.model
        found = texts.corpus(count)
    layout = Layout.read(folder)
    tokenizer = Tokenizer(layout.transformer, max_tokens=layout.max_tokens, lower_case=layout.lower_case)
    lengths = [len(ids) for ids in tokenizer.ids(found)]
    part = max(SWEEP_LEAST, count // SWEEP_SHARE)
    return Job(
        model=name,
        layout=layout,
        config=json.loads((layout.transformer / "config.json").read_text(encoding="utf-8")),
        device=device,
        threads=threads,
        cores=tuple(pick(threads, own)),
        texts=_written(work / "texts.json", found),
        sweep_texts=_written(work / "sweep.json", found[:part]),
        digest=texts.digest(found),
        lengths=np.array(lengths, np.int32),
        gate=options.gate,
        work=work,
    )


def _written(path: Path, found: list[str]) -> Path:
    path.write_text(json.dumps(found), encoding="utf-8")
    return path
