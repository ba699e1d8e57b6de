"""What a run was worth: GPU-hours, how long records waited, how long backlogs took to drain, how often it changed its mind.

Comes in: runs. Goes out: figures. Never here: words.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipelines.simulator.curves import TICK_S, TOKENS_PER_S
from pipelines.simulator.world import Run

# Less than this many seconds of arrivals, or of one replica's work, is no backlog.
FLOW_S = 5.0
# A scaler has this long to see a change and to order all that it takes; then nodes start.
REACTION_S = 30.0


@dataclass(frozen=True, slots=True)
class Score:
    """A run's figures. Times in seconds; ``drains``: for each mark, from when nodes can be ready; inf: not before the end."""

    gpu_hours: float
    drains: tuple[float, ...]
    lag_p99_s: float
    events: int
    peak: int
    left: float

    @property
    def slowest(self) -> float | None:
        """The slowest drain; None where the curve has no mark."""
        return max(self.drains, default=None)


def score(run: Run) -> Score:
    """Score a run."""
    return Score(
        gpu_hours=float(run.paid.sum()) * TICK_S / 3600,
        drains=tuple(_drain(run, mark) for mark in run.curve.marks),
        lag_p99_s=_lag(run, 99.0),
        events=int(np.count_nonzero(np.diff(run.target, prepend=run.curve.initial))),
        peak=int(run.target.max()),
        left=float(run.backlog[-1]),
    )


def _drain(run: Run, mark: float) -> float:
    """Seconds from when the nodes that a scaler orders within the reaction time are ready, to when the backlog is gone."""
    ready = mark + REACTION_S + run.curve.starts_s
    first = min(int(ready / TICK_S), len(run.target) - 1)
    arrivals = run.curve.load * TOKENS_PER_S
    gone = run.backlog <= FLOW_S * np.maximum(arrivals, TOKENS_PER_S)
    found = np.flatnonzero(gone[first:])
    return float(found[0]) * TICK_S if len(found) else float("inf")


def _lag(run: Run, percentile: float) -> float:
    """Seconds that records wait, first in, first out; of those that had their turn before the end."""
    came, went = np.cumsum(run.arrived), np.cumsum(run.served)
    if went[-1] <= 0:
        return 0.0
    quantiles = np.linspace(0.0, went[-1], 20_001)[1:]
    ticks = np.arange(len(came), dtype=float)
    # With flat stretches in either curve the first tick that reaches an amount is the one that counts.
    arrival = np.interp(quantiles, *_rising(came, ticks))
    service = np.interp(quantiles, *_rising(went, ticks))
    return float(np.percentile(np.maximum(0.0, service - arrival), percentile)) * TICK_S


def _rising(amounts: np.ndarray, ticks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    rises = np.diff(amounts, prepend=0.0) > 0
    return amounts[rises], ticks[rises]
