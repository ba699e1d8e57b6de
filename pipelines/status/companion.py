"""The process that looks at Ray for us: started when it is first asked, ended with us.

Comes in: an address. Goes out: what Ray says, as a value. Never here: Ray itself (``ray_side``).
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from workers import metrics
from workers.errors import EnvironmentFault

# What it takes to leave Ray.
LEAVE_S = 3.0


@dataclass(frozen=True, slots=True)
class Report:
    """What a reader says: its name in the group, and what it counts."""

    client: str
    stats: Mapping[str, float] = field(default_factory=dict)

    def total(self, *wanted: metrics.Metric) -> float:
        """Metrics added up, over their labels."""
        return sum(
            value
            for name, value in self.stats.items()
            for metric in wanted
            if name == metric.name or name.startswith(metric.name + "{")
        )

    @property
    def last_commit(self) -> float | None:
        """Unix time; None: none yet."""
        return self.stats.get(metrics.LAST_COMMIT.name)


@dataclass(frozen=True, slots=True)
class Replicas:
    """How many of a deployment take calls, and how many are on their way."""

    ready: int
    starting: int

    @classmethod
    def of(cls, states: Mapping[str, int]) -> Replicas:
        """From Serve's states; a replica that stops is neither."""
        return cls(
            states.get("RUNNING", 0), sum(states.get(state, 0) for state in ("STARTING", "UPDATING", "RECOVERING"))
        )


@dataclass(frozen=True, slots=True)
class Application:
    """The Serve application. ``scaling``: ``target``, ``need``, ``reason``, ``since`` (Unix time); None: of a fixed size."""

    status: str
    readers: Replicas
    encoders: Replicas
    said: str | None = None
    reports: tuple[Report, ...] = ()
    scaling: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> Application:
        """From an answer of ``ray_side``."""
        decisions = [report["scaling"] for report in found["reports"] if report["scaling"] is not None]
        return cls(
            status=found["status"],
            readers=Replicas.of(found["readers"]),
            encoders=Replicas.of(found["encoders"]),
            said=found["said"],
            reports=tuple(Report(report["client"], report["stats"]) for report in found["reports"]),
            scaling=max(decisions, key=lambda decision: float(decision["since"]), default=None),
        )

    @property
    def last_commit(self) -> float | None:
        """Of any reader, Unix time."""
        return max((report.last_commit for report in self.reports if report.last_commit is not None), default=None)

    def total(self, *wanted: metrics.Metric) -> float:
        """Over all readers."""
        return sum(report.total(*wanted) for report in self.reports)


class Companion:
    """Blocks while it is asked: who asks does so on a thread that may wait."""

    def __init__(
        self, address: str, command: Sequence[str] = (sys.executable, "-m", "pipelines.status.ray_side")
    ) -> None:
        """Nothing is started yet."""
        self._address = address
        self._command = command
        self._process: subprocess.Popen[str] | None = None
        self._joined = False

    def ask(self) -> Application | None:
        """The application; None where Ray runs none.

        Raises:
            EnvironmentFault: Ray or Serve does not answer.
        """
        if self._process is None:
            self._process = subprocess.Popen(  # noqa: S603
                [*self._command, self._address],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                start_new_session=True,  # a Ctrl-C is ours to pass on
            )
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write("\n")
            process.stdin.flush()
        except OSError:
            pass  # it has gone; what it said before is read all the same
        found: dict[str, Any] = {}
        with contextlib.suppress(ValueError):
            found = json.loads(process.stdout.readline())
        if "application" not in found:
            self.close()
            raise EnvironmentFault(
                found.get("error") or f"the look at Ray ended (Ray at {self._address} may have gone)"
            )
        self._joined = True
        return None if found["application"] is None else Application.of(found["application"])

    def close(self) -> None:
        """Leave Ray."""
        process, self._process = self._process, None
        joined, self._joined = self._joined, False
        if process is None:
            return
        if not joined:
            process.kill()  # nothing to leave, and it may be stuck
        with contextlib.suppress(OSError):
            if process.stdin is not None:
                process.stdin.close()
        try:
            process.wait(LEAVE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()
