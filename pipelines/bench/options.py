"""What a benchmark is told to do.

Comes in: the command line, by ``pipelines.bench.command``. Goes out: frozen values. Never here: their use.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

DTYPES = ("float32", "bfloat16")
PARTS = ("plumbing", "growth", "whole", "replicas", "hot", "latency", "losses", "state")
SHAPE = "embeddinggemma-shape"  # a model that is made up, see pipelines.bench.shape


@dataclass(frozen=True, slots=True)
class EncoderOptions:
    """The command line of ``bench encoder``; None stands for a default that depends on the device or the model.

    ``peers`` are names of ``pipelines.bench.engines.PEERS``. ``sweep`` False leaves each at its usual setting. ``peak`` is
    what the device can do at most, in FLOP/s. ``layers`` and ``vocabulary`` make the shape of EmbeddingGemma smaller.
    ``venvs`` is where peers are installed.
    """

    model: str
    revision: str | None
    peers: tuple[str, ...]
    dtypes: tuple[str, ...]
    device: str
    texts: int | None
    rounds: int
    threads: int | None
    sweep: bool
    gate: float
    peak: float | None
    layers: int | None
    vocabulary: int | None
    out: Path
    venvs: Path


@dataclass(frozen=True, slots=True)
class PipelineOptions:
    """The command line of ``bench pipeline``.

    ``records``: of the plumbing part; the others take shares of it. ``replicas``: the most simulated GPUs; ``call_ms``: how
    long a call to one takes. ``seconds``: for each row of the parts that run by the clock. ``keys``: of the state.
    """

    parts: tuple[str, ...]
    model: str
    records: int
    texts: int
    rounds: int
    replicas: int
    call_ms: float
    seconds: float
    keys: int
    out: Path
