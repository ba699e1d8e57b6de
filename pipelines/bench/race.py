"""The comparison itself: everyone's best setting, then everyone in turn, several times.

Comes in: a job, and who takes part. Goes out: results, and reasons for those that dropped out. Never here: installing, or
what a result is called.

    1. Each engine looks for its best setting, in a process that is thrown away: a large batch would stay in its memory.
    2. All are loaded, each in a process of its own, all on the same cores. Only one ever works.
    3. One round that is not counted. It warms up, and gives the vectors of the reference.
    4. The rounds: everyone over all texts, one after another, a different one first each time.
    5. On CUDA one more pass under the profiler, for the share of time in which the GPU idles.
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.bench.engines import OURS, SENTENCE_TRANSFORMERS, Contender, Engine
from pipelines.bench.flops import busy_seconds
from pipelines.bench.job import Job
from pipelines.bench.process import Process, environment
from pipelines.bench.score import Cosine, Result, Round, climb, cosine, worst
from workers.errors import EnvironmentFault
from workers.records import type_vectors

# Ours runs at what a pipeline has by default: pool.max_batch_tokens.
BATCH_TOKENS_CPU, BATCH_TOKENS_CUDA = 4096, 16384
LOAD_S = 900.0


@dataclass(frozen=True, slots=True)
class Entrant:
    """A contender, and the interpreter of its environment."""

    contender: Contender
    python: Path


@dataclass(slots=True)
class _Runner:
    """An entrant at its setting, loaded, and what it has done so far."""

    entrant: Entrant
    setting: int
    label: str
    tried: dict[int, float]
    process: Process
    versions: dict[str, str] = field(default_factory=dict)
    rounds: list[Round] = field(default_factory=list)
    cosines: list[Cosine] = field(default_factory=list)
    gpu_idle: float | None = None

    @property
    def name(self) -> str:
        return f"{self.entrant.contender.name}, {self.label}"


@dataclass(slots=True)
class Race:
    """Runs once. ``left_out`` fills with the reasons of those that cannot take part."""

    job: Job
    rounds: int
    sweep: bool
    environ: Mapping[str, str]
    left_out: dict[str, str] = field(default_factory=dict)
    reference: str = ""
    device: str = "cpu"
    _numbers: int = 0

    def run(self, entrants: Sequence[Entrant]) -> list[Result]:
        """The results of all that reached the end, in the order of the entrants."""
        with contextlib.ExitStack() as stack:
            runners = self._loaded(entrants, stack)
            vectors = {}
            for runner in list(runners):
                _say(f"warm-up: {runner.name}")
                if (found := self._pass(runner, runners)) is not None:
                    vectors[runner.name] = found[1]
            if not runners:
                return []
            reference = self._reference(entrants, runners, vectors)
            for runner in list(runners):
                self._compare(runner, runners, reference, vectors[runner.name])
            for number in range(self.rounds):
                first = number * len(runners) // self.rounds
                for runner in [*runners[first:], *runners[:first]]:
                    _say(f"round {number + 1} of {self.rounds}: {runner.name}")
                    if (found := self._pass(runner, runners)) is not None:
                        runner.rounds.append(found[0])
                        self._compare(runner, runners, reference, found[1])
            if self.job.cuda:
                for runner in runners:
                    runner.gpu_idle = self._idle(runner)
        return [_result(runner) for runner in runners]

    # ---- settings

    def _loaded(self, entrants: Sequence[Entrant], stack: contextlib.ExitStack) -> list[_Runner]:
        runners: list[_Runner] = []
        for entrant in entrants:
            contender = entrant.contender
            try:
                setting, tried = self._setting(entrant)
                label = _label(contender.engine, setting, best=bool(tried))
                twin = [runner for runner in runners if _same(runner, contender, setting)]
                if twin:  # the baseline's setting is the engine's best
                    twin[0].label, twin[0].tried = label, tried
                    continue
                _say(f"loading: {contender.name}, {label}")
                process = stack.enter_context(self._process(entrant))
                answer = self._load(process, contender, setting)
                runners.append(_Runner(entrant, setting, label, tried, process, answer["versions"]))
                self.device = answer["device"]
            except EnvironmentFault as error:
                self.left_out[contender.name] = str(error)
        return runners

    def _setting(self, entrant: Entrant) -> tuple[int, dict[int, float]]:
        """The contender's own, or the best by a sweep over a part of the texts, the better of two passes each."""
        contender = entrant.contender
        engine = contender.engine
        if engine is OURS:
            return (BATCH_TOKENS_CUDA if self.job.cuda else BATCH_TOKENS_CPU), {}
        if contender.setting is not None or not self.sweep:
            return contender.setting or engine.start, {}
        failed: list[EnvironmentFault] = []
        with self._process(entrant) as process:
            self._load(process, contender, engine.start)

            def cost(rung: int) -> float:
                _say(f"trying: {contender.name}, {_label(engine, rung)}")
                try:
                    rounds = [self._encode(process, self.job.sweep_texts, rung)[0] for _ in range(2)]
                except EnvironmentFault as error:
                    failed.append(error)  # out of memory, as a rule: this setting is not for it
                    return math.inf
                return min(map(self.seconds, rounds))

            best, tried = climb(engine.ladder, engine.start, cost)
        if math.isinf(tried[best]):
            raise failed[0]
        return best, {rung: took for rung, took in sorted(tried.items()) if math.isfinite(took)}

    @property
    def seconds(self) -> Callable[[Round], float]:
        """What counts: CPU seconds on a CPU, which other processes disturb least; on CUDA the wall's."""
        return wall_seconds if self.job.cuda else cpu_seconds

    # ---- the child's requests

    def _process(self, entrant: Entrant) -> Process:
        self._numbers += 1
        environ = environment(self.environ, self.job.threads, ours=entrant.contender.engine is OURS)
        return Process(entrant.python, environ, self.job.work / f"{self._numbers}-{entrant.contender.engine.name}.log")

    def _load(self, process: Process, contender: Contender, setting: int) -> dict[str, Any]:
        return process.ask(
            LOAD_S,
            do="load",
            engine=contender.engine.name,
            model=str(self.job.layout.folder),
            dtype=contender.dtype,
            device=self.job.device,
            threads=self.job.threads,
            cores=list(self.job.cores),
            setting=setting,
            onnx=str(self.job.work / "onnx"),
            dim=self.job.layout.dim,
            padding_id=int(self.job.config.get("pad_token_id") or 0),
        )

    def _encode(self, process: Process, texts: Path, setting: int, **more: Any) -> tuple[Round, type_vectors]:
        path = self.job.work / "vectors.npy"
        answer = process.ask(do="encode", texts=str(texts), setting=setting, vectors=str(path), **more)
        names = Round.__dataclass_fields__
        return Round(**{name: value for name, value in answer.items() if name in names}), np.load(path)

    def _pass(self, runner: _Runner, runners: list[_Runner]) -> tuple[Round, type_vectors] | None:
        """All texts once; None where that failed, and the engine is out of the race."""
        try:
            return self._encode(runner.process, self.job.texts, runner.setting)
        except EnvironmentFault as error:
            runners.remove(runner)
            self.left_out[runner.name] = str(error)
            return None

    def _compare(self, runner: _Runner, runners: list[_Runner], reference: type_vectors, vectors: type_vectors) -> None:
        """Hold a pass against the reference; vectors of another shape end the race for an engine."""
        try:
            runner.cosines.append(cosine(reference, vectors))
        except ValueError as error:
            runners.remove(runner)
            self.left_out[runner.name] = str(error)

    def _reference(
        self, entrants: Sequence[Entrant], runners: Sequence[_Runner], vectors: Mapping[str, type_vectors]
    ) -> type_vectors:
        """float32 vectors of sentence-transformers, or of ours where it does not take part; in an extra pass if need be."""
        for engine in (SENTENCE_TRANSFORMERS, OURS):
            self.reference = f"{engine.name} float32"
            for runner in runners:
                if runner.entrant.contender.name == self.reference:
                    return vectors[runner.name]
            for entrant in entrants:
                if entrant.contender.engine is engine:
                    _say(f"reference: {self.reference}")
                    extra = Entrant(Contender(engine, "float32", entrant.contender.setting), entrant.python)
                    with contextlib.suppress(EnvironmentFault), self._process(extra) as process:
                        setting, _ = self._setting(extra) if engine is OURS else (engine.start, {})
                        self._load(process, extra.contender, setting)
                        return self._encode(process, self.job.texts, setting)[1]
        raise EnvironmentFault("no engine gave the float32 vectors that all are held against")

    def _idle(self, runner: _Runner) -> float | None:
        """The share of a pass in which no kernel ran; None where the profiler does not say."""
        _say(f"profiling: {runner.name}")
        trace = self.job.work / "trace.json"
        try:
            found, _ = self._encode(runner.process, self.job.sweep_texts, runner.setting, trace=str(trace))
            events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
        except (EnvironmentFault, OSError, ValueError, KeyError):
            return None
        finally:
            trace.unlink(missing_ok=True)
        busy = busy_seconds(events)
        return max(0.0, 1 - busy / found.wall_s) if busy > 0 else None


def wall_seconds(found: Round) -> float:
    """The round's wall seconds."""
    return found.wall_s


def cpu_seconds(found: Round) -> float:
    """The round's CPU seconds."""
    return found.cpu_s


def _same(runner: _Runner, contender: Contender, setting: int) -> bool:
    other = runner.entrant.contender
    return other.engine is contender.engine and other.dtype == contender.dtype and runner.setting == setting


def _label(engine: Engine, setting: int, *, best: bool = False) -> str:
    counted = f"batch {setting}" if engine.unit == "batch" else f"{setting:,} tokens"
    return f"{counted} (its best)" if best else counted


def _result(runner: _Runner) -> Result:
    contender = runner.entrant.contender
    return Result(
        engine=contender.engine.name,
        dtype=contender.dtype,
        setting=runner.setting,
        label=runner.label,
        ours=contender.engine is OURS,
        rounds=tuple(runner.rounds),
        cosine=worst(runner.cosines),
        versions=runner.versions,
        tried=runner.tried,
        gpu_idle=runner.gpu_idle,
    )


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)
