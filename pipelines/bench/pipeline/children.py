"""Processes that are measured, from the side of whoever measures: one loop, or a whole pipeline.

Comes in: a job, or a settings file. Goes out: a loop's figures, or a running pipeline that has ended when the ``with`` has.
Never here: what they do.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.bench.process import ROOT
from workers.errors import EnvironmentFault
from workers.settings import ENV_PREFIX

LOOP_S = 900.0
STOP_S = 120.0


def _environ(**more: str) -> dict[str, str]:
    """Ours, without settings: the job or the file holds those that count."""
    kept = {name: value for name, value in os.environ.items() if not (name.startswith(ENV_PREFIX) and "__" in name)}
    return kept | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"} | more


def run_loop(job: Mapping[str, Any]) -> dict[str, Any]:
    """Run one loop of ``loops`` to its end; its figures.

    Raises:
        EnvironmentFault: it failed, or took too long.
    """
    command = [sys.executable, "-P", "-m", "pipelines.bench.pipeline.loops"]
    try:
        done = subprocess.run(  # noqa: S603
            command,
            input=json.dumps(job),
            capture_output=True,
            text=True,
            env=_environ(),
            timeout=LOOP_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise EnvironmentFault(f"the loop {job['loop']} took longer than {LOOP_S:.0f} s") from None
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or ["no reason given"]
        raise EnvironmentFault(f"the loop {job['loop']} failed: {lines[-1][:300]}")
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


@contextlib.contextmanager
def pipeline(config: Path, module: Sequence[str] = ("pipelines", "run"), **environ: str) -> Iterator[None]:
    """``stream-embedder run``, or a ``module`` that takes its options; what it says goes into a file beside ``config``.

    Raises:
        EnvironmentFault: it did not drain.
    """
    log = config.with_suffix(".log")
    with log.open("ab") as out:
        process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-P", "-m", *module, "-c", str(config)],
            stdout=out,
            stderr=out,
            stdin=subprocess.DEVNULL,
            env=_environ(**environ),
            process_group=0,
        )
    try:
        yield
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_S)
        if process.returncode != 0:
            words = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["nothing"]
            raise EnvironmentFault(f"the pipeline did not drain; its last words are: {words[-1][:300]}")
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
