"""A report as one HTML page that needs nothing but itself.

Comes in: a report and its pictures. Goes out: HTML. Never here: a script, a link to another place, or a text of the sample.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from pipelines.report import words
from pipelines.report.measure import Report
from pipelines.report.neighbours import CANDIDATES, NEAREST

_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #25303b; background: #fff; margin: 2rem auto; max-width: 60rem;
  padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
.verdict { border-left: 4px solid #1f6f5c; padding: .1rem 1rem; background: #f3f7f5; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem; }
.wide { overflow-x: auto; }
caption { text-align: left; color: #56626e; padding-bottom: .4rem; }
th, td { padding: .22rem .8rem; text-align: right; border-bottom: 1px solid #e3e6ea; }
th:first-child, td:first-child { text-align: left; padding-left: .3rem; }
tr.chosen td, tr.chosen th { background: #e4f0eb; font-weight: 600; }
figure { margin: 1.2rem 0; } figure svg { max-width: 100%; height: auto; }
figcaption, .notes, footer { color: #56626e; font-size: .92rem; }
code { background: #f0f2f4; padding: .1rem .3rem; }
"""


def page(report: Report, command: str, pictures: Mapping[str, str]) -> str:
    """The page; without ``pictures`` it has tables alone, and says why."""
    chosen = None if report.cheapest is None else report.rows.index(report.cheapest)
    drawn = [f"<figure>{svg}<figcaption>{escape(title)}</figcaption></figure>" for title, svg in pictures.items()]
    if not drawn:
        drawn = ["<p class=notes>No plots, for matplotlib is not installed: pip install 'stream-embedder[plots]'</p>"]
    parts = [
        f"<h1>What {escape(report.model)}'s vectors keep, on these texts</h1>",
        f"<p>{escape(words.subject(report))}</p>",
        '<div class="verdict">',
        *(f"<p>{escape(sentence)}</p>" for sentence in words.verdicts(report)),
        "</div>",
        "<h2>Dims and precisions</h2>",
        _table(
            words.quality(report),
            f"top-1: how often the nearest is the nearest; rank corr.: Spearman's over the {NEAREST} nearest; rescored: recall@10 "
            f"when {CANDIDATES} are fetched and ordered anew by full vectors. Marked: the cheapest with enough recall.",
            chosen,
        ),
        *drawn[:1],
        "<h2>May it be cut?</h2>",
        *(
            [_table(words.controls(report), "index: 0 as good as random dims, 1 as good as PCA.")]
            if report.controls
            else []
        ),
        *drawn[1:2],
        "<h2>How the vectors lie</h2>",
        _table(
            words.spreads(report),
            "E[cos²] · dim is 1 for vectors that lie evenly on the sphere; kept norm: the length of the first dims of a vector of "
            "length 1.",
        ),
        *drawn[2:],
        *(f"<p>{escape(sentence)}</p>" for sentence in words.about_vectors(report)),
        "<h2>To keep in mind</h2>",
        "<ul class=notes>",
        *(f"<li>{escape(note)}</li>" for note in words.notes(report)),
        "</ul>",
        f"<footer><p>Made by <code>{escape(command)}</code>; report.json beside this page has every figure.</p></footer>",
    ]
    title = f"{escape(report.model)}: what its vectors keep"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )


def _table(table: words.type_table, caption: str, chosen: int | None = None) -> str:
    titles, rows = table
    head = "".join(f'<th scope="col">{escape(title)}</th>' for title in titles)
    body = "\n".join(_row(row, number == chosen) for number, row in enumerate(rows))
    return (
        f'<div class="wide"><table><caption>{escape(caption)}</caption>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def _row(cells: Sequence[str], chosen: bool) -> str:
    first, *others = map(escape, cells)
    mark = ' class="chosen"' if chosen else ""
    return f'<tr{mark}><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in others)}</tr>'
