"""What happens to one seed's pipeline: its outputs, its limits, and which faults fall when.

Comes in: a seed. Goes out: a plan, always the same for the seed. Never here: anything that runs.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, NamedTuple

SINKS = ("topic", "files", "topic and files")


class Fault(NamedTuple):
    """How often it is drawn, beside the others, and what it is, for the report."""

    weight: int
    what: str


FAULTS = {
    "encoder killed": Fault(3, "kill -9 of an encoder."),
    "encoder stopped": Fault(
        2, "SIGSTOP of an encoder for 2 to 15 s: a call takes 10 s at most, then another one has it."
    ),
    "reader killed": Fault(4, "kill -9 of a reader."),
    "reader stopped past its session": Fault(
        3,
        "SIGSTOP of a reader for 13 to 18 s: the group gives up a member that is silent for 10 s, and it wakes as an owner.",
    ),
    "controller killed": Fault(2, "kill -9 of Serve's controller."),
    "controller stopped": Fault(1, "SIGSTOP of Serve's controller for 2 to 10 s."),
    "driver stopped": Fault(2, "SIGSTOP of `run` itself for 10 to 25 s, while what it started goes on."),
    "driver and its Ray killed": Fault(
        3, "kill -9 of `run` and of all that it started; it is started again within 2 s."
    ),
    "broker killed": Fault(4, "kill -9 of the broker, which is started again within 3 s, on its data as they lie."),
    "broker stopped past the session": Fault(
        2, "SIGSTOP of the broker for 13 to 18 s: connections stay, nothing answers."
    ),
    "second deployment comes and drains": Fault(
        1, "another deployment of the same pipeline joins the group, and leaves in order some seconds later."
    ),
    "second deployment comes and is killed": Fault(1, "the same, ended by kill -9."),
    "memory runs short": Fault(
        2,
        "a balloon takes the machine's memory over the limit of this pipeline's Ray, until Ray kills workers of it: all at once.",
    ),
}
# Those that need an output that is a topic: the moment is when its end runs ahead of what readers of committed records see.
TOPIC_FAULTS = {
    "broker killed mid-transaction": Fault(
        3, "kill -9 of the broker at a moment when a transaction of the output is open."
    ),
    "readers killed mid-transaction": Fault(3, "kill -9 of all readers at such a moment."),
}
# Those that need an output that is files.
S3_FAULTS = {
    "S3 killed": Fault(4, "kill -9 of the S3 server, which is started again within 6 s."),
    "S3 answers 500, stores nothing": Fault(3, "for 3 to 8 s every second request is refused."),
    "S3 answers 500, but stores": Fault(3, "for 3 to 8 s every second request is done, and denied."),
    "S3 drops the connection, but stores": Fault(3, "for 3 to 8 s every second request is done, and never answered."),
    "S3 slow": Fault(2, "for 3 to 8 s every second request waits for 1 to 4 s."),
    "S3 full": Fault(2, "for 3 to 8 s nothing can be stored: 507."),
}
# These are in a run from its start.
CONDITIONS = {
    "poison text": "one text, in the middle, ends the process of every encoder that takes it.",
    "tight limits": "500 records and 300 kB in flight, and texts of up to 100 kB.",
    "static members": "readers are static members of their group.",
}
# These look for their moment, or measure the machine: nothing else falls with them.
ALONE = ("memory runs short", *TOPIC_FAULTS)
WHAT = {name: fault.what for name, fault in (FAULTS | TOPIC_FAULTS | S3_FAULTS).items()} | CONDITIONS


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
        drawable = FAULTS | (TOPIC_FAULTS if "topic" in chosen else {}) | (S3_FAULTS if "files" in chosen else {})
        weights = [fault.weight for fault in drawable.values()]
        steps = []
        for _ in range(3):
            drawn = rng.choices(list(drawable), weights, k=2 if rng.random() < 0.3 else 1)
            alone = [fault for fault in drawn if fault in ALONE][:1]
            steps.append(Step(tuple(alone or dict.fromkeys(drawn)), round(rng.uniform(0, 2), 2)))
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
