"""What a run shows: one live line on a terminal, one log line a period elsewhere.

Comes in: the readers' counters and the group's lag. Goes out: text. Never here: a record's content.
"""

from __future__ import annotations

import contextlib
import sys
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TextIO

from pipelines.census import unavailable
from workers import log, metrics

LOG = log.get(__name__)
LOG_PERIOD_S = 10.0
# So many samples back goes what is said of how busy encoders are.
SMOOTH = 10


@dataclass(frozen=True, slots=True)
class Sample:
    """The pipeline at one moment. ``at`` is monotonic seconds; counts since the readers' start; ``lag`` None: unknown."""

    at: float
    records: float = 0
    tokens: float = 0
    dead_letters: float = 0
    commits: float = 0
    failed_commits: float = 0
    in_flight: float = 0
    lag: int | None = None
    readers: int = 0
    encoders: int = 0
    encoders_wanted: int = 0
    encoder_s: float = 0
    no_encoder_s: float = 0


def sample(
    at: float, readers: Iterable[Mapping[str, float]], lag: int | None, running: Mapping[str, int], wanted: int
) -> Sample:
    """Add up what the readers counted."""
    snapshots = list(readers)

    def total(metric: metrics.Metric) -> float:
        return sum(
            value
            for snapshot in snapshots
            for name, value in snapshot.items()
            if name == metric.name or name.startswith(metric.name + "{")
        )

    return Sample(
        at=at,
        records=total(metrics.RECORDS_COMMITTED),
        tokens=total(metrics.TOKENS_COMMITTED),
        dead_letters=total(metrics.DEAD_LETTERS),
        commits=total(metrics.COMMITS),
        failed_commits=total(metrics.COMMITS_FAILED),
        in_flight=total(metrics.IN_FLIGHT_RECORDS),
        lag=lag,
        readers=running.get("Reader", 0),
        encoders=running.get("Encoder", 0),
        encoders_wanted=wanted,
        encoder_s=total(metrics.ENCODER_SECONDS),
        no_encoder_s=max(map(unavailable, snapshots), default=0.0),
    )


@dataclass
class Live:
    """Writes samples as they come; rates are over the time between two that are shown."""

    out: TextIO = field(default_factory=lambda: sys.stderr)
    _shown: Sample | None = None
    _past: deque[Sample] = field(default_factory=lambda: deque(maxlen=SMOOTH))
    _status: Any = None

    def __enter__(self) -> Live:
        if self.out.isatty():
            from rich.console import Console  # noqa: PLC0415 - only for a terminal

            self._status = Console(file=self.out).status("starting")
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._status is not None:
            with contextlib.suppress(OSError):  # here and below: the terminal may have gone, and the work goes on
                self._status.stop()

    @property
    def on_terminal(self) -> bool:
        """Whether what is said takes the place of what was said before."""
        return self._status is not None

    def say(self, text: str) -> None:
        """A step of the start or the end."""
        if self._status is not None:
            with contextlib.suppress(OSError):
                self._status.update(text)
        else:
            LOG.info(text)

    def show(self, now: Sample) -> None:
        """Show a sample: each on a terminal, one in ten seconds in a log."""
        before = self._shown
        if before is not None and (now.records < before.records or now.encoder_s < before.encoder_s):
            before = None  # a reader was replaced, and counts anew
            self._past.clear()
        if self._status is not None:
            with contextlib.suppress(OSError):
                self._status.update(line(now, before, self._past[0] if self._past else None))
            self._shown = now
            self._past.append(now)
        elif self._shown is None or now.at - self._shown.at >= LOG_PERIOD_S:
            LOG.info("%s", logged(now, before))
            self._shown = now


def rates(now: Sample, before: Sample | None) -> tuple[float, float]:
    """Records/s and tokens/s between two samples; 0 without an earlier one."""
    seconds = now.at - before.at if before is not None else 0.0
    if before is None or seconds <= 0:
        return 0.0, 0.0
    return (now.records - before.records) / seconds, (now.tokens - before.tokens) / seconds


def busy(now: Sample, before: Sample | None) -> float | None:
    """The share of their time that encoders computed between two samples; None: unknown."""
    if before is None or now.at <= before.at or not now.encoders:
        return None
    # A call counts when it is back, with all of its time.
    return min(1.0, (now.encoder_s - before.encoder_s) / ((now.at - before.at) * now.encoders))


def line(now: Sample, before: Sample | None, earlier: Sample | None = None) -> str:
    """The live line; ``earlier``: a sample so long ago that a call more or less is not seen in how busy encoders are."""
    records, tokens = rates(now, before)
    share = busy(now, earlier)
    work = "" if share is None else f" ({share:.0%} busy)"
    lag = "?" if now.lag is None else f"{now.lag:,}"
    gone = f" (none for {now.no_encoder_s:,.0f} s)" if now.no_encoder_s else ""
    return (
        f"{records:,.0f} records/s  {tokens:,.0f} tokens/s  lag {lag}  in flight {now.in_flight:,.0f}  "
        f"readers {now.readers}  encoders {now.encoders}/{now.encoders_wanted}{work}{gone}  "
        f"committed {now.records:,.0f}  dead letters {now.dead_letters:,.0f}  commits {now.commits:,.0f}"
    )


def logged(now: Sample, before: Sample | None) -> str:
    """The log line."""
    records, tokens = rates(now, before)
    share = busy(now, before)
    return "progress " + log.fields(
        records_per_s=round(records, 1),
        tokens_per_s=round(tokens),
        lag="unknown" if now.lag is None else now.lag,
        in_flight=int(now.in_flight),
        readers=now.readers,
        encoders=f"{now.encoders}/{now.encoders_wanted}",
        **({} if share is None else {"encoders_busy": round(share, 2)}),
        **({"no_encoder_s": round(now.no_encoder_s)} if now.no_encoder_s else {}),
        committed=int(now.records),
        dead_letters=int(now.dead_letters),
        commits=int(now.commits),
        failed_commits=int(now.failed_commits),
    )
