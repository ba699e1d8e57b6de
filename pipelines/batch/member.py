"""One replica of a job, as its crew knows it.

Comes in: nothing. Goes out: a value. Never here: what is done with it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pipelines.batch.replica import Counts, Reading
from pipelines.batch.there import Task


@dataclass(slots=True, eq=False)
class Member:
    """One actor. ``tasks`` are under way, by what Ray will answer with; ``alone``: one whose replica has died before.

    ``reading``: the last one of what it has done; ``settled``: of pieces that it has answered for.
    """

    actor: Any
    created: float
    loading: Any
    tasks: dict[Any, Task] = field(default_factory=dict)
    asking: Any = None
    reading: Reading = field(default_factory=Reading)
    settled: Counts = field(default_factory=Counts)
    alone: bool = False

    @property
    def counts(self) -> Counts:
        """What it has done, as far as it is known here."""
        return self.reading.counts

    def note(self, reading: Reading) -> None:
        """Take a reading. Answers do not come in the order in which they were made, and an older one says nothing new."""
        self.reading = max(self.reading, reading)
