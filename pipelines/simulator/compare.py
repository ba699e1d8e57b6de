"""Every scaler on every curve.

Comes in: curves and a drain target. Goes out: runs and scores, with the clairvoyant's cost beside them. Never here: words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from pipelines.simulator.clairvoyant import clairvoyant
from pipelines.simulator.curves import Curve, type_series
from pipelines.simulator.scalers import LagProportional, ServeDefault, TokenBacklog
from pipelines.simulator.score import Score, score
from pipelines.simulator.world import Run, simulate

OURS, SERVE, KEDA = TokenBacklog.name, ServeDefault.name, LagProportional.name


@dataclass(frozen=True, slots=True)
class Result:
    """A curve under each scaler, by name; ``best_hours`` and ``best`` [ticks] are the clairvoyant's GPU-hours and replicas."""

    curve: Curve
    best_hours: float
    best: type_series
    runs: dict[str, Run]
    scores: dict[str, Score]

    def cost(self, name: str) -> float:
        """GPU-hours over the clairvoyant's."""
        return self.scores[name].gpu_hours / self.best_hours


def compare(curves: Iterable[Curve], drain_s: float, done: Callable[[str], None] = lambda _: None) -> list[Result]:
    """Simulate; ``done`` is told the name of each curve when it is."""
    results = []
    for curve in curves:
        best_hours, best = clairvoyant(curve, drain_s)
        runs = {
            OURS: simulate(curve, TokenBacklog(curve, drain_s)),
            SERVE: simulate(curve, ServeDefault(curve)),
            KEDA: simulate(curve, LagProportional(curve, drain_s)),
        }
        scores = {name: score(run) for name, run in runs.items()}
        results.append(Result(curve, best_hours, best, runs, scores))
        done(curve.name)
    return results
