"""The lab's report: faults × runs, as Markdown.

Comes in: results. Goes out: text. Never here: a run.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from tests.lab import checker, inquest
from tests.lab.plan import SINKS, WHAT
from tests.lab.trial import Result

KINDS = (*checker.KINDS, *inquest.KINDS)


def render(results: Sequence[Result], command: str) -> str:
    """Tables of outputs and of faults: how often, in how many runs, and what the checker found in those."""
    faults = sum(len(result.plan.faults) for result in results)
    lines = [
        "# Faults and what the checker found",
        "",
        f"`{command}`: {len(results)} seeds, {sum(result.records for result in results):,} records, {faults} faults and "
        f"conditions, {sum(result.seconds for result in results) / 60:.0f} minutes of pipelines. {_given_up(results)}",
        "",
        "Each seed is a pipeline of its own: a real Kafka broker, real Ray, a real S3 server (versitygw behind a proxy that",
        "fails on demand), and a stub encoder whose vector is a hash of the text. The checker compares every byte.",
        "Beside that, whatever ended without the lab's doing counts, also where it recovered: *died*: `run` ended, and not by",
        "its sentence on a broker or a store that the lab had taken away; *reader replaced*: Serve had to start another;",
        "*crash logged*: a traceback, an error of ours or a crash of Ray's in any log of the run.",
        "",
        *_table("output", SINKS, results, lambda result, name: int(result.plan.sinks == name)),
        "",
        *_table(
            "fault",
            tuple(WHAT),
            results,
            lambda result, name: result.plan.faults.count(name),
        ),
        "",
        *meanings(),
        "",
    ]
    if notes := Counter(re.sub(r"[\d.]+", "n", note) for result in results for note in result.notes):
        lines += ["What came of the faults that look for their moment:", ""]
        lines += [f"- {count} × {note}" for note, count in notes.most_common()]
        lines.append("")
    failed = [result for result in results if not result.sound]
    if failed:
        lines += ["## Seeds that failed", ""]
        for result in failed:
            told = "; ".join(result.findings.examples) or result.trouble.strip().splitlines()[-1][:300]
            lines.append(f"- {result.plan.seed} ({', '.join(result.plan.faults)}): {told}")
        lines.append("")
    return "\n".join(lines)


def meanings() -> list[str]:
    """What each fault is, as a list."""
    return ["## What each fault is", "", *(f"- **{name}**: {what}" for name, what in WHAT.items())]


def _given_up(results: Sequence[Result]) -> str:
    ended = sum(result.restarts for result in results)
    died = sum(result.findings.counts[inquest.DIED] for result in results)
    return (
        f"{ended - died} times a pipeline found no broker or\nno store while it started, as the lab had it, gave up, and was "
        f"started again; {died} times one ended otherwise."
    )


def _table(title: str, names: Sequence[str], results: Sequence[Result], times: object) -> list[str]:
    assert callable(times)
    rows = [
        f"| {title} | times | runs | records | {' | '.join(KINDS)} | did not finish |",
        f"|---|{'--:|' * (len(KINDS) + 4)}",
    ]
    for name in names:
        hit = [result for result in results if times(result, name)]
        counts = [sum(result.findings.counts[kind] for result in hit) for kind in KINDS]
        rows.append(
            f"| {name} | {sum(times(result, name) for result in hit)} | {len(hit)} | "
            f"{sum(result.records for result in hit):,} | {' | '.join(map(str, counts))} | "
            f"{sum(bool(result.trouble) for result in hit)} |"
        )
    counts = [sum(result.findings.counts[kind] for result in results) for kind in KINDS]
    rows.append(
        f"| **all** | | {len(results)} | {sum(result.records for result in results):,} | {' | '.join(map(str, counts))} | "
        f"{sum(bool(result.trouble) for result in results)} |"
    )
    return rows
