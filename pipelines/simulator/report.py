"""What a simulation says: a table, Markdown, values for JSON.

Comes in: results. Goes out: text. Never here: simulating, or files.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from pipelines.simulator.compare import KEDA, OURS, SERVE, Result
from pipelines.simulator.score import REACTION_S, Score
from pipelines.table import markdown, plain

NAMES = (OURS, SERVE, KEDA)


def text(results: Sequence[Result], drain_s: float) -> str:
    """For a terminal."""
    curves = "\n".join(f"{result.curve.name}: {result.curve.about}" for result in results)
    return "\n\n".join([curves, plain(*_table(results)), *_sentences(results, drain_s)])


def page(results: Sequence[Result], drain_s: float, command: str) -> str:
    """For a README."""
    return "\n\n".join([f"```\n{command}\n```", markdown(*_table(results)), *_sentences(results, drain_s)]) + "\n"


def values(results: Sequence[Result], drain_s: float) -> dict[str, Any]:
    """For JSON; a drain that never ended is null."""
    return {
        "drain_target_s": drain_s,
        "reaction_s": REACTION_S,
        "curves": [
            {
                "name": result.curve.name,
                "about": result.curve.about,
                "node_start_s": result.curve.starts_s,
                "clairvoyant_gpu_hours": round(result.best_hours, 2),
                "scalers": {name: _values(result.scores[name], result.cost(name)) for name in NAMES},
            }
            for result in results
        ],
    }


def _values(score: Score, cost: float) -> dict[str, Any]:
    return {
        "gpu_hours": round(score.gpu_hours, 2),
        "times_clairvoyant": round(cost, 3),
        "drain_s": [round(drain, 1) if math.isfinite(drain) else None for drain in score.drains],
        "lag_p99_s": round(score.lag_p99_s, 1),
        "scale_events": score.events,
        "most_replicas": score.peak,
    }


def _table(results: Sequence[Result]) -> tuple[list[str], list[list[str]]]:
    titles = ["curve", "node start", "clairvoyant"]
    for name in NAMES:
        titles += [name, "drain", "lag p99", "events"]
    rows = []
    for result in results:
        row = [result.curve.name, f"{result.curve.starts_s / 60:.0f} min", f"{result.best_hours:,.0f} GPU-h"]
        for name in NAMES:
            score = result.scores[name]
            row += [
                f"{result.cost(name):.2f}×",
                _seconds(score.slowest),
                _seconds(score.lag_p99_s),
                f"{score.events:,}",
            ]
        rows.append(row)
    return titles, rows


def _seconds(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f} s" if math.isfinite(value) else "never"


def _sentences(results: Sequence[Result], drain_s: float) -> list[str]:
    usual = [result for result in results if not result.curve.hard] or list(results)
    worst = max(usual, key=lambda result: result.cost(OURS))
    best = sum(result.best_hours for result in usual)
    told = [
        f"× is GPU-hours over those of a clairvoyant scaler, which knows the curve, does every record's work within "
        f"{drain_s:g} s of its arrival and as evenly as that allows, has nodes ordered so that they are ready in time, and keeps "
        "a replica through a gap when that costs less than another start. Everybody pays for a node from its order on. Drain: the "
        "slowest backlog of a step, a burst or lost nodes, from when nodes that are ordered within "
        f"{REACTION_S:g} s are ready until it is gone. Events: changes of the target.",
        f"{OURS}: {sum(result.scores[OURS].gpu_hours for result in usual) / best:.2f}× over the standard curves, "
        f"{worst.cost(OURS):.2f}× on the worst ({worst.curve.name}).",
    ]
    beyond = [result.curve.name for result in results if result.curve.hard]
    if 0 < len(beyond) < len(results):
        told.append(f"Beyond the standard set: {' and '.join(beyond)}.")
    late = [
        result.curve.name
        for result in results
        if result.scores[OURS].slowest is not None and (result.scores[OURS].slowest or 0) > drain_s
    ]
    if late:
        told.append(f"The drain target is missed on {', '.join(late)}.")
    return told
