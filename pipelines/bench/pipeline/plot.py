"""A part's curve as a picture.

Comes in: a part. Goes out: a PNG and an SVG file. Never here: a window. Needs matplotlib (``stream-embedder[plots]``).
"""

from __future__ import annotations

import itertools
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipelines.bench.pipeline.part import Curve, Part, Timeline

COLORS, INK = ("#1f6f5c", "#c0782a", "#4a6fa5"), "#25303b"
SHADES = ("#c0782a", "#4a6fa5", "#8a4f7d")


def draw(part: Part, folder: Path) -> list[Path]:
    """A curve, or what happened over time.

    Returns:
        The files, ``<part's name>.png`` and ``.svg``.
    """
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    if isinstance(part.curve, Curve):
        _curve(axes, part.curve)
    elif isinstance(part.curve, Timeline):
        _timeline(axes, part.curve)
    axes.set_title(part.title, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    files = [folder / f"{part.name}.png", folder / f"{part.name}.svg"]
    figure.savefig(files[0], dpi=160)
    with rc_context({"svg.hashsalt": "stream-embedder"}):
        figure.savefig(files[1], metadata={"Date": None})
    return files


def _curve(axes: Axes, curve: Curve) -> None:
    """Lines over doubling steps, with what would be linear, dotted."""
    if curve.ideal:
        axes.plot(*zip(*curve.ideal, strict=True), ":", color=INK, linewidth=1, label="linear")
    for (name, points), color in zip(curve.lines.items(), COLORS, strict=False):
        axes.plot(*zip(*points, strict=True), "o-", color=color, linewidth=1.6, markersize=4, label=name)
    ticks = [across for across, _ in next(iter(curve.lines.values()))]
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    marks = [up for _, up in curve.ideal] or axes.get_yticks().tolist()
    axes.set_yticks(marks, [f"{mark:,.0f}" for mark in marks])
    axes.minorticks_off()
    axes.set_xlabel(curve.across, fontsize=9)
    axes.set_ylabel(curve.up, fontsize=9)
    axes.legend(frameon=False, fontsize=9)


def _timeline(axes: Axes, timeline: Timeline) -> None:
    """A step for each second; what happened is shaded for as long as it took."""
    axes.stairs(timeline.points, color=COLORS[0], linewidth=1.4)
    for (words, begin, end), color in zip(timeline.events, itertools.cycle(SHADES)):
        axes.axvspan(begin, end, color=color, alpha=0.25, linewidth=0, label=words)
    axes.set_xlim(0, len(timeline.points))
    axes.set_ylim(bottom=0)
    axes.set_xlabel("seconds", fontsize=9)
    axes.set_ylabel(timeline.up, fontsize=9)
    axes.legend(frameon=False, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=len(timeline.events))
