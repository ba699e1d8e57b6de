"""A simulation as a picture: for each curve the load, and the replicas that each scaler has.

Comes in: results. Goes out: a PNG and an SVG file. Never here: a window. Needs matplotlib (``stream-embedder[plots]``).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from pipelines.simulator.compare import KEDA, OURS, SERVE, Result
from pipelines.simulator.curves import HOUR, type_series

COLUMNS = 3
POINTS = 180
LOAD, COLORS = "#dfe5ea", {KEDA: "#c9952b", SERVE: "#9aa5b1", OURS: "#1f6f5c"}
BEST, INK = "#b3261e", "#25303b"


def draw(results: Sequence[Result], folder: Path) -> list[Path]:
    """A panel for each curve.

    Returns:
        The files, ``simulate.png`` and ``simulate.svg``.
    """
    rows = -(-len(results) // COLUMNS)
    figure = Figure(figsize=(13, 0.6 + 2.5 * rows), layout="constrained")
    figure.subplots(rows, COLUMNS, squeeze=False)
    for axes, result in zip(figure.axes, results, strict=False):
        hours = result.curve.seconds / HOUR
        step = max(1, len(hours) // POINTS)
        at = hours[::step][: len(hours) // step]
        axes.fill_between(at, _mean(result.curve.load, step), color=LOAD, linewidth=0, label="load")
        ceiling = 1.9 * max(float(result.best.max()), float(_mean(result.curve.load, step).max()))
        for name, color in COLORS.items():
            axes.plot(
                at,
                np.minimum(_peak(result.runs[name].target, step), 2 * ceiling),
                color=color,
                linewidth=1.1,
                label=name,
            )
        axes.plot(at, _peak(result.best, step), color=BEST, linewidth=0.8, linestyle=":", label="clairvoyant")
        axes.set_ylim(0, ceiling)
        axes.set_xlim(0, float(hours[-1]))
        axes.set_title(f"{result.curve.name}: {result.cost(OURS):.2f}×", fontsize=9, color=INK)
        axes.tick_params(labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    for unused in figure.axes[len(results) :]:
        unused.set_visible(False)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=5, fontsize=8, frameon=False)
    figure.supxlabel("hours", fontsize=8)
    figure.supylabel("replicas wanted", fontsize=8)
    files = [folder / "simulate.png", folder / "simulate.svg"]
    figure.savefig(files[0], dpi=110)
    with rc_context({"svg.hashsalt": "stream-embedder"}):
        figure.savefig(files[1], metadata={"Date": None})
    # Six digits behind the point make two thirds of the file.
    drawn = re.sub(
        r' d="[^"]*"', lambda path: re.sub(r"(\.\d)\d+", r"\1", path[0]), files[1].read_text(encoding="utf-8")
    )
    files[1].write_text(drawn, encoding="utf-8")
    return files


def _mean(series: type_series, step: int) -> type_series:
    """Means of ``step`` ticks each."""
    mean: type_series = series[: len(series) // step * step].reshape(-1, step).mean(axis=1)
    return mean


def _peak(series: type_series, step: int) -> type_series:
    peak: type_series = series[: len(series) // step * step].reshape(-1, step).max(axis=1)
    return peak
