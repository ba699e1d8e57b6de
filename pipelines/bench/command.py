"""``bench …``: which benchmark, and its options.

Comes in: arguments and the environment. Goes out: an exit code. Never here: work; a benchmark is imported when it runs.
"""
# ruff: noqa: PLC0415 - imports inside functions are the point

from __future__ import annotations

import argparse
import difflib
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from pipelines.bench.engines import PEERS
from pipelines.bench.environments import default_folder
from pipelines.bench.options import DTYPES, PARTS, SHAPE, EncoderOptions, PipelineOptions
from workers.errors import SettingsError

PROGRAM = "stream-embedder bench"
DEFAULT_MODEL = "all-MiniLM-L6-v2"
_ENCODER = """
Runs this encoder and its peers over the same real texts on the same cores, everyone in turn, several rounds, each peer at its
best setting, and says how fast each is beside sentence-transformers, and how near its vectors are. What is not here is
installed once into environments of its own. No figure is taken from anyone: all are measured, on this machine.

It needs no settings file. Where only torch, transformers, tokenizers and numpy are installed, python -m pipelines.bench encoder
does the same.
"""


_PIPELINE = """
Runs the pipeline on this machine, over a Kafka broker and a Ray of its own: what it costs beside kafka-python alone (plumbing,
growth), how much of the encoder's speed is left in it (whole), how calls scale with replicas (replicas) and records over
partitions (hot), how long a record waits for its vector (latency), what comes out while nodes are lost (losses), and how long a
reader takes to know what it has written (state). Replicas, hot, latency and losses have simulated GPUs, which sleep for as long
as one would compute.

It needs no settings file, and nothing else should run on the machine meanwhile.
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise SettingsError(f"{message} ({self.prog} --help says more)")


def run_bench(words: Sequence[str], environ: Mapping[str, str]) -> int:
    """Run the benchmark that the words name.

    Raises:
        SettingsError: there is no such benchmark, or its options are wrong.
        EnvironmentFault: what it needs is not there.
    """
    parser = _parser(environ)
    try:
        found = parser.parse_args(list(words))
    except SystemExit:  # --help has been printed
        return 0
    command = shlex.join([*PROGRAM.split(), *words])
    if found.bench == "pipeline":
        options = _pipeline_options(found)
        from pipelines.bench.pipeline.measure import run_pipeline

        return run_pipeline(options, command)
    from pipelines.bench.encoder import run_encoder

    return run_encoder(_encoder_options(found), environ, command)


def _parser(environ: Mapping[str, str]) -> argparse.ArgumentParser:
    parser = _Parser(prog=PROGRAM, description="The figures in the README, on your machine.", allow_abbrev=False)
    benches = parser.add_subparsers(dest="bench", required=True, metavar="BENCHMARK")
    encoder = benches.add_parser(
        "encoder",
        help="this encoder and its peers: speed at equal cosine",
        description=_ENCODER,
        epilog=f"example:\n  {PROGRAM} encoder --texts 500 --peers sentence-transformers,onnxruntime",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = encoder.add_argument
    add("--model", default=DEFAULT_MODEL, metavar="NAME", help=f"a folder, a hub id, or {SHAPE} (random weights)")
    add("--revision", metavar="NAME", help="of a hub model")
    add("--peers", type=_peers, default=tuple(PEERS), metavar="NAMES", help=f"all, none, or of {', '.join(PEERS)}")
    add("--dtype", type=_dtypes, default=DTYPES, metavar="NAMES", help=f"of {', '.join(DTYPES)} (default: both)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add("--texts", type=_positive, metavar="N", help="how many texts (default: 2,000 on a CPU, 20,000 on CUDA)")
    add("--rounds", type=_positive, default=3, metavar="N", help="rounds that count (default: 3)")
    add("--threads", type=_positive, metavar="N", help="cores for everyone (default: 1 on a CPU, all of them on CUDA)")
    add("--no-sweep", dest="sweep", action="store_false", help="leave peers at their usual settings, for a quick look")
    add("--gate", type=_share, default=0.999, metavar="COSINE", help="least cosine to be ranked (default: 0.999)")
    add(
        "--peak",
        type=_amount,
        metavar="TFLOPS",
        help="what the device can do in bfloat16, for MFU (default: by its name)",
    )
    add("--layers", type=_positive, metavar="N", help=f"layers of {SHAPE} (default: 24)")
    add("--vocabulary", type=_positive, metavar="N", help=f"vocabulary of {SHAPE} (default: 262,144)")
    add("--out", type=Path, default=Path("bench-encoder"), metavar="FOLDER", help="for JSON, Markdown and plot")
    add("--venvs", type=Path, default=default_folder(environ), metavar="FOLDER", help="where peers are installed")
    pipeline = benches.add_parser(
        "pipeline",
        help="the pipeline around the encoder: cost, scaling, latency",
        description=_PIPELINE,
        epilog=f"example:\n  {PROGRAM} pipeline --parts plumbing,whole --rounds 1",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = pipeline.add_argument
    add("--parts", type=_parts, default=PARTS, metavar="NAMES", help=f"of {', '.join(PARTS)} (default: all)")
    add("--model", default=DEFAULT_MODEL, metavar="NAME", help=f"a folder, a hub id, or {SHAPE} (random weights)")
    add("--records", type=_positive, default=50_000, metavar="N", help="through the plumbing (default: 50,000)")
    add("--texts", type=_positive, default=3_000, metavar="N", help="through the real encoder (default: 3,000)")
    add("--rounds", type=_positive, default=3, metavar="N", help="of what is compared (default: 3)")
    add("--replicas", type=_positive, default=16, metavar="N", help="the most simulated GPUs (default: 16)")
    add("--call-ms", type=_amount, default=40.0, metavar="MS", help="a simulated GPU's call (default: 40)")
    add("--seconds", type=_seconds, default=20.0, metavar="S", help="for what runs by the clock (default: 20)")
    add("--keys", type=_positive, default=1_000_000, metavar="N", help="in the state (default: 1,000,000)")
    add("--out", type=Path, default=Path("bench-pipeline"), metavar="FOLDER", help="for JSON, Markdown and plots")
    return parser


def _pipeline_options(found: argparse.Namespace) -> PipelineOptions:
    return PipelineOptions(
        parts=found.parts,
        model=found.model,
        records=found.records,
        texts=found.texts,
        rounds=found.rounds,
        replicas=found.replicas,
        call_ms=found.call_ms,
        seconds=found.seconds,
        keys=found.keys,
        out=found.out,
    )


def _encoder_options(found: argparse.Namespace) -> EncoderOptions:
    if found.model != SHAPE and (found.layers or found.vocabulary):
        raise SettingsError(f"--layers and --vocabulary are for --model {SHAPE}")
    if found.vocabulary is not None and found.vocabulary < 16:
        raise SettingsError("--vocabulary is at least 16")
    return EncoderOptions(
        model=found.model,
        revision=found.revision,
        peers=found.peers,
        dtypes=found.dtype,
        device=found.device,
        texts=found.texts,
        rounds=found.rounds,
        threads=found.threads,
        sweep=found.sweep,
        gate=found.gate,
        peak=found.peak * 1e12 if found.peak is not None else None,
        layers=found.layers,
        vocabulary=found.vocabulary,
        out=found.out,
        venvs=found.venvs,
    )


def _peers(text: str) -> tuple[str, ...]:
    if text in ("all", "none"):
        return tuple(PEERS) if text == "all" else ()
    return _names(text, tuple(PEERS), "peer")


def _parts(text: str) -> tuple[str, ...]:
    return _names(text, PARTS, "part")


def _dtypes(text: str) -> tuple[str, ...]:
    return _names(text, DTYPES, "dtype")


def _names(text: str, known: Sequence[str], kind: str) -> tuple[str, ...]:
    """Names behind commas, each once."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(known)}"
            raise argparse.ArgumentTypeError(f"there is no {kind} {name!r}: {hint}")
    if not names:
        raise argparse.ArgumentTypeError(f"a {kind} is needed: choose from {', '.join(known)}")
    return tuple(dict.fromkeys(names))


def _positive(text: str) -> int:
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"a whole number from 1 up is needed, not {text!r}")
    return number


def _share(text: str) -> float:
    number = _number(text)
    if not 0 < number <= 1:
        raise argparse.ArgumentTypeError(f"a number above 0, at most 1, is needed, not {text!r}")
    return number


def _amount(text: str) -> float:
    number = _number(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"a number above 0 is needed, not {text!r}")
    return number


def _seconds(text: str) -> float:
    number = _amount(text)
    if number < 6:
        raise argparse.ArgumentTypeError(f"6 seconds or more are needed, the first few are not counted, not {text!r}")
    return number


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")
