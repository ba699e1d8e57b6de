"""The lab's report: faults × runs, as Markdown.

Comes in: results. Goes out: text. Never here: a run.
"""

from __future__ import annotations

from collections.abc import Sequence

from tests.lab.checker import KINDS
from tests.lab.plan import CONDITIONS, FAULTS, S3_FAULTS, SINKS
from tests.lab.trial import Result


def render(results: Sequence[Result], command: str) -> str:
    """Tables of outputs and of faults: how often, in how many runs, and what the checker found in those."""
    faults = sum(len(result.plan.faults) for result in results)
    lines = [
        "# Faults and what the checker found",
        "",
        f"`{command}`: {len(results)} seeds, {sum(result.records for result in results):,} records, {faults} faults and "
        f"conditions, {sum(result.seconds for result in results) / 60:.0f} minutes of pipelines. A pipeline that found no",
        f"broker while it started gave up, and was started again, {sum(result.restarts for result in results)} times.",
        "",
        "Each seed is a pipeline of its own: a real Kafka broker, real Ray, a real S3 server (versitygw behind a proxy that",
        "fails on demand), and a stub encoder whose vector is a hash of the text. The checker compares every byte.",
        "",
        *_table("output", SINKS, results, lambda result, name: int(result.plan.sinks == name)),
        "",
        *_table(
            "fault",
            (*FAULTS, *S3_FAULTS, *CONDITIONS),
            results,
            lambda result, name: result.plan.faults.count(name),
        ),
        "",
    ]
    failed = [result for result in results if not result.sound]
    if failed:
        lines += ["## Seeds that failed", ""]
        for result in failed:
            told = "; ".join(result.findings.examples) or result.trouble.strip().splitlines()[-1][:300]
            lines.append(f"- {result.plan.seed} ({', '.join(result.plan.faults)}): {told}")
        lines.append("")
    return "\n".join(lines)


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
