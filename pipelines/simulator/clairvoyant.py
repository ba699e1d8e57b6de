"""The scaler that knows the whole curve: the fewest GPU-hours for records that wait no longer than the drain target.

Comes in: a curve. Goes out: its GPU-hours and replicas at every tick. Never here: a guess.

It is defined by what it may do. It does the work of every record within ``drain_s`` seconds of its arrival (no sooner than
readers and sink let it through), as evenly as that allows, with whole replicas. It orders each so early that it is ready when
needed, and pays for the start as everybody does. Between two times of need a replica is kept when that costs less than another
start, which is the cheapest choice for each replica by itself, hence for all. A replica that is lost is ordered again in time.
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
    """Replicas that are needed at every tick, whole ones."""
    came = np.cumsum(fluid(curve))
    wait = max(1, round(drain_s / TICK_S))
    due = np.concatenate((np.zeros(min(wait, len(came))), came[:-wait]))
    due[-1] = came[-1]
    whole: type_series = np.clip(np.ceil(np.round(np.diff(taut(due, came), prepend=0.0), 6)), curve.least, curve.most)
    return whole


def taut(lower: type_series, upper: type_series) -> type_series:
    """The shortest path from 0 that stays at or above ``lower`` and at or below ``upper`` [ticks], both of which rise.

    Of all ways to do the work in time it has the least variation, and the least peak (Salehi et al., "Supporting Stored
    Video", 1998, who smooth video streams so).
    """
    low, high, count = lower.tolist(), upper.tolist(), len(lower)
    path = np.empty(count)
    tick, level = -1, 0.0
    while tick < count - 1:
        steepest, flattest, at_low, at_high = -np.inf, np.inf, tick + 1, tick + 1
        ahead = tick + 1
        while ahead < count:
            to_low, to_high = (low[ahead] - level) / (ahead - tick), (high[ahead] - level) / (ahead - tick)
            if to_low > flattest:  # the path bends up, where it touches what has come
                bend, slope = at_high, flattest
                break
            if to_high < steepest:  # and down, where it touches what is due
                bend, slope = at_low, steepest
                break
            if to_low >= steepest:
                steepest, at_low = to_low, ahead
            if to_high <= flattest:
                flattest, at_high = to_high, ahead
            ahead += 1
        else:
            bend, slope = count - 1, (low[-1] - level) / (count - 1 - tick)
        path[tick + 1 : bend + 1] = level + slope * np.arange(1, bend - tick + 1)
        tick, level = bend, float(path[bend])
    return path


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
