"""One replica of a job, as its crew knows it.

Comes in: nothing. Goes out: a value. Never here: what is done with it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pipelines.batch.replica import Counts
from pipelines.batch.there import Task


@dataclass(slots=True, eq=False)
class Member:
    """One actor. ``tasks`` are under way, by what Ray will answer with; ``alone``: one whose replica has died before.

    ``counts``: what it has last said of itself; ``settled``: of pieces that it has answered for.
    """

    actor: Any
    created: float
    loading: Any
    tasks: dict[Any, Task] = field(default_factory=dict)
    asking: Any = None
    counts: Counts = field(default_factory=Counts)
    settled: Counts = field(default_factory=Counts)
    alone: bool = False
