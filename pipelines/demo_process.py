"""The pipeline that the demo shows: ``stream-embedder run`` in a process of its own, ended however the demo ends.

Comes in: a settings file. Goes out: a running process, drained at the end. Never here: what it reads or writes.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from workers.errors import EnvironmentFault
from workers.settings import ENV_PREFIX

STOP_S = 90.0  # Ray's start cannot be interrupted, and takes half a minute on a busy machine


@contextlib.contextmanager
def running_pipeline(config: Path) -> Iterator[subprocess.Popen[bytes]]:
    """``stream-embedder run``, which writes to our own standard error; it has ended when the ``with`` has."""
    # The file holds every setting that counts; the environment's would win over it.
    environ = {name: value for name, value in os.environ.items() if not (name.startswith(ENV_PREFIX) and "__" in name)}
    # In a process group of its own: a Ctrl-C is for us, and reaches the pipeline as SIGTERM.
    command = [sys.executable, "-m", "pipelines", "run", "-c", str(config)]
    process = subprocess.Popen(command, env=environ, process_group=0)  # noqa: S603
    try:
        yield process
    finally:
        try:
            if process.poll() is None:
                print("\nstopping: the pipeline drains; a second Ctrl-C kills it", flush=True)
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(STOP_S)
        finally:
            # What is left of the group after a drain is nothing; after a crash, or a second Ctrl-C, it is Ray.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def drain(process: subprocess.Popen[bytes], patience_s: float) -> None:
    """Stop the pipeline with SIGTERM; EnvironmentFault unless it ends well within ``patience_s``."""
    process.terminate()
    try:
        code = process.wait(patience_s)
    except subprocess.TimeoutExpired:
        raise EnvironmentFault(f"the pipeline did not drain within {patience_s:.0f} s of SIGTERM") from None
    if code != 0:
        raise EnvironmentFault(f"the pipeline ended with exit code {code} on SIGTERM; what it said stands above")
