"""The scalers that are compared: ours, Ray Serve's default, and lag over a threshold as KEDA has it.

Comes in: a glance at the pipeline. Goes out: a target. Never here: the future (``clairvoyant`` has that).

The others are written from what they document and do (Ray 2.60's ``replica_queue_length_autoscaling_policy`` with its delays;
KEDA 2's Kafka scaler before a Kubernetes HPA), with their defaults where those make sense here, said below where not.
"""

from __future__ import annotations

import math
from collections import deque

from pipelines.simulator.curves import TICK_S, TOKENS_PER_RECORD, TOKENS_PER_S, Curve
from pipelines.simulator.world import HELD, IN_FLIGHT, Glance, records
from workers.scaling import Decision, Limits, Observation, State, decide

# What a reader measures of itself is more than it reaches in the long run; and the figures of all readers are added up, also
# where one of them has the hot partition.
READER_GUESS, READERS = 1.2, 4


class TokenBacklog:
    """Ours: ``workers.scaling`` itself. It learns the rate of a replica and how long one takes to start, as it does in life."""

    name = "stream-embedder"

    def __init__(self, curve: Curve, drain_s: float = 60.0) -> None:
        self._limits = Limits(curve.least, curve.most, drain_s=drain_s, calls_per_replica=IN_FLIGHT)
        # A reader knows how fast it works when it works; that of a sink, nobody does before it is too slow.
        by_readers = curve.source is not None and curve.limit == "readers"
        self._feed = READERS * READER_GUESS * curve.source * TOKENS_PER_S if by_readers and curve.source else None
        self._blocked = curve.source is not None and not by_readers
        self._state = State()
        self.decision: Decision | None = None

    def __call__(self, seen: Glance) -> int:
        """The policy's target."""
        waiting = records(seen.backlog)
        decision = decide(
            Observation(
                at=seen.at,
                ready=seen.ready,
                target=seen.target,
                age_s=TICK_S,
                held=min(HELD, waiting),
                unread=max(0.0, waiting - HELD),
                tokens_per_record=TOKENS_PER_RECORD,
                arrived=records(seen.arrived),
                done=seen.done,
                call_s=seen.call_s,
                feed=self._feed,
                blocked=self._blocked,
            ),
            self._state,
            self._limits,
        )
        self._state, self.decision = decision.state, decision
        return decision.target


class ServeDefault:
    """Ray Serve: ongoing requests over what a replica should have, once that has lasted.

    Requests are the readers' calls, of which there are ``in_flight`` for each replica at most; with Serve's own target of 2
    for a replica that takes 2 it would never grow, so the target is three quarters of them.
    """

    name = "Ray Serve, requests"
    target_ongoing = 0.75 * IN_FLIGHT
    up_s, down_s, look_back_s = 30.0, 600.0, 30.0

    def __init__(self, curve: Curve) -> None:
        self._calls: deque[float] = deque(maxlen=int(self.look_back_s / TICK_S))
        self._direction, self._since = 0, 0.0

    def __call__(self, seen: Glance) -> int:
        """Serve's target."""
        # Where nobody serves, a reader's first call waits.
        self._calls.append(seen.calls if seen.ready else float(seen.backlog > 0))
        ongoing = sum(self._calls) / len(self._calls)
        if seen.ready == 0:
            return max(1, seen.target) if ongoing > 0 else seen.target
        wanted = math.ceil(ongoing / self.target_ongoing - 1e-9)
        direction = (wanted > seen.target) - (wanted < seen.target)
        if direction != self._direction:
            self._direction, self._since = direction, seen.at
        if direction == 0 or seen.at - self._since < (self.up_s if direction > 0 else self.down_s):
            return seen.target
        self._direction = 0
        return wanted if direction > 0 or seen.target == 1 else max(1, wanted)


class LagProportional:
    """KEDA: an HPA that wants ceil(lag / threshold) replicas.

    The threshold is what a replica embeds in the drain target, idle consumers are allowed (encoders are none), the rest is
    as it comes: a look every 15 s, a tolerance of 10 %, at most twice as many or 4 more, the highest wish of the last
    300 s on the way down, and 300 s without lag before zero.
    """

    name = "KEDA, lag"
    every_s, tolerance, window_s, cooldown_s = 15.0, 0.1, 300.0, 300.0

    def __init__(self, curve: Curve, drain_s: float = 60.0) -> None:
        self._threshold = TOKENS_PER_S * drain_s / TOKENS_PER_RECORD
        self._least = curve.least
        self._wishes: deque[tuple[float, int]] = deque()
        self._next = self._active = 0.0

    def __call__(self, seen: Glance) -> int:
        """KEDA's target."""
        if seen.at < self._next:
            return seen.target
        self._next = seen.at + self.every_s
        lag = records(seen.backlog)
        if lag > 0:
            self._active = seen.at
        if seen.target == 0:
            return 1 if lag > 0 else 0
        if self._least == 0 and seen.at - self._active >= self.cooldown_s:
            self._wishes.clear()
            return 0
        wish = math.ceil(lag / self._threshold - 1e-9)
        if seen.ready and abs(lag / (self._threshold * seen.ready) - 1) <= self.tolerance:
            wish = seen.target
        wish = max(1, self._least, min(wish, max(2 * seen.target, seen.target + 4)))
        self._wishes.append((seen.at, wish))
        while self._wishes[0][0] < seen.at - self.window_s:
            self._wishes.popleft()
        return max(wish, min(seen.target, max(past for _, past in self._wishes)))
