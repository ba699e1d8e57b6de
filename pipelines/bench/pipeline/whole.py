"""The pipeline around a real encoder, beside the encoder alone.

Comes in: a stage. Goes out: tokens per second of both, taking turns, and their ratio, round by round; what share of its time the
encoder computes in a pipeline, and what it makes of its core's time; on a GPU for several numbers of readers, of which one may be
too few. Never here: the encoder.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pipelines.bench.pipeline import pinning
from pipelines.bench.pipeline.children import Alone, pipeline
from pipelines.bench.pipeline.nodes import ENCODER, HEAD, Nodes
from pipelines.bench.pipeline.part import Part, spread
from pipelines.bench.pipeline.stage import TOKENS, Stage
from pipelines.bench.pipeline.turns import TURN_S, Turns, pause
from pipelines.status.companion import Companion
from workers import metrics
from workers.errors import EnvironmentFault

# Before the first share of the records is out, the pipeline fills; after the second it runs dry.
FROM, TO = 0.2, 0.9
# No more than partitions.
READERS_CUDA = (1, 2, 4)


class Run(NamedTuple):
    """Tokens per second of the encoder alone and of a full pipeline, and the share of its time that the latter's computes.

    ``on_core``: the percentage of the pipeline's turns in which the thread that computes had its core; ``per_cpu``: its tokens
    for a second of CPU time, as a percentage of the encoder's alone. The one tells of waiting, the other of slower computing.
    None where no core is kept for it.
    """

    alone: float
    whole: float
    busy: float
    on_core: float | None
    per_cpu: float | None

    @property
    def percent(self) -> float:
        """The pipeline, of the encoder alone."""
        return 100 * self.whole / self.alone


def measure(stage: Stage, *, records: int, rounds: int) -> Part:
    """The encoder alone, and Kafka → Ray → encoder → Kafka, which take turns; one core, or the GPU, computes in both.

    Raises:
        EnvironmentFault: one of them fails.
    """
    from workers.encoder.encoder import has_cuda  # noqa: PLC0415 - heavy

    cuda = has_cuda()
    pool = {"min": 1, "max": 1, "cpus_per_replica": 1, "gpus_per_replica": int(cuda)}
    source = "whole-in"
    stage.fill(source, records)
    found: dict[int, list[Run]] = {count: [] for count in (READERS_CUDA if cuda else (1,))}
    with contextlib.ExitStack() as stack:
        core = None if cuda else stack.enter_context(pinning.kept_free())
        job = {
            "loop": "encoder",
            "texts": stage.texts,
            "threads": 1,
            "cuda": cuda,
            "core": core,
            "settings": stage.settings("whole-alone", source, pool=pool),
        }
        alone = stack.enter_context(contextlib.closing(Alone(job, stage.folder)))
        pause([alone.pid])
        for number in range(rounds):
            for count, runs in found.items():
                name = f"whole-{number}-{count}"
                readers = {"count": count, "cpus": 1 if cuda else 0.5}
                runs.append(_run(stage, name, source, records, alone, core, pool=pool, readers=readers))
    return _part(stage.name, records, "on the GPU" if cuda else "on one core", found)


def _run(
    stage: Stage,
    name: str,
    source: str,
    records: int,
    alone: Alone,
    core: int | None,
    **sections: Mapping[str, Any],
) -> Run:
    """A pipeline over all records, its encoder on a core of its own, on a Ray whose readers can be asked what they counted.

    Serve's and Ray's threads in the encoder's process are not the encoder: they share the other cores.
    """
    folder = stage.folder / name
    folder.mkdir()
    with Nodes(folder, cpus=os.cpu_count() or 1) as nodes:
        for node in (HEAD, "a"):
            nodes.start(node)
        settings = stage.settings(name, source, ray={"address": nodes.address}, **sections)
        with pipeline(stage.write(name, settings)) as driver, stage.progress(name) as progress:
            companion = Companion(nodes.address)
            try:
                progress.reach(1)
                if not (encoders := nodes.pids(ENCODER)):
                    raise EnvironmentFault("no encoder is found among the processes of Ray's nodes")
                computing = pinning.pin_computing(core, encoders)
                bare = [] if core is None else [pinning.Thread(alone.pid, alone.pid)]
                _computed_s(companion)  # the first takes a while: it joins Ray
                # From one commit to another: each says when so many records were out.
                progress.reach(int(FROM * records))
                pids = [driver, *nodes.pids("")]
                computed_s, begin = _computed_s(companion), time.monotonic()
                turns = Turns(pids, [alone.pid])
                out, texts, cpu_s, bare_s = progress.now(), alone.texts, pinning.cpu_s(computing), pinning.cpu_s(bare)
                progress.reach(int(TO * records), wait=turns.wait)
                ours_s, theirs_s = turns.ours_s, turns.theirs_s
                out, texts = progress.now() - out, alone.texts - texts
                cpu_s, bare_s = pinning.cpu_s(computing) - cpu_s, pinning.cpu_s(bare) - bare_s
                # A call that is stopped is under way: its time is longer by that, as the whole is.
                busy = (_computed_s(companion) - computed_s) / (time.monotonic() - begin)
            finally:
                companion.close()
    if not texts:
        raise EnvironmentFault(f"{records:,} texts are too few for two that take turns: give --texts more of them")
    on_core, per_cpu = (
        (100 * cpu_s / ours_s, 100 * (out / cpu_s) / (texts / bare_s)) if cpu_s and bare_s else (None, None)
    )
    return Run(TOKENS * texts / theirs_s, TOKENS * out / ours_s, 100 * busy, on_core, per_cpu)


def _computed_s(companion: Companion) -> float:
    """For how many seconds encoders have computed.

    Raises:
        EnvironmentFault: the application is not there.
    """
    found = companion.ask()
    if found is None:
        raise EnvironmentFault("the pipeline has ended before it was through")
    return found.total(metrics.ENCODER_SECONDS)


def _part(name: str, records: int, place: str, found: Mapping[int, Sequence[Run]]) -> Part:
    alone = [run.alone for runs in found.values() for run in runs]
    rounds = min(map(len, found.values()))
    return Part(
        "whole",
        f"The whole pipeline with {name}",
        ("what runs", "tokens/s", "of the encoder alone", "time at work"),
        [
            (f"the encoder alone, {place}", spread(alone), "100 %", "100 %"),
            *(
                (
                    f"Kafka → {count} {'reader' if count == 1 else 'readers'} → the same encoder {place} → Kafka",
                    spread([run.whole for run in runs]),
                    f"{spread([run.percent for run in runs], 1)} %",
                    f"{spread([run.busy for run in runs], 1)} %",
                )
                for count, runs in found.items()
            ),
        ],
        (
            f"{records:,} JSON records with texts of {TOKENS} tokens, exactly once; medians of {rounds} rounds (from least to "
            f"most). The two take turns of {TURN_S:.0f} s, so that what other guests of the machine do falls on both. Broker, "
            "readers, Serve, also where it is in the encoder's process, and measuring share the machine's other cores.",
            "At work an encoder computes; the rest of its time it waits for a call or unpacks one.",
            *_profile(found),
        ),
        {
            "records": records,
            "tokens_per_s": {
                "alone": {str(count): [run.alone for run in runs] for count, runs in found.items()},
                "whole": {str(count): [run.whole for run in runs] for count, runs in found.items()},
            },
            "percent": {str(count): [run.percent for run in runs] for count, runs in found.items()},
            "busy_percent": {str(count): [run.busy for run in runs] for count, runs in found.items()},
            "on_core_percent": {str(count): [run.on_core for run in runs] for count, runs in found.items()},
            "tokens_per_cpu_s_percent": {str(count): [run.per_cpu for run in runs] for count, runs in found.items()},
        },
    )


def _profile(found: Mapping[int, Sequence[Run]]) -> list[str]:
    """Where the rest has gone, in a sentence; none where no core was kept."""
    runs = [run for each in found.values() for run in each]
    on_core = [run.on_core for run in runs if run.on_core is not None]
    per_cpu = [run.per_cpu for run in runs if run.per_cpu is not None]
    if not on_core:
        return []
    return [
        f"The pipeline's encoder had its core for {spread(on_core, 1)} % of its turns, and made {spread(per_cpu, 1)} % as many "
        "tokens in a second of CPU time as the one alone."
    ]
