"""The decision: how many encoder replicas there should be now. Pure.

Comes in: an observation, the state that the last decision left, the limits. Goes out: a target, its reason, the next state.
Never here: measuring (``arrivals``, ``throughput``, ``orders`` do that), or an exception.

    need = (arrivals + their trend until a new replica works) / rate
         + backlog as it will be then / (rate × drain target)
         + requests of other callers / calls that a replica takes

1. Old or missing figures change nothing, but for callers who wait, and for records that some reader holds before an empty
   pool: they get one replica, whatever the other readers do.
2. To zero when readers have held no record and done nothing for ``idle_s`` seconds; up again when one holds a record. Offsets
   that nobody can read (transaction markers, open transactions) therefore keep nothing awake.
3. While nobody knows a replica's rate: one, which shows it.
4. Never more than what the readers and the sink let through, when they are the bottleneck.
5. Up at once when the need leaves the target behind, but no faster than :class:`Orders` allows. What is on its way counts, so
   nodes that take minutes are ordered once.
6. Down when the backlog is gone and the highest arrivals of the last ``settle_s`` seconds need less; when they need far less,
   a moment of it will do, for that is no noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from workers.scaling.arrivals import Arrivals, smoothing
from workers.scaling.figures import MOST, Limits, Observation, Reason, count, number
from workers.scaling.orders import Orders
from workers.scaling.throughput import Throughput

# Up when the need is this share above the target (above what is on its way: the second); down when it is this share below,
# and less right after a step down, which may have been cut short.
UP_BAND, STARTING_BAND, DOWN_BAND, FOLLOWING_BAND = 0.03, 0.08, 0.10, 0.03
# The last piece of the settling time is believed when it needs no more than this share of the target.
SOON, BELIEVED = 1, 0.7
# And then this much is added: one replica of two would otherwise go in a lull, and be missed after it.
SPARE = 0.25
# Texts on their way through the pipeline are no backlog: so many seconds of arrivals, or of a replica's work.
FLOW_S = 3.0
# A backlog is sized to be gone in this share of the drain target, the rest is for what was not foreseen; and one of less than
# the second share's worth of arrivals drains by the way.
AIM, TOLERATED = 0.85, 1 / 3
# Arrivals that outrun the replicas by no more than this are noise, and pile nothing up.
OUTRUN = 0.10
# A trend counts as far as it stands out of the noise, and for no more than half the arrivals.
TREND_SPREADS, MOST_TREND = 0.25, 0.5
# Where the source is the limit, encoders have so much more than it brings.
SOURCE_MARGIN = 1.07


@dataclass(frozen=True, slots=True)
class State:
    """What is remembered between two decisions; ``State()`` knows nothing. Counters are those of the last observation."""

    at: float | None = None
    arrived_at: float = 0.0
    ready: int = 0
    backlog: float = 0.0
    arrived: float = 0.0
    done: float = 0.0
    call_s: float = 0.0
    idle_at: float | None = None
    arrivals: Arrivals = field(default_factory=Arrivals)
    throughput: Throughput = field(default_factory=Throughput)
    orders: Orders = field(default_factory=Orders)


@dataclass(frozen=True, slots=True)
class Decision:
    """The target, why, and the next state; for the log the ``need`` in replicas, and tokens or tokens/s."""

    target: int
    reason: Reason
    state: State
    need: float = 0.0
    rate: float | None = None
    arrivals: float = 0.0
    backlog: float = 0.0


@dataclass(frozen=True, slots=True)
class _Wish:
    """A need of ``replicas`` and what makes it."""

    replicas: float
    reason: Reason

    def whole(self, floor: int, most: int) -> int:
        return min(max(math.ceil(min(self.replicas, MOST) - 1e-9), floor), most)


def decide(seen: Observation, state: State, limits: Limits) -> Decision:
    """The number of replicas that there should be now. Never raises; meant to be asked every few seconds."""
    least, most = count(limits.least), max(count(limits.least), count(limits.most))
    target = min(max(count(seen.target), least), most)
    asked = (number(seen.requests) or 0.0) / max(1, limits.calls_per_replica)
    if not seen.usable(state.at, limits.stale_s):
        waiting = _Wish(asked, Reason.REQUESTS)
        if target == 0 and asked <= 1 and (number(seen.held) or 0.0) > 0:
            waiting = _Wish(1.0, Reason.BACKLOG)
        wanted = waiting.whole(least, most)
        return Decision(max(target, wanted), waiting.reason if wanted > target else Reason.STALE, state)
    # The trend from before this look: with a leap it does not follow the arrivals, and a larger backlog must not need less.
    trend, state = state.arrivals.trend, _remember(seen, state, limits, asked)
    if state.idle_at is not None and (target == 0 or seen.at - state.idle_at >= limits.idle_s):
        found = _Wish(0.0, Reason.LEAST if least else Reason.IDLE), least
    elif (rate := _rate(state, limits)) is None:
        found = _Wish(asked, Reason.MEASURING), min(max(target, 1, math.ceil(min(asked, MOST))), most)
    else:
        found = _sized(seen, state, limits, _Bounds(target, max(least, min(1, most)), most), rate, trend, asked)
    wish, decided = found
    orders = state.orders.moved(seen.at, count(seen.ready), target, decided)
    return Decision(
        decided,
        wish.reason,
        state if orders is state.orders else replace(state, orders=orders),
        wish.replicas,
        _rate(state, limits),
        state.arrivals.level,
        state.backlog,
    )


@dataclass(frozen=True, slots=True)
class _Bounds:
    target: int
    floor: int
    most: int


def _sized(
    seen: Observation, state: State, limits: Limits, bounds: _Bounds, rate: float, trend: float, asked: float
) -> tuple[_Wish, int]:
    target, floor, most = bounds.target, bounds.floor, bounds.most
    ready, now, arrivals = count(seen.ready), seen.at, state.arrivals
    drained = rate * AIM * max(1.0, limits.drain_s)
    flow = max(arrivals.level, rate)
    start_s = state.orders.start_s if state.orders.start_s is not None else limits.start_s
    ahead = trend * (start_s + smoothing(start_s)) - TREND_SPREADS * arrivals.spread
    ahead = min(max(0.0, ahead), MOST_TREND * arrivals.level)
    left = state.orders.backlog_then(
        state.backlog, arrivals.level, rate, now=now, ready=ready, start_s=start_s, outrun=OUTRUN
    )
    steady = (arrivals.level + ahead) / rate
    drain = left / drained if left > TOLERATED * limits.drain_s * flow else 0.0
    wish = _fed(_wish(steady, drain, asked), seen, state, rate, asked)
    if wish.whole(floor, most) > target:
        band = STARTING_BAND if ready < target else UP_BAND
        if wish.replicas <= target * (1 + band) and target > 0:
            return replace(wish, reason=Reason.STARTING if ready < target else Reason.STEADY), target
        # A little more than is needed now: else the next step comes at once.
        wanted = replace(wish, replicas=wish.replicas + UP_BAND * min(steady, wish.replicas)).whole(floor, most)
        allowed = state.orders.most(now, target)
        if wanted > allowed:
            return replace(wish, reason=Reason.GROWTH), max(target, allowed)
        return replace(wish, reason=Reason.MOST) if wish.replicas > most else wish, wanted
    return _lowered(seen, state, bounds, wish, rate, asked, ahead, max(drain, _due(state, flow) / drained))


def _lowered(
    seen: Observation,
    state: State,
    bounds: _Bounds,
    wish: _Wish,
    rate: float,
    asked: float,
    ahead: float,
    drain: float,
) -> tuple[_Wish, int]:
    """What less would do, and whether it may be less now."""
    target, floor, most = bounds.target, bounds.floor, bounds.most
    highs = state.arrivals.highs or (state.arrivals.level,)

    def lower(pieces: tuple[float, ...]) -> _Wish:
        steady = (max(*pieces, state.arrivals.level) * (1 + UP_BAND) + ahead) / rate
        return _fed(_Wish(steady + drain + asked, Reason.ARRIVALS), seen, state, rate, asked)

    low, soon = lower(highs), lower(highs[:SOON])
    if soon.replicas <= BELIEVED * target:
        low = replace(soon, replicas=soon.replicas + SPARE)
    to = low.whole(floor, most)
    band = FOLLOWING_BAND if state.orders.shrank(seen.at, 3.0) else DOWN_BAND
    if to >= target or low.replicas > target * (1 - band):
        return replace(wish, reason=_stays(wish, target, count(seen.ready), bounds)), target
    fed = low.reason in (Reason.READERS, Reason.SINK)
    if _due(state, max(state.arrivals.level, rate)) and not fed:
        return replace(wish, reason=Reason.DRAINING), target
    if len(highs) <= SOON or state.orders.shrank(seen.at):
        return replace(wish, reason=Reason.SETTLING), target
    to = max(to, state.orders.fewest(target))
    return replace(wish, reason=Reason.LEAST if to == floor and not fed else low.reason), to


def _stays(wish: _Wish, target: int, ready: int, bounds: _Bounds) -> Reason:
    if wish.reason in (Reason.READERS, Reason.SINK):
        return wish.reason
    if wish.replicas > bounds.most:
        return Reason.MOST
    if ready < target:
        return Reason.STARTING
    return Reason.SETTLING if wish.whole(bounds.floor, bounds.most) < target else Reason.STEADY


def _wish(steady: float, drain: float, asked: float) -> _Wish:
    reason = Reason.ARRIVALS if steady >= drain else Reason.BACKLOG
    return _Wish(steady + drain + asked, Reason.REQUESTS if asked > max(steady, drain) else reason)


def _fed(wish: _Wish, seen: Observation, state: State, rate: float, asked: float) -> _Wish:
    """The wish, cut to what reaches the encoders and what is taken off them; one may always try."""
    source, feed = state.throughput.source, number(seen.feed)
    if source is not None:
        cap = max(1.0, SOURCE_MARGIN * source / rate + asked)
        if wish.replicas > cap:
            wish = _Wish(cap, Reason.SINK if state.throughput.blocked else Reason.READERS)
    if feed:
        cap = max(1.0, SOURCE_MARGIN * feed / rate + asked)
        if wish.replicas > cap:
            wish = _Wish(cap, Reason.READERS)
    return wish


def _due(state: State, flow: float) -> float:
    """Tokens that wait longer than the pipeline takes."""
    return state.backlog if state.backlog > FLOW_S * flow else 0.0


def _rate(state: State, limits: Limits) -> float | None:
    return state.throughput.rate or number(limits.tokens_per_s) or None


def _remember(seen: Observation, state: State, limits: Limits, asked: float) -> State:
    """Learn from what was seen since the last look; a counter that went back belongs to a reader that began anew."""
    ready, backlog = count(seen.ready), seen.backlog
    passed = seen.at - state.at if state.at is not None else 0.0
    arrivals, throughput, orders = state.arrivals, state.throughput, state.orders
    arrived, done, called = seen.arrived - state.arrived, seen.done - state.done, seen.call_s - state.call_s
    orders = orders.arrived(seen.at, ready)
    arrived_at = seen.at if number(seen.arrived_at) is None else min(number(seen.arrived_at) or 0.0, seen.at)
    counted = arrived_at - state.arrived_at if state.at is not None else 0.0
    if counted > 0 and arrived >= 0:
        sample = min(arrived * (number(seen.tokens_per_record) or 0.0) / counted, MOST)
        start_s = orders.start_s if orders.start_s is not None else limits.start_s
        arrivals = arrivals.follow(sample, counted, start_s=start_s, settle_s=limits.settle_s)
    if passed > 0:
        if ready == 0 or ready != state.ready or done < 0 or called < 0:
            throughput = throughput.unsettled()
        else:
            throughput = throughput.learn(
                min(done, MOST),
                min(called, MOST),
                passed,
                ready=ready,
                waited=state.backlog,
                arrivals=arrivals.level,
                blocked=seen.blocked,
            )
    works = bool(seen.held) or asked > 0 or (state.at is not None and (done > 0 or called > 0))
    idle_at = None if works else (seen.at if state.idle_at is None else state.idle_at)
    if state.at is not None and counted <= 0:
        arrived_at = state.arrived_at
    return State(
        at=seen.at,
        arrived_at=arrived_at,
        ready=ready,
        backlog=backlog,
        arrived=seen.arrived if counted > 0 or state.at is None else state.arrived,
        done=seen.done,
        call_s=seen.call_s,
        idle_at=idle_at,
        arrivals=arrivals,
        throughput=throughput,
        orders=orders,
    )
