"""A pipeline that is started again when it ends by itself, as an orchestrator does, and whose ends and logs are kept.

Comes in: what a pipeline needs, and the chronicle of what is done to it. Goes out: a running pipeline, its exits, and its
sessions of Ray. Never here: whether an exit is a fault of its own.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.integration.pipeline import Pipeline
from tests.lab.chronicle import Chronicle, Outage
from tests.lab.logs import Crash, Session, crashes
from tests.lab.memory import Limit

PERIOD_S = 0.5
READER = "ServeReplica:stream-embedder:Reader"
ENCODER = "ServeReplica:stream-embedder:Encoder"
CONTROLLER = "ServeController"
# What the command says when it gives up.
SENTENCE = "stand_in: "


@dataclass(frozen=True, slots=True)
class Exit:
    """An end that nobody asked for. ``code`` is negative for a signal; times are of the clock on the wall."""

    code: int
    began: float
    ended: float
    words: str


class Supervised(Pipeline):
    """``run`` may give up while it starts and finds no broker; whoever runs it starts it again. ``exits`` has each."""

    def __init__(
        self, folder: Path, settings: Mapping[str, Any], module: str, chronicle: Chronicle, limit: Limit | None = None
    ) -> None:
        """``limit``: of the machine's memory, for its Ray."""
        super().__init__(folder, settings, module)
        self.exits: list[Exit] = []
        # Ray's sockets lie in it, and a socket's path has 107 bytes at most.
        self.ray = Path(tempfile.mkdtemp(prefix="lab-", dir="/tmp"))
        self.limit = limit
        self._chronicle = chronicle
        self._ends: dict[Path, int] = {}
        self._began = time.time()
        self._written = 0
        self._wanted = False
        self._lock = threading.RLock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look_after, name="supervisor", daemon=True)

    def start(self) -> None:
        with self._lock:
            self._start()
            self._wanted = True
        if not self._thread.ident:
            self._thread.start()

    def kill_everything(self) -> None:
        with self._lock:
            self._wanted = False
            self._end()

    def terminate(self, timeout: float = 30) -> int:
        with self._lock:
            self._wanted = False
        return super().terminate(timeout)

    def __exit__(self, *about: Any) -> None:
        self._ended.set()
        super().__exit__(*about)

    # ---- what is left of it

    def sessions(self) -> list[Session]:
        """Each start of Ray."""
        return [Session(folder, self._ends) for folder in sorted(self.ray.glob("ray/session_2*"))]

    def crashes(self) -> list[Crash]:
        """All that broke, by the log of ``run`` and by those of its Ray."""
        found = crashes(self.log, self.log.name, driver=True) if self.log.exists() else []
        return found + [crash for session in self.sessions() for crash in session.crashes()]

    def lost_readers(self) -> set[int]:
        """Process ids of readers that ended before their driver did."""
        return set().union(*(session.actors(READER) & session.ended() for session in self.sessions()))

    def unfinished_readers(self) -> dict[int, set[int]]:
        """Process ids of controllers, and of the readers that a successor took for half built and ended, of that session."""
        return {
            controller: session.unfinished() for session in self.sessions() for controller in session.actors(CONTROLLER)
        }

    def short_of_memory(self) -> set[int]:
        """Process ids of what Ray killed for want of memory."""
        return set().union(*(session.short_of_memory() for session in self.sessions()))

    def drop_logs(self, keep: Path | None = None) -> None:
        """Remove what Ray left behind; its logs go to the folder ``keep``, where one is given."""
        if keep is not None:
            for session in self.sessions():
                shutil.copytree(session.folder / "logs", keep / session.folder.name, dirs_exist_ok=True)
        shutil.rmtree(self.ray, ignore_errors=True)

    # ---- under the lock

    def _start(self) -> None:
        self.environment = {"RAY_TMPDIR": str(self.ray)} | (self.limit.environment() if self.limit else {})
        self._began, self._written = time.time(), self.log.stat().st_size if self.log.exists() else 0
        super().start()

    def _end(self) -> None:
        """Kill it all. What its processes write while others of them are killed says nothing of them."""
        for file in (self.ray / "ray").glob("session_2*/logs/**/*"):
            if file.is_file():
                self._ends.setdefault(file, file.stat().st_size)
        super().kill_everything()

    def _look_after(self) -> None:
        while not self._ended.wait(PERIOD_S):
            with self._lock:
                if not self._wanted or self.process is None:
                    continue
                pressed = self.limit is not None and self.limit.others_press(len(self.short_of_memory()))
                if pressed:
                    self._chronicle.outages.append(Outage("memory", self._began, time.time()))
                if (code := self.process.poll()) is not None:
                    self.exits.append(Exit(code, self._began, time.time(), self._last_words()))
                elif pressed:
                    self._chronicle.notes.append("started again: others had taken the memory that its limit left it")
                else:
                    continue
                self._end()  # what Ray left behind
                self._start()

    def _last_words(self) -> str:
        """From its last sentence on, or its last line."""
        with self.log.open("rb") as log:
            log.seek(self._written)
            lines = [line for line in log.read().decode(errors="replace").splitlines() if line.strip()]
        sentences = [number for number, line in enumerate(lines) if line.startswith(SENTENCE)]
        return "\n".join(lines[sentences[-1] if sentences else -1 :])
