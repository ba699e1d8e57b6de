"""The pipeline around a real encoder, beside the encoder alone.

Comes in: a stage. Goes out: tokens per second of both, and their ratio, round by round; what share of its time the encoder
computes in a pipeline, and how fast it then is, which tells what the pipeline costs from what its neighbours on the machine do; on
a GPU for several numbers of readers, of which one may be too few. Never here: the encoder.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pipelines.bench.pipeline import pinning
from pipelines.bench.pipeline.children import pipeline, run_loop
from pipelines.bench.pipeline.nodes import ENCODER, HEAD, Nodes
from pipelines.bench.pipeline.part import Part, spread
from pipelines.bench.pipeline.stage import TOKENS, Stage
from pipelines.status.companion import Companion
from workers import metrics
from workers.errors import EnvironmentFault

# Before this share of the records is out, the pipeline fills.
WARM = 0.2
# No more than partitions.
READERS_CUDA = (1, 2, 4)


class Run(NamedTuple):
    """A pipeline that is full: tokens per second, the percentage of its time that the encoder computes, its tokens/s then."""

    tokens_per_s: float
    busy: float
    computing: float


def measure(stage: Stage, *, records: int, rounds: int) -> Part:
    """The encoder alone, then Kafka → Ray → encoder → Kafka, in turn; one replica in both, on one core or on the GPU.

    Raises:
        EnvironmentFault: one of them fails.
    """
    from workers.encoder.encoder import has_cuda  # noqa: PLC0415 - heavy

    cuda = has_cuda()
    pool = {"min": 1, "max": 1, "cpus_per_replica": 1, "gpus_per_replica": int(cuda)}
    source = "whole-in"
    stage.fill(source, records)
    alone: list[float] = []
    counts = READERS_CUDA if cuda else (1,)
    whole: dict[int, list[Run]] = {count: [] for count in counts}
    with contextlib.nullcontext() if cuda else pinning.kept_free() as core:
        for number in range(rounds):
            job = {
                "loop": "encoder",
                "records": records,
                "texts": stage.texts,
                "threads": 1,
                "cuda": cuda,
                "core": core,
                "settings": stage.settings(f"whole-{number}", source, pool=pool),
            }
            figures = run_loop(job)
            alone.append(TOKENS * figures["records"] / figures["wall_s"])
            for count in counts:
                name = f"whole-{number}-{count}"
                readers = {"count": count, "cpus": 1 if cuda else 0.5}
                whole[count].append(_run(stage, name, source, records, core, pool=pool, readers=readers))
    return _part(stage.name, records, "on the GPU" if cuda else "on one core", alone, whole)


def _run(stage: Stage, name: str, source: str, records: int, core: int | None, **sections: Mapping[str, Any]) -> Run:
    """A pipeline over all records, its encoder on a core of its own, on a Ray whose readers can be asked what they counted."""
    folder = stage.folder / name
    folder.mkdir()
    with Nodes(folder, cpus=os.cpu_count() or 1) as nodes:
        for node in (HEAD, "a"):
            nodes.start(node)
        settings = stage.settings(name, source, ray={"address": nodes.address}, **sections)
        with pipeline(stage.write(name, settings)), stage.progress(name) as progress:
            companion = Companion(nodes.address)
            try:
                progress.reach(1)
                pinning.pin(core, nodes.pids(ENCODER))
                _counted(companion)  # the first takes a while: it joins Ray
                # From one commit to another: each says when so many records were out.
                begin = progress.reach(int(WARM * records))
                first, before = progress.now(), _counted(companion)
                end = progress.reach(records)
                after = _counted(companion)
            finally:
                companion.close()
    tokens, computed_s, wall_s = (late - early for early, late in zip(before, after, strict=True))
    return Run(TOKENS * (records - first) / (end - begin), 100 * computed_s / wall_s, tokens / computed_s)


def _counted(companion: Companion) -> tuple[float, float, float]:
    """Tokens that were encoded until now, the seconds that encoders computed for them, and now in monotonic seconds.

    Raises:
        EnvironmentFault: the application is not there.
    """
    found = companion.ask()
    if found is None:
        raise EnvironmentFault("the pipeline has ended before it was through")
    return found.total(metrics.TOKENS_ENCODED), found.total(metrics.ENCODER_SECONDS), time.monotonic()


def _part(name: str, records: int, place: str, alone: Sequence[float], whole: Mapping[int, Sequence[Run]]) -> Part:
    shares = {
        count: [100 * run.tokens_per_s / theirs for run, theirs in zip(runs, alone, strict=True)]
        for count, runs in whole.items()
    }
    return Part(
        "whole",
        f"The whole pipeline with {name}",
        ("what runs", "tokens/s", "of the encoder alone", "time at work", "tokens/s at work"),
        [
            (f"the encoder alone, {place}", spread(alone), "100 %", "100 %", spread(alone)),
            *(
                (
                    f"Kafka → {count} {'reader' if count == 1 else 'readers'} → the same encoder {place} → Kafka",
                    spread([run.tokens_per_s for run in runs]),
                    f"{spread(shares[count], 1)} %",
                    f"{spread([run.busy for run in runs], 1)} %",
                    spread([run.computing for run in runs]),
                )
                for count, runs in whole.items()
            ),
        ],
        (
            f"{records:,} JSON records with texts of {TOKENS} tokens, exactly once; medians of {len(alone)} rounds in turn (from "
            "least to most). Broker, readers, Serve and measuring share the machine's other cores.",
            "At work an encoder computes; the rest of its time it waits for a call or unpacks one. What it makes less at work than "
            "alone is what its neighbours take: those on the other cores, and other guests of the machine.",
        ),
        {
            "records": records,
            "tokens_per_s": {
                "alone": list(alone),
                "whole": {str(count): [run.tokens_per_s for run in runs] for count, runs in whole.items()},
            },
            "percent": {str(count): found for count, found in shares.items()},
            "busy_percent": {str(count): [run.busy for run in runs] for count, runs in whole.items()},
            "tokens_per_s_at_work": {str(count): [run.computing for run in runs] for count, runs in whole.items()},
        },
    )
