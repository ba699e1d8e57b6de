"""What a job says of itself at its end.

Comes in: what became of the rows, and how long it took. Goes out: lines for people, or one JSON object. Never here: a guess:
what was not measured is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import orjson

from pipelines.batch.finished import Tally
from pipelines.batch.progress import Forecast, spoken


@dataclass(frozen=True, slots=True)
class Summary:
    """One run of a job, over files or over partitions of topics.

    ``found``: what earlier runs had finished; ``made``: what this one has. ``seconds`` of the run, ``worked_s`` of them with a
    replica at work, after ``start_s`` until the first was; ``replica_s`` adds up what each replica was there for, after the
    ``load_s`` that it took all of them to be; ``busy_s`` is what of the former its encoder computed. ``gpus`` are those of
    each, ``price_per_hour`` is its own, if anybody has said. ``failed``: a sentence for each file or piece that failed.
    """

    complete: bool
    files: int
    found: Tally
    made: Tally
    reasons: Mapping[str, int] = field(default_factory=dict)
    dead_letters: str = ""
    outputs: tuple[str, ...] = ()
    seconds: float = 0.0
    start_s: float = 0.0
    worked_s: float = 0.0
    replica_s: float = 0.0
    busy_s: float = 0.0
    load_s: float = 0.0
    replicas: int = 0
    replaced: int = 0
    tenth: Forecast | None = None
    partitions: int = 0
    gpus: float = 0.0
    price_per_hour: float | None = None
    failed: Sequence[str] = ()

    @property
    def rows_per_s(self) -> float:
        """Rows of this run, refused ones too, in a second with a replica at work; 0 where nothing was to do."""
        return (self.made.rows + self.made.refused) / self.worked_s if self.worked_s else 0.0

    @property
    def tokens_per_s(self) -> float:
        """Tokens of this run in such a second."""
        return self.made.tokens / self.worked_s if self.worked_s else 0.0

    @property
    def busy(self) -> float:
        """The encoders' share of the time that replicas were there, 0 to 1."""
        return min(1.0, self.busy_s / self.replica_s) if self.replica_s else 0.0

    @property
    def replica_hours(self) -> float:
        """What all replicas were there for, from the beginning of their loading on."""
        return (self.load_s + self.replica_s) / 3600

    @property
    def cost(self) -> float | None:
        """What that costs; None: nobody has said what an hour does."""
        return None if self.price_per_hour is None else self.replica_hours * self.price_per_hour

    @property
    def eta_error(self) -> float | None:
        """By how much the time that was said to be left after the first tenth was wrong, as a share of what it took."""
        return None if self.tenth is None or not self.complete else self.tenth.error(self.worked_s)

    def text(self) -> str:
        """For people."""
        every = self.found + self.made
        lines = [
            ("state", "complete" if self.complete else "not complete: run it again, and it goes on"),
            ("rows", f"{every.rows:,} embedded" + self._split(self.found.rows, self.made.rows)),
            *([("deletions", f"{every.deleted:,}")] if every.deleted else []),
            ("dead letters", f"{every.refused:,}" + self._dead(every.refused)),
            *(
                [("gone", f"{every.gone:,} offsets that the topic had lost before they were read")]
                if every.gone
                else []
            ),
            ("tokens", f"{every.tokens:,}, {every.truncated:,} texts truncated"),
            (
                "partitions" if self.partitions else "files",
                f"{self.partitions or self.files:,} read; {every.parts:,} parts"
                + self._split(self.found.parts, self.made.parts),
            ),
            *(("to", output) for output in self.outputs),
            ("time", f"{spoken(self.seconds)}" + self._time()),
        ]
        if self.made.parts:
            lines.append(
                (
                    "speed",
                    f"{self.rows_per_s:,.0f} rows/s, {self.tokens_per_s:,.0f} tokens/s on {self.replicas} "
                    f"replica{'s' * (self.replicas != 1)}, whose encoders were busy {self.busy:.0%} of the time"
                    + (f"; {self.replaced} replaced" if self.replaced else ""),
                )
            )
        if self.replica_hours:
            lines.append(("cost", self._cost()))
        if self.tenth is not None and (error := self.eta_error) is not None:
            took = spoken(self.worked_s - self.tenth.at_s)
            lines.append(
                ("forecast", f"{spoken(self.tenth.left_s)} after the first tenth, and it took {took}: {error:+.0%}")
            )
        width = max(len(name) for name, _ in lines)
        return "".join(f"{name:<{width}}  {said}\n" for name, said in lines)

    def json(self) -> bytes:
        """For programs."""
        every = self.found + self.made
        return orjson.dumps(
            {
                "complete": self.complete,
                "rows": every.rows,
                "dead_letters": every.refused,
                "tokens": every.tokens,
                "truncated": every.truncated,
                "parts": every.parts,
                "found": self.found._asdict(),
                "made": self.made._asdict(),
                "reasons": dict(self.reasons),
                "dead_letters_uri": self.dead_letters,
                "outputs": list(self.outputs),
                "files": self.files,
                "partitions": self.partitions,
                "deletions": every.deleted,
                "offsets_gone": every.gone,
                "seconds": round(self.seconds, 3),
                "start_seconds": round(self.start_s, 3),
                "working_seconds": round(self.worked_s, 3),
                "rows_per_second": round(self.rows_per_s, 1),
                "tokens_per_second": round(self.tokens_per_s, 1),
                "replicas": self.replicas,
                "replicas_replaced": self.replaced,
                "encoders_busy": round(self.busy, 4),
                "replica_hours": round(self.replica_hours, 6),
                "gpu_hours": round(self.replica_hours * self.gpus, 6),
                "cost": None if self.cost is None else round(self.cost, 6),
                "failed": list(self.failed),
                "eta_error_after_first_tenth": None if (error := self.eta_error) is None else round(error, 4),
            }
        )

    @staticmethod
    def _split(found: int, made: int) -> str:
        return f": {made:,} by this run, {found:,} found from an earlier one" if found else ""

    def _dead(self, refused: int) -> str:
        if not refused:
            return ""
        told = ", ".join(f"{name} {count:,}" for name, count in sorted(self.reasons.items()))
        return f" in {self.dead_letters}" + (f" ({told})" if told else "")

    def _cost(self) -> str:
        hours = f"{_number(self.replica_hours)} replica-hours"
        if self.gpus:
            hours += f", {_number(self.replica_hours * self.gpus)} GPU-hours"
        return hours if self.cost is None else f"{_number(self.cost)} at {self.price_per_hour:,} an hour: {hours}"

    def _time(self) -> str:
        if not self.worked_s:
            return ""
        return f", {spoken(self.worked_s)} of it at work; the first replica took {spoken(self.start_s)} to start"


def _number(value: float) -> str:
    return f"{value:,.1f}" if value >= 100 else f"{value:.3g}"
