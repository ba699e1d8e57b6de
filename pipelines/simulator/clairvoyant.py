"""The scaler that knows the whole curve: the fewest GPU-hours for records that wait no longer than the drain target.

Comes in: a curve. Goes out: its GPU-hours and replicas at every tick. Never here: a guess.

It is defined by what it may do. It spreads the work of every record over the ``drain_s`` seconds after its arrival (no
sooner than readers and sink let it through), so it has whole replicas for the mean of that time. It orders each so early
that it is ready when needed, and pays for the start as everybody does. Between two times of need a replica is kept when
that costs less than another start, which is the cheapest choice for each replica by itself, hence for all. A replica that is
lost is ordered again in time.
"""

from __future__ import annotations

import numpy as np

from pipelines.simulator.curves import TICK_S, Curve, type_series


def fluid(curve: Curve) -> type_series:
    """The load as the source lets it through, in replicas by tick."""
    if curve.source is None:
        return curve.load
    through, waiting = np.empty(len(curve.load)), 0.0
    for tick, load in enumerate(curve.load.tolist()):
        waiting += load
        through[tick] = min(waiting, curve.source)
        waiting -= through[tick]
    return through


def demand(curve: Curve, drain_s: float) -> type_series:
    """Replicas that are needed at every tick, whole ones: the load's mean over the last ``drain_s`` seconds."""
    width = max(1, round(drain_s / TICK_S))
    total = np.concatenate((np.zeros(width), np.cumsum(fluid(curve))))
    mean = (total[width:] - total[:-width]) / width
    whole: type_series = np.clip(np.ceil(np.round(mean, 9)), curve.least, curve.most)
    return whole


def clairvoyant(curve: Curve, drain_s: float) -> tuple[float, type_series]:
    """GPU-hours, and the replicas that are kept at every tick (starts not among them)."""
    needed = demand(curve, drain_s)
    kept = np.zeros(len(needed))
    start_ticks = curve.starts_s / TICK_S
    starts = 0
    for level in range(1, int(needed.max()) + 1):
        on = needed >= level
        edges = np.flatnonzero(np.diff(np.concatenate(([False], on, [False])).astype(np.int8)))
        begins, ends = edges[::2], edges[1::2]
        gaps = begins[1:] - ends[:-1]
        keep = gaps <= start_ticks
        starts += 1 + int((~keep).sum())
        if level <= curve.initial and begins[0] <= start_ticks:  # it is there already, and worth keeping
            starts -= 1
            on[: begins[0]] = True
        for end, begin in zip(ends[:-1][keep], begins[1:][keep], strict=True):
            on[end:begin] = True
        kept += on
    lost = sum(count for _, count in curve.losses)
    paid_s = float(kept.sum()) * TICK_S + (starts + lost) * curve.starts_s
    return paid_s / 3600, kept
