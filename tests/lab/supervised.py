"""A pipeline that is started again when it ends by itself, as an orchestrator does."""

from __future__ import annotations

import threading
from typing import Any

from tests.integration.pipeline import Pipeline

PERIOD_S = 0.5


class Supervised(Pipeline):
    """``run`` gives up while it starts and finds no broker; whoever runs it starts it again. ``restarts`` counts that."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.restarts = 0
        self._wanted = False
        self._lock = threading.RLock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look_after, name="supervisor", daemon=True)

    def start(self) -> None:
        with self._lock:
            super().start()
            self._wanted = True
        if not self._thread.ident:
            self._thread.start()

    def kill_everything(self) -> None:
        with self._lock:
            self._wanted = False
            super().kill_everything()

    def terminate(self, timeout: float = 30) -> int:
        with self._lock:
            self._wanted = False
        return super().terminate(timeout)

    def __exit__(self, *about: Any) -> None:
        self._ended.set()
        super().__exit__(*about)

    def _look_after(self) -> None:
        while not self._ended.wait(PERIOD_S):
            with self._lock:
                if self._wanted and self.process is not None and self.process.poll() is not None:
                    self.restarts += 1
                    super().kill_everything()  # what Ray left behind
                    super().start()
