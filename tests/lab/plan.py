"""What happens to one seed's pipeline: its outputs, its limits, and which faults fall when.

Comes in: a seed. Goes out: a plan, always the same for the seed. Never here: anything that runs.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

SINKS = ("topic", "files", "topic and files")

# How often each is drawn, beside the others. Those of the S3 server need an output that is files.
FAULTS = {
    "encoder killed": 3,
    "encoder stopped": 2,
    "reader killed": 4,
    "reader stopped past its session": 3,
    "controller killed": 2,
    "controller stopped": 1,
    "driver and its Ray killed": 3,
    "broker killed": 4,
    "broker stopped past the session": 2,
    "second deployment comes and drains": 1,
    "second deployment comes and is killed": 1,
}
S3_FAULTS = {
    "S3 killed": 4,
    "S3 answers 500, stores nothing": 3,
    "S3 answers 500, but stores": 3,
    "S3 drops the connection, but stores": 3,
    "S3 slow": 2,
    "S3 full": 2,
}
# These are in a run from its start.
CONDITIONS = ("poison text", "tight limits", "static members")


@dataclass(frozen=True, slots=True)
class Step:
    """Faults that fall together, ``after`` so many seconds of flow."""

    faults: tuple[str, ...]
    after: float


@dataclass(frozen=True, slots=True)
class Plan:
    """One seed's run."""

    seed: int
    sinks: str
    partitions: int
    readers: int
    conditions: frozenset[str]
    topic: dict[str, Any]
    files: dict[str, Any]
    steps: tuple[Step, ...]

    @classmethod
    def of(cls, seed: int, sinks: str | None = None) -> Plan:
        """A seed's plan; seeds take turns with the sinks, unless they are given."""
        rng = random.Random(seed)
        chosen = SINKS[seed % len(SINKS)] if sinks is None else sinks
        weights = FAULTS | (S3_FAULTS if "files" in chosen else {})
        steps = []
        for _ in range(3):
            drawn = rng.choices(list(weights), list(weights.values()), k=2 if rng.random() < 0.3 else 1)
            steps.append(Step(tuple(dict.fromkeys(drawn)), round(rng.uniform(0, 2), 2)))
        return cls(
            seed=seed,
            sinks=chosen,
            partitions=rng.choice((1, 4, 6)),
            readers=rng.choice((1, 2, 2)),
            conditions=frozenset(name for name in CONDITIONS if rng.random() < 0.2),
            topic={"format": rng.choice(("json", "binary")), "dim": rng.choice((16, 64))},
            files={
                "precision": rng.choice(("float32", "float16")),
                "dim": rng.choice((16, 64)),
                "rotate": {"rows": rng.choice((200, 1_000, 5_000)), "seconds": rng.choice((1, 3))},
            },
            steps=tuple(steps),
        )

    @property
    def faults(self) -> list[str]:
        """All that happens, in order."""
        return [*sorted(self.conditions), *(fault for step in self.steps for fault in step.faults)]
