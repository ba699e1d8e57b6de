"""What happens to a load under a scaler: nodes that take minutes, encoders that serve what they can, records that wait.

Comes in: a curve, and a scaler that is asked every tick. Goes out: what was there at every tick. Never here: a decision.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from pipelines.simulator.curves import TICK_S, TOKENS_PER_RECORD, TOKENS_PER_S, Curve, type_series

# Calls under way for each replica, and records that a reader holds; both as the settings' defaults have it.
IN_FLIGHT = 2
HELD = 50_000.0


@dataclass(slots=True)
class Glance:
    """What a scaler may see at ``at`` seconds. Backlog, ``arrived`` and ``done`` in tokens, the latter two counted up.

    ``calls``: under way now; ``call_s``: their seconds, counted up. ``blocked``: work waits, and no encoder gets it.
    """

    at: float
    ready: int
    target: int
    backlog: float
    arrived: float
    done: float
    calls: float
    call_s: float


class Scaler(Protocol):
    """Says how many replicas there should be."""

    def __call__(self, seen: Glance) -> int:
        """The target now."""
        ...


@dataclass(frozen=True, slots=True)
class Run:
    """A curve under a scaler, by tick: replicas ``ready`` and ``paid`` for, the ``target``; ``arrived`` and ``served`` tokens."""

    curve: Curve
    ready: type_series
    paid: type_series
    target: type_series
    arrived: type_series
    served: type_series

    @property
    def backlog(self) -> type_series:
        """Tokens that wait at the end of each tick."""
        waiting: type_series = np.cumsum(self.arrived) - np.cumsum(self.served)
        return waiting


def simulate(curve: Curve, scaler: Scaler) -> Run:
    """Run a curve. A replica is paid for from its order on; one that is not wanted goes at once, those on their way first."""
    ticks = len(curve.load)
    ready_at, paid_at, target_at, served_at = (np.empty(ticks) for _ in range(4))
    arrivals = curve.load * TOKENS_PER_S * TICK_S
    passes = float("inf") if curve.source is None else curve.source * TOKENS_PER_S * TICK_S
    # A replica is a few per cent faster or slower from tick to tick.
    speed = TOKENS_PER_S * TICK_S * np.random.default_rng(17).normal(1.0, 0.03, ticks)
    losses = deque(sorted(curve.losses))
    starting: deque[tuple[float, int]] = deque()
    ready = target = curve.initial
    backlog = arrived = done = call_s = calls = 0.0
    for tick, (coming, able) in enumerate(zip(arrivals.tolist(), speed.tolist(), strict=True)):
        now = tick * TICK_S
        while starting and starting[0][0] <= now:
            ready += starting.popleft()[1]
        if losses and losses[0][0] <= now:
            lost = min(losses.popleft()[1], ready)
            ready -= lost
            starting.append((now + curve.starts_s, lost))
        glance = Glance(now, ready, target, backlog, arrived, done, calls, call_s)
        wanted = min(max(scaler(glance), curve.least), curve.most)
        pending = sum(count for _, count in starting)
        if wanted > ready + pending:
            starting.append((now + curve.starts_s, wanted - ready - pending))
        surplus = ready + pending - wanted
        while surplus > 0 and starting:
            at, count = starting.pop()
            if count > surplus:
                starting.append((at, count - surplus))
            surplus -= min(count, surplus)
        ready -= max(0, surplus)
        target = wanted
        capacity = ready * able
        waiting = backlog + coming
        served = min(waiting, capacity, passes)
        backlog, arrived, done = waiting - served, arrived + coming, done + served
        busy = served / able if able > 0 else 0.0
        calls = float(IN_FLIGHT * ready) if served >= capacity else busy
        call_s += calls * TICK_S
        ready_at[tick], target_at[tick], served_at[tick] = ready, target, served
        paid_at[tick] = ready + sum(count for _, count in starting)
    return Run(curve, ready_at, paid_at, target_at, arrivals, served_at)


def records(tokens: float) -> float:
    """Tokens as records."""
    return tokens / TOKENS_PER_RECORD
