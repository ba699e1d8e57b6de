"""A comparison as a picture.

Comes in: a report. Goes out: a PNG and an SVG file. Never here: a window. Needs matplotlib (``stream-embedder[plots]``).
"""

from __future__ import annotations

from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

from pipelines.bench.report import Report

OURS, PEER, FAILED, INK = "#1f6f5c", "#9aa5b1", "#e3e6ea", "#25303b"


def draw(report: Report, folder: Path) -> list[Path]:
    """A bar for each engine, its median, with a dot for each round; what fails the gate is hatched.

    Returns:
        The files, ``encoder.png`` and ``encoder.svg``.
    """
    shown = list(reversed(report.order))
    figure = Figure(figsize=(9, 1.6 + 0.42 * len(shown)), layout="constrained")
    axes = figure.subplots()
    for place, result in enumerate(shown):
        passes, found = report.passes(result), report.times(result)
        color = OURS if result.ours else PEER
        hatch = None if passes else "////"
        axes.barh(
            place,
            found.median,
            color=color if passes else FAILED,
            hatch=hatch,
            edgecolor=color,
            height=0.68,
            linewidth=0.8,
        )
        pairs = zip(report.baseline.rounds, result.rounds, strict=True)
        dots = [report.seconds(theirs) / report.seconds(own) for theirs, own in pairs]
        axes.plot(dots, [place] * len(dots), "o", color=INK, markersize=3, alpha=0.7)
        note = (
            f"{found.median:.2f}×" if passes else f"{found.median:.2f}×, cosine {result.cosine.minimum:.4f}: not ranked"
        )
        axes.annotate(
            note, (max(found.median, *dots), place), (6, 0), textcoords="offset points", va="center", fontsize=9
        )
    axes.set_yticks(range(len(shown)), [result.name for result in shown], fontsize=9)
    axes.axvline(1.0, color=INK, linewidth=0.8, linestyle=":")
    axes.set_xlim(0, 1.22 * max(report.times(result).high for result in shown))
    axes.set_xlabel(f"times as fast as {report.baseline.name}, by {report.counted}", fontsize=9)
    axes.set_title(f"{report.model}, {report.texts:,} texts of {report.tokens / report.texts:.0f} tokens", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    files = [folder / "encoder.png", folder / "encoder.svg"]
    figure.savefig(files[0], dpi=160)
    with rc_context({"svg.hashsalt": "stream-embedder"}):
        figure.savefig(files[1], metadata={"Date": None})
    return files
