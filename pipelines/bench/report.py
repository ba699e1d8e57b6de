"""What a comparison says: a table with its sentences, Markdown, JSON.

Comes in: results. Goes out: text, and values for JSON. Never here: measuring, or files.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.bench.score import Result, Round, Spread, ranked, times
from pipelines.table import markdown, plain

MIB = 2**20


@dataclass(frozen=True, slots=True)
class Report:
    """A comparison, done.

    ``results`` in the order in which they took part; ``left_out``: reasons by name. ``seconds`` says which seconds of a
    round count, ``counted`` what they are called. ``flops``: a pass over all texts; ``peak``: the device's, per second.
    """

    command: str
    model: str
    dim: int
    max_tokens: int
    device: str
    threads: int
    texts: int
    tokens: int
    digest: str
    gate: float
    reference: str
    machine: Mapping[str, Any]
    results: Sequence[Result]
    baseline: Result
    left_out: Mapping[str, str]
    seconds: Callable[[Round], float]
    counted: str
    flops: float | None = None
    peak: float | None = None

    @property
    def order(self) -> list[Result]:
        """Best first; those that fail the gate last."""
        return ranked(self.results, self.gate, lambda result: -self.times(result).median)

    def passes(self, result: Result) -> bool:
        """Whether its vectors are near enough to the reference to be ranked."""
        return result.cosine.minimum >= self.gate

    def times(self, result: Result) -> Spread:
        """How many times as fast as the baseline, by the seconds that count."""
        return times(self.baseline, result, self.seconds)

    def mfu(self, result: Result) -> float | None:
        """Model FLOPs utilisation: FLOPs that the model asks for, per wall second, through what the device can do.

        FLOPs as in ``pipelines.bench.flops.model_flops``; padding earns nothing (Chowdhery et al. 2022, "PaLM", appendix
        B). The peak is the device's in bfloat16, whatever the dtype, so that rows compare.
        """
        return self.flops / result.wall_s / self.peak if self.flops is not None and self.peak is not None else None

    # ---- words

    def text(self) -> str:
        """For a terminal."""
        titles, rows = self._table()
        return "\n".join([self._subject(), "", plain(titles, rows), "", *self._sentences()])

    def markdown(self) -> str:
        """For a README: the command, the machine, the table, the sentences."""
        titles, rows = self._table()
        command = f"```\n{self.command}\n```"
        return "\n\n".join([command, self._subject(), markdown(titles, rows), *self._sentences()]) + "\n"

    def _table(self) -> tuple[list[str], list[list[str]]]:
        columns = self._columns()
        return [title for title, _ in columns], [[cell(result) for _, cell in columns] for result in self.order]

    def _columns(self) -> list[tuple[str, Callable[[Result], str]]]:
        ranks = {id(result): number for number, result in enumerate(self.order, 1) if self.passes(result)}
        columns: list[tuple[str, Callable[[Result], str]]] = [
            (
                "engine",
                lambda result: f"{ranks[id(result)]}. {result.name}" if id(result) in ranks else f"–  {result.name}",
            ),
            ("CPU s", lambda result: f"{result.cpu_s:.1f}"),
            ("× CPU (min–max)", lambda result: _spread(times(self.baseline, result, _cpu))),
            ("wall s", lambda result: f"{result.wall_s:.1f}"),
            ("× wall (min–max)", lambda result: _spread(times(self.baseline, result, _wall))),
            ("tokens/s", lambda result: f"{self.tokens / result.wall_s:,.0f}"),
        ]
        if self.flops is not None and self.peak is not None:
            columns.append(("MFU", lambda result: _percent(self.mfu(result))))
        if any(result.gpu_idle is not None for result in self.results):
            columns.append(("GPU idle", lambda result: _percent(result.gpu_idle)))
        if any(result.rounds[-1].gpu_bytes is not None for result in self.results):
            columns.append(("GPU MiB", lambda result: f"{(result.rounds[-1].gpu_bytes or 0) / MIB:,.0f}"))
        return [
            *columns,
            ("peak MiB", lambda result: f"{max(round_.rss_bytes for round_ in result.rounds) / MIB:,.0f}"),
            ("padding", lambda result: _percent(result.padding_share)),
            ("min cosine", lambda result: f"{result.cosine.minimum:.5f}"),
            ("mean cosine", lambda result: f"{result.cosine.mean:.5f}"),
        ]

    def _subject(self) -> str:
        machine, load = self.machine, self.machine.get("load")
        where = self.device if self.device != "cpu" else machine["cpu"]
        flags = f" ({', '.join(machine['cpu_flags'])})" if machine.get("cpu_flags") and self.device == "cpu" else ""
        busy = f"; load average {load[0]} before, {load[1]} after" if load else ""
        return (
            f"{self.model}: {self.texts:,} texts, {self.tokens:,} tokens ({self.tokens / self.texts:.0f} on average), on "
            f"{where}{flags}, {self.threads} of {machine['cores']} cores{busy}."
        )

    def _sentences(self) -> list[str]:
        rounds = len(self.baseline.rounds)
        each = "1 round" if rounds == 1 else f"medians of {rounds} rounds, everyone in turn in each"
        said = [
            f"{each}. × is how many times as fast as {self.baseline.name}, round by round. Cosines are with the vectors of "
            f"{self.reference}; who is below {self.gate} in any text is not ranked."
        ]
        leader = self._leader()
        return (
            said + ([leader] if leader else []) + [f"Left out: {name}: {why}." for name, why in self.left_out.items()]
        )

    def _leader(self) -> str | None:
        """Who leads, and by how much: of ours and of the peers the best each."""
        passed = [result for result in self.order if self.passes(result)]
        ours = next((result for result in passed if result.ours), None)
        peer = next((result for result in passed if not result.ours), None)
        if ours is None or peer is None:
            return None
        by = times(peer, ours, self.seconds).median
        first, second, factor = (ours, peer, by) if by >= 1 else (peer, ours, 1 / by)
        kind = "the best peer" if first is ours else "the best of ours"
        return f"{first.name} leads: {factor:.2f}× as fast as {kind}, {second.name}, by {self.counted}."

    # ---- values

    def values(self) -> dict[str, Any]:
        """For JSON: everything, every round of it."""
        simple = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in ("results", "baseline", "seconds")
        }
        results = [
            {
                "name": result.name,
                "ranked": self.passes(result),
                **dataclasses.asdict(result),
                "wall_s": result.wall_s,
                "cpu_s": result.cpu_s,
                "times_cpu": dataclasses.asdict(times(self.baseline, result, _cpu)),
                "times_wall": dataclasses.asdict(times(self.baseline, result, _wall)),
                "tokens_per_s": self.tokens / result.wall_s,
                "padding_share": result.padding_share,
                "mfu": self.mfu(result),
            }
            for result in self.order
        ]
        return {**simple, "baseline": self.baseline.name, "results": results}


def _cpu(found: Round) -> float:
    return found.cpu_s


def _wall(found: Round) -> float:
    return found.wall_s


def _spread(found: Spread) -> str:
    return f"{found.median:.2f} ({found.low:.2f}–{found.high:.2f})"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"
