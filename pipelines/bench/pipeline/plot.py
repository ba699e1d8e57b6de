"""A part's curve as a picture.

Comes in: a part. Goes out: a PNG and an SVG file. Never here: a window. Needs matplotlib (``stream-embedder[plots]``).
"""

from __future__ import annotations

from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

from pipelines.bench.pipeline.part import Part

COLORS, INK = ("#1f6f5c", "#c0782a", "#4a6fa5"), "#25303b"


def draw(part: Part, folder: Path) -> list[Path]:
    """Lines over doubling steps, with what would be linear, dotted.

    Returns:
        The files, ``<part's name>.png`` and ``.svg``.
    """
    curve = part.curve
    assert curve is not None
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
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
    axes.set_title(part.title, fontsize=10)
    axes.legend(frameon=False, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    files = [folder / f"{part.name}.png", folder / f"{part.name}.svg"]
    figure.savefig(files[0], dpi=160)
    with rc_context({"svg.hashsalt": "stream-embedder"}):
        figure.savefig(files[1], metadata={"Date": None})
    return files
