"""Servers that a test starts, each with a log of its own, and their end."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.loopback import end, end_with_us


class Programs:
    """What runs until :meth:`end`, or until this process ends in whatever way. Logs lie in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._running: list[tuple[subprocess.Popen[bytes], Any]] = []

    def start(self, program: Path, *arguments: str, environ: Mapping[str, str] | None = None) -> None:
        """Start one, and return at once."""
        with (self.folder / f"{program.name}.log").open("ab") as log:
            process = subprocess.Popen(
                [program, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, **(environ or {})},
            )
        self._running.append((process, end_with_us(process.pid)))

    @property
    def one_has_ended(self) -> bool:
        """Whether that is so of any."""
        return any(process.poll() is not None for process, _ in self._running)

    def said(self) -> str:
        """The end of what each has said."""
        return "\n".join(path.read_text(errors="replace")[-1000:] for path in sorted(self.folder.glob("*.log")))

    def end(self) -> None:
        """End them, the last one first."""
        while self._running:
            end(*self._running.pop())
