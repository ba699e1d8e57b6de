"""What is known of a job while its crew works, and when that has ended.

Comes in: nothing. Goes out: values. Never here: how they come about.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from pipelines.batch.finished import Tally


@dataclass(frozen=True, slots=True)
class State:
    """The job at a moment: replicas at work and wanted, pieces left, and the rows that finished pieces had."""

    ready: int
    members: int
    left: int
    tally: Tally


@dataclass
class Outcome:
    """What became of the tasks; ``failed``: a sentence for each that failed; ``given_up``: why others were not tried.

    Seconds of all replicas: ``load_s`` until they were ready, ``replica_s`` from then on. ``gpus`` of each.
    """

    tally: Tally = field(default_factory=Tally)
    reasons: Counter[str] = field(default_factory=Counter)
    failed: list[str] = field(default_factory=list)
    most: int = 0
    replaced: int = 0
    start_s: float = 0.0
    worked_s: float = 0.0
    load_s: float = 0.0
    replica_s: float = 0.0
    busy_s: float = 0.0
    stopped: bool = False
    given_up: str | None = None
    gpus: float = 0.0
