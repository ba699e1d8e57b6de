"""What a replica does in a second, and who is the bottleneck: the encoders, or what feeds and empties them. Pure.

Comes in: tokens done and the time that calls took. Goes out: a rate, and what the readers and the sink let through once they
are known to be the limit. Never here: how much there is to do.

A replica's rate is tokens over busy time. Busy are as many replicas as there are calls under way, and no more than there are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from workers.scaling.figures import toward

# Older work is forgotten by this much busy time of each replica; a rate is known after so much of it in all.
RATE_S, KNOWN_S = 60.0, 4.0
SHARE_S = 10.0
# Encoders that are busy for less than this share while work waits, for so long, are starved; above the other they limit.
STARVED, STARVED_S = 0.85, 20.0
SATURATED, SATURATED_S = 0.97, 20.0
# Work waits when there is this much of it for everyone.
WAITING_S = 6.0
# Less than this is no backlog: what the limit was does not matter any more.
NOTHING_S = 3.0
# When encoders limit again, the source is asked for so much more at a time.
PROBE = 1.25


@dataclass(frozen=True, slots=True)
class Throughput:
    """What is known of it. ``tokens`` over ``busy_s`` is the rate, both forgetting; ``share`` of the replicas is busy.

    ``flow``: tokens/s done. ``source``: tokens/s that are let through, None while the encoders are the limit; ``blocked``:
    by what comes after the readers.
    """

    tokens: float = 0.0
    busy_s: float = 0.0
    share: float = 1.0
    flow: float = 0.0
    starved_s: float = 0.0
    saturated_s: float = 0.0
    source: float | None = None
    blocked: bool = False

    @property
    def rate(self) -> float | None:
        """Tokens/s of one busy replica; None before it is measured."""
        return self.tokens / self.busy_s if self.busy_s >= KNOWN_S and self.tokens > 0 else None

    def unsettled(self) -> Throughput:
        """After an interval in which replicas came or went: who did how much, nobody knows."""
        return replace(self, share=1.0, flow=0.0, starved_s=0.0, saturated_s=0.0)

    def learn(
        self, done: float, called: float, passed: float, *, ready: int, waited: float, arrivals: float, blocked: bool
    ) -> Throughput:
        """After ``passed`` seconds with ``ready`` replicas: ``done`` tokens, ``called`` seconds of calls.

        At least ``waited`` tokens waited all the time; ``arrivals`` in tokens/s.
        """
        busy_s = min(called, ready * passed)
        keep = math.exp(-busy_s / (RATE_S * ready))
        tokens, summed_s = keep * self.tokens + done, keep * self.busy_s + busy_s
        share = toward(self.share, busy_s / (ready * passed), passed, SHARE_S)
        flow = toward(self.flow, done / passed, passed, SHARE_S) if self.flow else done / passed
        if summed_s < KNOWN_S or tokens <= 0:
            return Throughput(tokens, summed_s, share, flow)
        rate, source, whose = tokens / summed_s, self.source, self.blocked
        starved = share < STARVED and waited > WAITING_S * ready * rate
        starved_s = self.starved_s + passed if starved else 0.0
        saturated_s = self.saturated_s + passed if share >= SATURATED else 0.0
        if starved_s >= STARVED_S:
            source, whose = flow, blocked
        elif waited <= NOTHING_S * max(arrivals, rate):
            source = None
        elif source is not None and saturated_s >= SATURATED_S:
            source, saturated_s = PROBE * source, 0.0
        return Throughput(tokens, summed_s, share, flow, starved_s, saturated_s, source, whose)
