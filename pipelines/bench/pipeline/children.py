"""Processes that are measured, from the side of whoever measures: one loop, or a whole pipeline.

Comes in: a job, or a settings file. Goes out: a loop's figures, or a running pipeline that has ended when the ``with`` has.
Never here: what they do.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.bench.process import ROOT
from pipelines.loopback import end, end_with_us
from workers.errors import EnvironmentFault
from workers.settings import ENV_PREFIX

LOOPS = [sys.executable, "-P", "-m", "pipelines.bench.pipeline.loops"]
LOOP_S = 900.0
STOP_S = 120.0


def _environ(**more: str) -> dict[str, str]:
    """Ours, without settings: the job or the file holds those that count."""
    kept = {name: value for name, value in os.environ.items() if not (name.startswith(ENV_PREFIX) and "__" in name)}
    return kept | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"} | more


def last_words(said: str) -> str:
    """The last line of what a process has said, for an error."""
    return (said.strip().splitlines() or ["nothing"])[-1][:300]


def run_loop(job: Mapping[str, Any]) -> dict[str, Any]:
    """Run one loop of ``loops`` to its end; its figures.

    Raises:
        EnvironmentFault: it failed, or took too long.
    """
    try:
        done = subprocess.run(  # noqa: S603
            LOOPS,
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
        raise EnvironmentFault(f"the loop {job['loop']} failed: {last_words(done.stderr)}")
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


class Alone:
    """The encoder, and nothing around it, for as long as this is open; ``job`` as :func:`run_loop` takes it."""

    def __init__(self, job: Mapping[str, Any], folder: Path) -> None:
        """It runs, warm, when this returns.

        Raises:
            EnvironmentFault: it fails, or takes too long.
        """
        self._counter = folder / "alone.count"
        self._counter.write_bytes(bytes(8))
        self._errors = (folder / "alone.log").open("w+b")
        wanted = folder / "alone.json"
        wanted.write_text(json.dumps({**job, "counter": str(self._counter)}), encoding="utf-8")
        with wanted.open("rb") as given:
            self._process = subprocess.Popen(  # noqa: S603
                LOOPS,
                stdin=given,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                env=_environ(),
                start_new_session=True,
            )
        self._watchdog = end_with_us(self._process.pid)
        self.pid = self._process.pid
        try:
            self._wait()
        except BaseException:
            self.close()
            raise

    @property
    def texts(self) -> int:
        """How many it has embedded.

        Raises:
            EnvironmentFault: it has ended.
        """
        if self._process.poll() is not None:
            raise EnvironmentFault("the encoder alone has ended before it was told to")
        return int.from_bytes(self._counter.read_bytes(), "little")

    def _wait(self) -> None:
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], LOOP_S)[0]:
            raise EnvironmentFault(f"the encoder alone took longer than {LOOP_S:.0f} s to load")
        if not self._process.stdout.readline():
            self._errors.seek(0)
            words = last_words(self._errors.read().decode(errors="replace"))
            raise EnvironmentFault(f"the encoder alone failed: {words}")

    def close(self) -> None:
        """End it."""
        end(self._process, self._watchdog)
        self._errors.close()
        if self._process.stdout is not None:
            self._process.stdout.close()


@contextlib.contextmanager
def pipeline(config: Path, module: Sequence[str] = ("pipelines", "run"), **environ: str) -> Iterator[int]:
    """``stream-embedder run``, or a ``module`` that takes its options; what it says goes into a file beside ``config``.

    Yields its pid.

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
        yield process.pid
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_S)
        if process.returncode != 0:
            words = last_words(log.read_text(encoding="utf-8", errors="replace"))
            raise EnvironmentFault(f"the pipeline did not drain; its last words are: {words}")
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
