"""The engines that are compared: what each needs, and what it can be set to.

Comes in: names and dtypes. Goes out: contenders. Never here: an engine itself; ``pipelines.bench.child`` runs those.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_TEXTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
_TOKENS = (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)


@dataclass(frozen=True, slots=True)
class Engine:
    """An engine, and how it is had.

    ``ladder`` are the settings to try, from ``start`` up and down; ``unit`` is what they count: "batch" (texts) or
    "tokens" (of a batch, padding included). Without a ladder the engine runs as it comes. ``packages`` are what its own
    environment holds, pinned; ``importable`` names a module whose presence in this environment makes another needless.
    """

    name: str
    dtypes: tuple[str, ...]
    unit: str
    ladder: tuple[int, ...] = ()
    start: int = 0
    packages: tuple[str, ...] = ()
    importable: str | None = None
    needs_onnx: bool = False
    cuda: bool = True


@dataclass(frozen=True, slots=True)
class Contender:
    """An engine in one dtype. ``setting`` None: its best one is to be found, or it has none."""

    engine: Engine
    dtype: str
    setting: int | None = None

    @property
    def name(self) -> str:
        """How it is called while its setting is not the point."""
        return f"{self.engine.name} {self.dtype}"


OURS = Engine("stream-embedder", ("float32", "bfloat16"), "tokens")

# One that can be had in the newest version on both lines: the peers pin what they were seen to work with here.
_TOKENIZERS = ("tokenizers==0.23.3", "numpy==2.4.6")
SENTENCE_TRANSFORMERS = Engine(
    "sentence-transformers",
    ("float32", "bfloat16"),
    "batch",
    _TEXTS,
    32,
    ("sentence-transformers==6.2.0", "torch=={torch}"),
    importable="sentence_transformers",
)
PEERS = {
    engine.name: engine
    for engine in (
        SENTENCE_TRANSFORMERS,
        Engine(
            "infinity-emb",
            ("float32", "bfloat16"),
            "batch",
            _TEXTS,
            32,
            ("infinity-emb[torch]==0.0.78", "transformers==4.57.6", "torch=={torch}"),
        ),
        Engine(
            "fastembed",
            ("float32",),
            "batch",
            _TEXTS,
            32,
            ("fastembed==0.9.1", "onnxruntime==1.32.0"),
            needs_onnx=True,
            cuda=False,
        ),
        Engine(
            "onnxruntime",
            ("float32",),
            "tokens",
            _TOKENS,
            1024,
            ("onnxruntime==1.32.0", *_TOKENIZERS),
            needs_onnx=True,
            cuda=False,
        ),
        Engine(
            "openvino",
            ("float32", "bfloat16"),
            "tokens",
            _TOKENS,
            1024,
            ("openvino==2026.4.1", *_TOKENIZERS),
            needs_onnx=True,
            cuda=False,
        ),
    )
}
EXPORTER = ("onnx==1.23.2", "onnxscript==0.7.2")

BASELINE_BATCH = 32


def baseline(dtypes: Sequence[str], *, cuda: bool) -> Contender:
    """What everything is measured against: sentence-transformers as most people call it, at batch 32.

    In float32 on a CPU; in bfloat16 on CUDA, where nobody would run it in float32, if that is among the dtypes.
    """
    dtype = "bfloat16" if cuda and "bfloat16" in dtypes else "float32"
    return Contender(SENTENCE_TRANSFORMERS, dtype, BASELINE_BATCH)


def contenders(peers: Sequence[str], dtypes: Sequence[str], *, cuda: bool) -> list[Contender]:
    """Ours, the baseline, and each peer at a setting yet to be found, in every dtype that was asked for and it has."""
    engines = [OURS, *(PEERS[name] for name in peers if PEERS[name].cuda or not cuda)]
    found = [Contender(engine, dtype) for engine in engines for dtype in dtypes if dtype in engine.dtypes]
    if SENTENCE_TRANSFORMERS.name in peers:
        found.insert(sum(contender.engine is OURS for contender in found), baseline(dtypes, cuda=cuda))
    return found
