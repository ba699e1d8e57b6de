"""A child process with one engine in it, from the side of whoever asks.

Comes in: requests. Goes out: answers, or an ``EnvironmentFault`` with the reason why there is none. Never here: what the
child does, which is in ``pipelines.bench.child``.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import workers
from workers.errors import EnvironmentFault

ANSWER_S = 3600.0
CHILD = Path(__file__).with_name("child.py")
ROOT = Path(workers.__file__).parents[1]


def environment(environ: Mapping[str, str], threads: int, *, ours: bool) -> dict[str, str]:
    """What a child sees: as many threads as all the others, no hub, and our packages only where they are wanted."""
    kept = {name: value for name, value in environ.items() if name not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    counts = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")
    kept |= dict.fromkeys(counts, str(threads))
    kept |= {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "PYTHONWARNINGS": "ignore"}
    return kept | ({"PYTHONPATH": str(ROOT)} if ours else {})


class Process:
    """Starts with ``with``, and has ended when that has."""

    def __init__(self, python: Path, environ: Mapping[str, str], log: Path) -> None:
        """``log`` takes what the engine says on its own account."""
        # Neither the folder of the script nor the current one is on the path: their names could hide a library's.
        self._command = [str(python), "-P", str(CHILD)]
        self._environ, self._log = dict(environ), log
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        """Start it."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603
                self._command,
                env=self._environ,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                encoding="utf-8",
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it: by itself, or else at once."""
        process = self._process
        if process is None:
            return
        assert process.stdin is not None and process.stdout is not None
        with contextlib.suppress(OSError):
            process.stdin.close()
        try:
            process.wait(5 if error is None else 0.5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()

    def ask(self, timeout_s: float = ANSWER_S, **request: Any) -> dict[str, Any]:
        """Send a request and wait for its answer.

        Raises:
            EnvironmentFault: the engine failed, its process ended, or it took too long.
        """
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        late = threading.Event()

        def give_up() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(timeout_s, give_up)
        timer.daemon = True
        timer.start()
        try:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except OSError:
            line = ""
        finally:
            timer.cancel()
        if late.is_set():
            raise EnvironmentFault(f"no answer within {timeout_s:g} s")
        if not line:
            raise EnvironmentFault(f"its process ended with code {process.wait()}{self._last_words()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise EnvironmentFault(answer["error"])
        return answer

    def _last_words(self) -> str:
        lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return f": {lines[-1].strip()[:200]}" if lines else ""
