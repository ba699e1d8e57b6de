"""What a report says: sentences, tables, and values for JSON.

Comes in: a report. Goes out: text. Never here: measuring, files, or a text of the sample.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from pipelines.report.controls import TRAINED, UNTRAINED
from pipelines.report.measure import Report, Row
from pipelines.report.neighbours import CANDIDATES
from pipelines.table import plain

type_table = tuple[list[str], list[list[str]]]

ENOUGH = 1_000


def text(report: Report) -> str:
    """For a terminal."""
    *found, cut = verdicts(report)
    parts = [subject(report), plain(*quality(report)), *found]
    parts += [plain(*controls(report))] if report.controls else []
    parts += [cut, plain(*spreads(report)), *about_vectors(report), *(f"Note: {each}" for each in notes(report))]
    return "\n\n".join(parts)


def subject(report: Report) -> str:
    """What was measured."""
    return (
        f"{report.model}: {report.texts:,} texts, of which {report.asking:,} ask for their nearest among the others; "
        "everything is held against a search over the full float32 vectors."
    )


def verdicts(report: Report) -> list[str]:
    """The sentences that decide something: what is cheapest, and last whether the model may be cut."""
    return [_cheapest(report), *_rescored(report), _mrl(report)]


def quality(report: Report) -> type_table:
    """Dim × precision."""
    titles = ["dim", "precision", "recall@10", "top-1", "rank corr.", "rescored", "bytes", "GB / 10 M"]
    rows = [
        [
            str(row.dim),
            row.precision,
            *(f"{value:.3f}" for value in dataclasses.astuple(row.found)),
            f"{row.bytes:,}",
            f"{row.gb:.2f}",
        ]
        for row in report.rows
    ]
    return titles, rows


def controls(report: Report) -> type_table:
    """The first dims beside others."""
    titles = ["recall@10 of dims", "the first", "random", "PCA", "index"]
    rows = [
        [
            str(each.dim),
            *(f"{value:.3f}" for value in (each.prefix, each.random, each.pca)),
            "–" if each.index is None else f"{each.index:.2f}",
        ]
        for each in report.controls
    ]
    return titles, rows


def spreads(report: Report) -> type_table:
    """How vectors lie."""
    titles = ["dim", "mean cosine", "E[cos²] · dim", "effective rank", "kept norm", "least"]
    rows = [
        [
            str(each.dim),
            f"{each.mean_cosine:.3f}",
            f"{each.spread:.1f}",
            f"{each.effective_rank:.0f}",
            f"{each.kept_norm:.3f}",
            f"{each.least_norm:.3f}",
        ]
        for each in report.spreads
    ]
    return titles, rows


def about_vectors(report: Report) -> list[str]:
    """What the sample was, and what became of it."""
    sample, (least, mean, most) = report.sample, report.norms
    refused = sum(sample.refused.values())
    classes = ", ".join(f"{name} {count:,}" for name, count in sample.refused.items())
    embedded = max(1, len(sample.vectors))
    return [
        f"Texts: {sample.read:,} in the input, {sample.drawn:,} drawn, {sample.duplicates:,} duplicates left out, "
        f"{refused:,} refused{f' ({classes})' if classes else ''}; {sample.truncated:,} truncated "
        f"({100 * sample.truncated / embedded:.1f} %), {sample.tokens / embedded:.0f} tokens on average, {sample.longest:,} at "
        f"most. Vectors: norms {least:.6f} to {most:.6f} (mean {mean:.6f}), {report.no_direction:,} zero at "
        f"{min(each.dim for each in report.spreads)} dims."
    ]


def notes(report: Report) -> list[str]:
    """What to keep in mind."""
    found = []
    if report.texts < ENOUGH:
        found.append(f"{report.texts:,} texts are few: take {ENOUGH:,} or more.")
    share = f"{CANDIDATES} are {100 * min(1.0, CANDIDATES / report.texts):.2g} % of these"
    found.append(
        f"Among more texts than these {report.texts:,} neighbours lie closer together, and each recall is lower, the rescored "
        f"one most, for {share}: leave a margin."
    )
    found.append(
        "Texts that ask are quantised as those that are found. uint8_ranges finds what int8_ranges does, and ubinary what binary "
        "does; the ranges are this sample's. int8 has a scale of 4 bytes beside, which a search by cosine does without."
    )
    return found


def values(report: Report, command: str) -> dict[str, Any]:
    """For JSON: every figure, rounded to six digits behind the point."""
    edges, counts = report.histogram
    sample = {field.name: getattr(report.sample, field.name) for field in dataclasses.fields(report.sample)}
    sample["embedded"] = len(sample.pop("vectors"))
    return {
        "command": command,
        "model": report.model,
        "dim": report.dim,
        "texts": {**sample, "refused": dict(sample["refused"]), "compared": report.texts, "asking": report.asking},
        "norms": dict(zip(("least", "mean", "greatest"), map(_rounded, report.norms), strict=True)),
        "zero": report.no_direction,
        "min_recall": report.min_recall,
        "cheapest": _named(report.cheapest),
        "cheapest_rescored": _named(report.cheapest_rescored),
        "mrl_index": _rounded(report.mrl_index),
        "mrl": _judged(report.mrl_index),
        "rows": [
            {"dim": row.dim, "precision": row.precision, "bytes": row.bytes, "gb_per_10_million": _rounded(row.gb)}
            | {name: _rounded(value) for name, value in dataclasses.asdict(row.found).items()}
            for row in report.rows
        ],
        "controls": [
            {name: _rounded(value) for name, value in dataclasses.asdict(each).items()}
            | {"index": _rounded(each.index)}
            for each in report.controls
        ],
        "spread": [
            {name: _rounded(value) for name, value in dataclasses.asdict(each).items()} for each in report.spreads
        ],
        "cosines_of_pairs": {"edges": [_rounded(edge) for edge in edges], "counts": counts},
        "sentences": [*verdicts(report), *about_vectors(report), *notes(report)],
    }


# ---- sentences


def _cheapest(report: Report) -> str:
    row = report.cheapest
    if row is None:
        best = report.best
        return (
            f"Nothing keeps recall@10 at {report.min_recall:g} or above; the most is {best.found.recall:.3f}, of dim {best.dim}, "
            f"precision {best.precision}: choose a lower --min-recall."
        )
    return (
        f"Cheapest that keeps recall@10 at {report.min_recall:g} or above: dim {row.dim}, precision {row.precision}, with "
        f"{row.found.recall:.3f}: {row.bytes:,} bytes a vector, {row.gb:.2f} GB per 10 million; full float32 takes "
        f"{report.rows[0].gb:.2f}."
    )


def _rescored(report: Report) -> list[str]:
    row, without = report.cheapest_rescored, report.cheapest
    if row is None or (without is not None and row.bytes >= without.bytes):
        return []
    return [
        f"When {CANDIDATES} are fetched and ordered anew by the full vectors, which are then kept too: dim {row.dim}, precision "
        f"{row.precision}, with {row.found.rescored:.3f}: {row.bytes:,} bytes a vector in the index, {row.gb:.2f} GB per 10 "
        "million."
    ]


def _mrl(report: Report) -> str:
    index, model = report.mrl_index, report.model
    if not report.controls:
        return f"Nothing was cut, so whether {model} was trained for it (MRL) was not looked at."
    dims, prefix, drawn, pca = (
        _joined([str(each.dim) for each in report.controls]),
        *(_joined([f"{getattr(each, name):.2f}" for each in report.controls]) for name in ("prefix", "random", "pca")),
    )
    figures = f"its first {dims} dims have recall@10 {prefix}, as many drawn at random {drawn}, the best linear cut (PCA) {pca}"
    match _judged(index):
        case "no":
            return (
                f"{model} is no MRL model: {figures}. So a prefix is no better than random dims; leave dim alone, and choose a "
                "smaller precision."
            )
        case "partly":
            return f"{model} was hardly trained for these dims (MRL): {figures}. Where dims matter, compare models."
        case "yes":
            return f"{model} keeps its order when it is cut, as a model trained for that (MRL) does: {figures}."
    return f"Whether {model} is an MRL model cannot be told from these texts: {figures}."


def _judged(index: float | None) -> str:
    if index is None:
        return "unknown"
    return "no" if index < UNTRAINED else "partly" if index < TRAINED else "yes"


def _joined(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _named(row: Row | None) -> dict[str, Any] | None:
    return None if row is None else {"dim": row.dim, "precision": row.precision}


def _rounded(value: float | None) -> float | None:
    return value if value is None or isinstance(value, int) else round(value, 6)
