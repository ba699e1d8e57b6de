"""``bench pipeline``: its parts one after the other, and what is written of them.

Comes in: options. Goes out: tables on the terminal; Markdown, JSON and plots in a folder. Never here: a measurement.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from pipelines.bench import machine
from pipelines.bench.options import PipelineOptions
from pipelines.bench.pipeline import losses, plumbing, replicas, state, streams, whole
from pipelines.bench.pipeline.part import Part
from pipelines.bench.pipeline.stage import Stage, staged
from pipelines.terminable import terminable

CALLERS = 1


def run_pipeline(options: PipelineOptions, command: str) -> int:
    """Measure, print and write.

    Raises:
        EnvironmentFault: what a part needs is not there, or fails.
    """
    logging.getLogger("kafka").setLevel(logging.CRITICAL)
    before = machine.load()
    parts: list[Part] = []
    with terminable(), staged(options.model) as stage:
        for name in options.parts:
            print(f"measuring: {name}", file=sys.stderr, flush=True)
            part = _measures(stage, options)[name]()
            print(f"\n{part.text()}\n", flush=True)
            parts.append(part)
    about = machine.describe() | {"load": [before, machine.load()]}
    for path in _write(parts, about, command, options.out):
        print(f"written: {path}")
    return 0


def _measures(stage: Stage, options: PipelineOptions) -> dict[str, Callable[[], Part]]:
    return {
        "plumbing": lambda: plumbing.measure(stage, records=options.records, rounds=options.rounds),
        "growth": lambda: plumbing.growth(stage, records=options.records // 2),
        "whole": lambda: whole.measure(stage, records=options.texts, rounds=options.rounds),
        "replicas": lambda: replicas.measure(
            most=options.replicas, call_ms=options.call_ms, seconds=options.seconds, callers=CALLERS
        ),
        "hot": lambda: streams.hot_partition(stage, records=options.records // 5, rounds=options.rounds),
        "latency": lambda: streams.latency(stage, seconds=options.seconds),
        "losses": lambda: losses.measure(stage, seconds=options.seconds),
        "state": lambda: state.measure(stage, keys=options.keys),
    }


def _write(parts: list[Part], about: dict[str, object], command: str, folder: Path) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    values = {"command": command, "machine": about, "parts": {part.name: part.values for part in parts}}
    files = [folder / "pipeline.json", folder / "pipeline.md"]
    files[0].write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    loads = about["load"]
    assert isinstance(loads, list)
    flags = about["cpu_flags"]
    head = (
        f"```\n{command}\n```\n\nOn {about['cpu']} ({', '.join(flags) if isinstance(flags, list) else flags}), "
        f"{about['cores']} cores; load average {loads[0]} before, {loads[1]} after.\n\n"
    )
    files[1].write_text(head + "\n\n".join(part.markdown() for part in parts) + "\n", encoding="utf-8")
    curves = [part for part in parts if part.curve is not None]
    if not curves:
        return files
    if find_spec("matplotlib") is None:
        print("no plot, for matplotlib is not installed: pip install 'stream-embedder[plots]'", file=sys.stderr)
        return files
    from pipelines.bench.pipeline.plot import draw  # noqa: PLC0415 - not installed everywhere

    return files + [path for part in curves for path in draw(part, folder)]
