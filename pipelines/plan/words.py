"""What a plan says: a table for people, values for JSON.

Comes in: a plan. Goes out: text. Never here: estimating, or a text of the sample.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from pipelines.arguments import PROGRAM
from pipelines.batch.progress import spoken
from pipelines.plan.estimate import Estimate
from pipelines.plan.figures import Cost, Plan, Source
from pipelines.plan.outcomes import OutputBytes
from pipelines.table import plain

_SHOWN_SOURCES, _SHOWN_BROKEN = 20, 10
_BYTES = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
_NUMBERS = ((1e12, "T"), (1e9, "G"), (1e6, "M"))


def text(plan: Plan) -> str:
    """For a terminal."""
    parts = [
        f"{plan.job}: {'Kafka → ' if plan.job == 'run' else ''}{plan.model}",
        plain(*_sources(plan)),
        plain(*_totals(plan)),
    ]
    if plan.reasons:
        parts.append(plain(["would be refused", "in the sample"], [[k, f"{n:,}"] for k, n in plan.reasons.items()]))
    if plan.outputs:
        parts.append(plain(*_outputs(plan)))
    parts += [_cost(plan), *(f"Note: {each}" for each in notes(plan))]
    return "\n\n".join(parts)


def _sources(plan: Plan) -> tuple[list[str], list[list[str]]]:
    what = "partitions" if plan.sources and plan.sources[0].what == "offsets" else "files"
    rows = [
        [source.name, f"{source.parts:,}", _units(source), "compacted" if source.compacted else ""]
        for source in plan.sources[:_SHOWN_SOURCES]
    ]
    if (more := len(plan.sources) - _SHOWN_SOURCES) > 0:
        rest = plan.sources[_SHOWN_SOURCES:]
        whole = Source("", 0, sum(each.units for each in rest), rest[0].what)
        rows.append([f"and {more:,} more", f"{sum(each.parts for each in rest):,}", _units(whole), ""])
    return ["input", what, plan.sources[0].what if plan.sources else "bytes", ""], rows


def _units(source: Source) -> str:
    return f"{source.units:,}" if source.what == "offsets" else spoken_bytes(source.units)


def _totals(plan: Plan) -> tuple[list[str], list[list[str]]]:
    rows = [
        ["records", *_cells(plan.records, _number)],
        ["bytes", *_cells(plan.bytes, spoken_bytes)],
        ["to be embedded", *_cells(plan.embedded, _number)],
        ["would be refused", *_cells(plan.refused, _number)],
        *([["deletions", *_cells(plan.tombstones, _number)]] if plan.tombstones.value else []),
        ["tokens", *_cells(plan.tokens, _number)],
        [
            "tokens of a text",
            f"mean {plan.tokens_mean:,.0f}, p50 {plan.tokens_p50:,.0f}, p99 {plan.tokens_p99:,.0f}",
            "",
        ],
        ["texts truncated", f"{plan.truncated:.1%}", ""],
        ["equal to another", f"{plan.equal / plan.texts if plan.texts else 0.0:.1%} of the sample", ""],
    ]
    return ["in all", "", "± (95 %)"], rows


def _outputs(plan: Plan) -> tuple[list[str], list[list[str]]]:
    rows = []
    for output in plan.outputs:
        value, error = _cells(plan.output_total(output), spoken_bytes)
        rows.append(
            [output.name, str(output.dim), output.precision, output.format, f"{output.each:,.0f}", value, error]
        )
    return ["output", "dim", "precision", "format", "bytes each", "in all", "±"], rows


def _cost(plan: Plan) -> str:
    cost = plan.cost
    if cost is None:
        return (
            "How long it takes follows from what a replica embeds in a second: --tokens-per-s N if you know it; --measure, on a "
            f"machine like a replica's, measures it; {PROGRAM} bench compares engines."
        )
    rows = [
        ["tokens/s of a replica", _number(cost.rate.tokens_per_s), ""],
        ["replica-hours", *_cells(cost.replica_hours, _hours)],
        *([["GPU-hours", *_cells(cost.gpu_hours, _hours)]] if cost.gpu_hours is not None else []),
        [f"time with {cost.replicas:,} replica{'s' * (cost.replicas != 1)} (pool.max)", *_cells(cost.hours, _time)],
        *([["price", *_cells(cost.price, _price)]] if cost.price is not None else []),
    ]
    return plain([f"at the rate {cost.rate.source}", "", "±"], rows)


def notes(plan: Plan) -> list[str]:
    """What to keep in mind."""
    found = [
        f"All {plan.sampled:,} records were read: the figures are exact."
        if plan.whole
        else f"{plan.sampled:,} records were read, in {plan.blocks:,} places; the ± is that of sampling, and holds 95 times of 100."
    ]
    if not plan.waiting:
        found[:0] = ["Nothing waits: the totals are 0, and the sample is of all that the topics hold."]
    if plan.from_the_front:
        found.append(
            "CSV, and what is packed, is read from its beginning: if its end is of another kind, no ± says so."
        )
    if any(source.compacted for source in plan.sources):
        found.append("Of a compacted topic many offsets hold no record any more.")
    if plan.cost is not None:
        found.append("The time is that of the encoders at work, without their start.")
    if plan.equal:
        found.append(
            "Equal texts further apart than the sample looks are not seen; the tokens count them as if each were encoded."
        )
    found += [f"Cannot be read, and is left out: {each}" for each in plan.broken[:_SHOWN_BROKEN]]
    if (more := len(plan.broken) - _SHOWN_BROKEN) > 0:
        found.append(f"And {more:,} more that cannot be read.")
    return found


def values(plan: Plan) -> dict[str, Any]:
    """For JSON: estimates as ``value`` and ``error`` (null: not known), hours and bytes as plain numbers."""
    return {
        "job": plan.job,
        "model": plan.model,
        "input": [dataclasses.asdict(source) for source in plan.sources],
        "unreadable": list(plan.broken),
        "waiting": plan.waiting,
        "sample": {
            "records": plan.sampled,
            "texts": plan.texts,
            "blocks": plan.blocks,
            "whole": plan.whole,
            "from_the_front": plan.from_the_front,
            "refused": dict(plan.reasons),
            "equal_texts": plan.equal,
        },
        **{
            name: _estimate(getattr(plan, name))
            for name in ("records", "bytes", "embedded", "refused", "tombstones", "tokens")
        },
        "tokens_of_a_text": {
            "mean": round(plan.tokens_mean, 3),
            "p50": plan.tokens_p50,
            "p99": plan.tokens_p99,
        },
        "truncated_share": round(plan.truncated, 6),
        "outputs": [_output(plan, output) for output in plan.outputs],
        "encoders": None if plan.cost is None else _cost_values(plan.cost),
        "notes": notes(plan),
    }


def _output(plan: Plan, output: OutputBytes) -> dict[str, Any]:
    told = {name: getattr(output, name) for name in ("name", "dim", "precision", "format")}
    return {**told, "bytes_each": round(output.each, 3), "bytes": _estimate(plan.output_total(output))}


def _cost_values(cost: Cost) -> dict[str, Any]:
    return {
        "tokens_per_second": round(cost.rate.tokens_per_s, 3),
        "rate_from": cost.rate.source,
        "replicas": cost.replicas,
        "replica_hours": _estimate(cost.replica_hours),
        "hours": _estimate(cost.hours),
        "gpu_hours": None if cost.gpu_hours is None else _estimate(cost.gpu_hours),
        "price": None if cost.price is None else _estimate(cost.price),
    }


def _estimate(estimate: Estimate) -> dict[str, float | None]:
    error = estimate.error
    return {"value": round(estimate.value, 6), "error": None if error is None else round(error, 6)}


def _cells(estimate: Estimate, say: Any) -> list[str]:
    error = estimate.error
    return [say(estimate.value), "?" if error is None else "" if error == 0 else say(error)]


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) < 1e6 else _scaled(value, _NUMBERS)


def spoken_bytes(value: float) -> str:
    """Bytes for people."""
    return _scaled(value, _BYTES) if value >= 1e3 else f"{value:,.0f} B"


def _scaled(value: float, units: tuple[tuple[float, str], ...]) -> str:
    size, unit = next(each for each in units if abs(value) >= each[0])
    return f"{value / size:,.3g} {unit}"


def _hours(value: float) -> str:
    return f"{value:,.1f}" if value >= 10 else f"{value:.3g}"


def _price(value: float) -> str:
    return f"{value:,.2f}" if value >= 1 else f"{value:.2g}"


def _time(hours: float) -> str:
    return spoken(hours * 3600) if hours < 48 else f"{hours / 24:,.1f} days"
