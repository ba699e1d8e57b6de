"""``bench encoder``: this encoder beside every peer, on the same texts, cores and weights, at equal cosine.

Comes in: options. Goes out: a table on standard output; JSON, Markdown and a plot in a folder; progress on standard error.
Never here: an engine in this process.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from pipelines.bench import machine
from pipelines.bench.engines import OURS, PEERS, baseline, contenders
from pipelines.bench.environments import Environments
from pipelines.bench.flops import peak_of
from pipelines.bench.job import Job, prepare
from pipelines.bench.options import EncoderOptions
from pipelines.bench.process import environment
from pipelines.bench.race import Entrant, Race
from pipelines.bench.report import Report
from pipelines.bench.score import Result
from workers.errors import EnvironmentFault

EXPORT_S = 1800.0


def run_encoder(options: EncoderOptions, environ: Mapping[str, str], command: str) -> int:
    """Measure, print, write.

    Args:
        options: the command line.
        environ: for what is installed and started.
        command: the command line, as the report repeats it.

    Raises:
        SettingsError: the options contradict the machine.
        EnvironmentFault: no model, no device, no folder to write to, or not one engine that runs.
    """
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EnvironmentFault(f"--out {options.out} cannot be made ({error.strerror})") from None
    with tempfile.TemporaryDirectory(prefix="stream-embedder-bench-") as work:
        report = _measure(options, environ, command, Path(work))
    print(report.text())
    print("\nwritten: " + ", ".join(str(path) for path in _write(report, options.out)))
    return 0


def _measure(options: EncoderOptions, environ: Mapping[str, str], command: str, work: Path) -> Report:
    before = machine.load()
    job = prepare(options, work)
    left_out: dict[str, str] = {}
    entrants = _entrants(options, environ, job, left_out)
    race = Race(job, options.rounds, options.sweep, environ, left_out)
    results = race.run(entrants)
    if not results:
        raise EnvironmentFault("not one engine runs: " + "; ".join(f"{name}: {why}" for name, why in left_out.items()))
    return Report(
        command=command,
        model=job.model,
        dim=job.layout.dim,
        max_tokens=job.layout.max_tokens,
        device=race.device,
        threads=job.threads,
        texts=len(job.lengths),
        tokens=job.tokens,
        digest=job.digest,
        gate=job.gate,
        reference=race.reference,
        machine=machine.describe() | {"load": [before, machine.load()]},
        results=results,
        baseline=_baseline(results, options.dtypes, cuda=job.cuda),
        left_out=left_out,
        seconds=race.seconds,
        counted="wall seconds" if job.cuda else "CPU seconds",
        flops=job.flops,
        peak=options.peak or (peak_of(race.device) if job.cuda else None),
    )


def _entrants(options: EncoderOptions, environ: Mapping[str, str], job: Job, left_out: dict[str, str]) -> list[Entrant]:
    """Who takes part, with an environment; reasons of the others go to ``left_out``."""
    environments = Environments(options.venvs, environ)
    chosen = contenders(options.peers, options.dtypes, cuda=job.cuda)
    for name in options.peers:
        if not any(contender.engine.name == name for contender in chosen):
            why = "it runs on the CPU only here" if job.cuda else f"it has none of {', '.join(options.dtypes)}"
            left_out[name] = why
    pythons: dict[str, Path] = {}
    for engine in dict.fromkeys(contender.engine for contender in chosen):
        try:
            pythons[engine.name] = environments.python(engine)
        except EnvironmentFault as error:
            left_out[engine.name] = str(error)
    readers = [name for name in pythons if name != OURS.name and PEERS[name].needs_onnx]
    if readers:
        try:
            _export(environments, environ, job)
        except EnvironmentFault as error:
            for name in readers:
                left_out[name] = str(error)
                del pythons[name]
    return [
        Entrant(contender, pythons[contender.engine.name]) for contender in chosen if contender.engine.name in pythons
    ]


def _export(environments: Environments, environ: Mapping[str, str], job: Job) -> None:
    """Write the model as ONNX into the working folder."""
    python = environments.exporter()
    print("exporting the model to ONNX", file=sys.stderr, flush=True)
    command = [str(python), "-P", "-m", "pipelines.bench.export", str(job.layout.folder), str(job.work / "onnx")]
    try:
        done = subprocess.run(  # noqa: S603
            command,
            env=environment(environ, job.threads, ours=True),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=EXPORT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise EnvironmentFault(f"the export to ONNX took longer than {EXPORT_S:.0f} s") from None
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or ["no reason given"]
        raise EnvironmentFault(f"the model cannot be exported to ONNX: {lines[-1].strip()[:200]}")


def _baseline(results: Sequence[Result], dtypes: Sequence[str], *, cuda: bool) -> Result:
    """What all are measured against: sentence-transformers, or else the first of ours."""
    wanted = baseline(dtypes, cuda=cuda)
    for result in results:
        found = (result.engine, result.dtype, result.setting)
        if found == (wanted.engine.name, wanted.dtype, wanted.setting):
            return result
    return results[0]


def _write(report: Report, folder: Path) -> list[Path]:
    """JSON, Markdown, and the plot where matplotlib is."""
    values = json.dumps(report.values(), indent=1, ensure_ascii=False)
    files = [folder / "encoder.json", folder / "encoder.md"]
    files[0].write_text(values + "\n", encoding="utf-8")
    files[1].write_text(report.markdown(), encoding="utf-8")
    if find_spec("matplotlib") is None:
        print("no plot, for matplotlib is not installed: pip install 'stream-embedder[plots]'", file=sys.stderr)
        return files
    from pipelines.bench.plot import draw  # noqa: PLC0415 - not installed everywhere

    return files + draw(report, folder)
