"""A report's figures as pictures, to be put into a page.

Comes in: a report. Goes out: SVG elements. Never here: a file, or a window. Needs matplotlib (``stream-embedder[plots]``).
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipelines.report.measure import PRECISIONS, Report

COLORS = dict(zip(PRECISIONS, ("#25303b", "#4a6fa5", "#1f6f5c", "#c9952b", "#b3261e"), strict=True))
FIRST, RANDOM, PCA, INK = "#1f6f5c", "#9aa5b1", "#4a6fa5", "#25303b"


def pictures(report: Report) -> dict[str, str]:
    """An ``<svg>`` element by what it shows; their ids do not collide."""
    drawn: dict[str, Callable[[Axes, Report], None]] = {
        "recall@10 over the size of a vector; each line is a precision, each dot a dim": _recall,
        "recall@10 of the first dims, of dims drawn at random, and of the best linear cut": _controls,
        "cosines of pairs of two texts; dotted, their mean": _cosines,
    }
    if not report.controls:
        del drawn["recall@10 of the first dims, of dims drawn at random, and of the best linear cut"]
    return {title: _svg(draw, report, salt) for salt, (title, draw) in enumerate(drawn.items())}


def _recall(axes: Axes, report: Report) -> None:
    for precision, color in COLORS.items():
        rows = [row for row in report.rows if row.precision == precision]
        if not rows:
            continue
        sizes, recalls = [row.bytes for row in rows], [row.found.recall for row in rows]
        behind = precision == "int8_ranges"  # of int8's sizes, and hardly another recall
        line, order = ("o--", 1) if behind else ("o-", 2)
        axes.plot(sizes, recalls, line, color=color, linewidth=1.5, markersize=4, label=precision, zorder=order)
        for row in () if behind else rows:
            at = (row.bytes, row.found.recall)
            axes.annotate(
                str(row.dim), at, (6, -3), textcoords="offset points", fontsize=7, va="top", color=color, zorder=3
            )
    axes.axhline(report.min_recall, color=INK, linewidth=0.8, linestyle=":")
    if (chosen := report.cheapest) is not None:
        around, name = ([chosen.bytes], [chosen.found.recall]), "the cheapest with enough"
        axes.plot(*around, "o", markersize=11, markerfacecolor="none", color=INK, label=name)
    axes.set_xscale("log", base=2)
    least, most = min(row.bytes for row in report.rows), max(row.bytes for row in report.rows)
    ticks = [4**power for power in range(12) if least <= 4**power <= 2 * most]
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlim(0.7 * least, 1.6 * most)
    axes.set_ylim(min(0.4, min(row.found.recall for row in report.rows) - 0.06), 1.03)
    axes.set_xlabel("bytes a vector", fontsize=9)
    axes.set_ylabel("recall@10", fontsize=9)
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _controls(axes: Axes, report: Report) -> None:
    dims = [each.dim for each in report.controls]
    lines = {
        "the first dims": (FIRST, "prefix"),
        "drawn at random": (RANDOM, "random"),
        "best linear cut (PCA)": (PCA, "pca"),
    }
    for label, (color, name) in lines.items():
        recalls = [getattr(each, name) for each in report.controls]
        axes.plot(dims, recalls, "o-", color=color, linewidth=1.5, markersize=4, label=label)
    axes.set_xscale("log", base=2)
    axes.set_xticks(dims, [str(dim) for dim in dims])
    axes.minorticks_off()
    axes.set_ylim(0, 1.03)
    axes.set_xlabel("dims", fontsize=9)
    axes.set_ylabel("recall@10", fontsize=9)
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _cosines(axes: Axes, report: Report) -> None:
    edges, counts = report.histogram
    axes.stairs(counts, edges, fill=True, color=PCA, alpha=0.8)
    axes.axvline(report.spreads[0].mean_cosine, color=INK, linewidth=0.8, linestyle=":")
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("cosine", fontsize=9)


def _svg(draw: Callable[[Axes, Report], None], report: Report, salt: int) -> str:
    figure = Figure(figsize=(8.5, 3.9), layout="constrained")
    axes = figure.subplots()
    draw(axes, report)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    file = io.StringIO()
    with rc_context({"svg.hashsalt": f"stream-embedder-{salt}"}):
        figure.savefig(file, format="svg", metadata={"Date": None})
    drawn = file.getvalue()
    # What stands before the element belongs to a file of its own, and what names its makers to nobody.
    drawn = re.sub(r"<metadata>.*?</metadata>", "", drawn[drawn.index("<svg") :], flags=re.DOTALL)
    drawn = re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), drawn)
    # Ids are a page's, not a picture's: figure_1, axes_1, and the shapes of letters are in each.
    drawn = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>p{salt}-", drawn)
    return drawn.replace("<svg ", '<svg role="img" ', 1).strip()
