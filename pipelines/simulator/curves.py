"""Load curves: how much arrives when, how long a replica takes to start, what goes wrong on the way.

Comes in: nothing; each curve is made from its own seed. Goes out: curves, and the standard set of them. Never here: a scaler.

Load is counted in replicas: 1.0 is what one replica embeds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

type_series = npt.NDArray[np.float64]

TICK_S = 2.0
# One replica: 1,000 texts of 100 tokens a second, so that 10^6 records/s are 1,000 replicas.
TOKENS_PER_S = 100_000.0
TOKENS_PER_RECORD = 100.0
HOUR = 3600.0


@dataclass(frozen=True, slots=True)
class Curve:
    """One load. ``load`` [ticks] in replicas; times in seconds.

    ``starts_s``: from an order to a replica that works. ``marks``: when a backlog begins that must be drained in time.
    ``source``: what the readers or the sink let through, in replicas; ``limit`` says who. ``losses``: (when, how many) ready
    replicas die; whoever runs them starts others in their place. ``initial`` replicas are ready when the curve begins.
    ``hard``: beyond the standard set; what nobody should promise much for.
    """

    name: str
    about: str
    load: type_series
    starts_s: float
    initial: int
    least: int = 0
    most: int = 1000
    marks: tuple[float, ...] = ()
    source: float | None = None
    limit: Literal["readers", "sink"] = "readers"
    losses: tuple[tuple[float, int], ...] = ()
    hard: bool = False
    seconds: type_series = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "seconds", np.arange(len(self.load)) * TICK_S)


def _time(hours: float) -> type_series:
    return np.arange(int(hours * HOUR / TICK_S), dtype=np.float64) * TICK_S


def _noisy(load: npt.NDArray[np.floating], seed: int, share: float = 0.05) -> type_series:
    """Independent noise on every tick: what a steady stream looks like in two seconds."""
    noise = np.random.default_rng(seed).normal(1.0, share, len(load))
    noisy: type_series = np.asarray(load * np.clip(noise, 0.0, None), dtype=np.float64)
    return noisy


def step() -> Curve:
    """Ten times the load at once, and back."""
    t = _time(6)
    load = np.where((t >= 0.5 * HOUR) & (t < 5 * HOUR), 20.0, 2.0)
    return Curve("step", "2 → 20 at once and back, nodes take 1 min", _noisy(load, 1), 60, 2, marks=(0.5 * HOUR,))


def steps() -> Curve:
    """Up and down a staircase whose nodes come late."""
    t = _time(10)
    heights = np.array([2, 20, 50, 80, 60, 30])
    load = heights[np.minimum(((t + 1.5 * HOUR) // (2 * HOUR)).astype(int), 5)].astype(float)
    about = "2 → 20 → 50 → 80 → 60 → 30, two hours each, nodes take 5 min"
    return Curve("staircase", about, _noisy(load, 2), 300, 0, marks=(0.5 * HOUR, 2.5 * HOUR, 4.5 * HOUR))


def cold_start() -> Curve:
    """From nothing to two hundred, within a thousand."""
    t = _time(8)
    load = np.where(t < 0.2 * HOUR, 1.5, np.where((t >= HOUR) & (t < 7.5 * HOUR), 200.0, 0.0))
    about = "0 → 200 at once, nodes take 3 min"
    return Curve("cold start", about, _noisy(load, 3), 180, 0, marks=(HOUR,))


def ramp() -> Curve:
    """Up over an hour, down over an hour."""
    t = _time(4)
    load = np.interp(t, [0, 0.5 * HOUR, 1.5 * HOUR, 2.5 * HOUR, 3.5 * HOUR, 4 * HOUR], [10, 10, 200, 200, 10, 10])
    return Curve("ramp", "10 → 200 over an hour and back, nodes take 2 min", _noisy(load, 4), 120, 10)


def day_and_night() -> Curve:
    """A large service's day."""
    t = _time(24)
    load = 500 + 440 * np.sin(2 * np.pi * (t / HOUR - 7) / 24) + 40 * np.sin(2 * np.pi * t / (3 * HOUR))
    about = "30,000 to 980,000 records/s over 24 h, nodes take 3 min"
    return Curve("day and night", about, _noisy(load, 5), 180, 120, most=1200)


def small_day() -> Curve:
    """A small service's day, with nothing to do at night."""
    t = _time(24)
    load = np.clip(5.2 * np.sin(2 * np.pi * (t / HOUR - 7) / 24), 0, None)
    return Curve("small day", "up to 5 by day, nothing by night, nodes take 2 min", _noisy(load, 6, 0.1), 120, 0)


def bursts() -> Curve:
    """Three minutes of much, every half hour."""
    return _bursts("burst", 3, 180)


def sharp_bursts() -> Curve:
    """Over before the nodes that it would take are there."""
    return _bursts("sharp burst", 6, 60, hard=True)


def _bursts(name: str, times: float, length_s: float, *, hard: bool = False) -> Curve:
    t = _time(6)
    first, every = 0.25 * HOUR, 0.5 * HOUR
    inside = (t >= first) & ((t - first) % every < length_s)
    marks = tuple(float(at) for at in np.arange(first, 6 * HOUR, every))
    about = f"10, and {10 * times:g} for {length_s / 60:g} min in each half hour, nodes take 1 min"
    load = _noisy(np.where(inside, 10.0 * times, 10.0), 7)
    return Curve(name, about, load, 60, 0, marks=marks, hard=hard)


def noise() -> Curve:
    """A constant mean that never looks like it."""
    return _wandering("noise", 9.0, 0.1)


def heavy_noise() -> Curve:
    """The same, worse."""
    return _wandering("heavy noise", 4.0, 0.2, hard=True)


def _wandering(name: str, shape: float, far: float, *, hard: bool = False) -> Curve:
    t = _time(6)
    rng = np.random.default_rng(8)
    wander, walk = np.empty(len(t)), 0.0
    for tick, push in enumerate(rng.normal(0, 1, len(t))):
        walk = 0.95 * walk + push * np.sqrt(1 - 0.95**2)  # forgets in 40 s
        wander[tick] = walk
    load = 40 * np.clip(1 + far * wander, 0, None) * rng.gamma(shape, 1 / shape, len(t))
    about = f"40 on average, ±{1 / shape**0.5:.0%} from tick to tick, ±{far:.0%} over a minute, nodes take 2 min"
    return Curve(name, about, load, 120, 42, hard=hard)


def hot_partition() -> Curve:
    """More than one reader can feed, so more encoders would idle."""
    t = _time(6)
    load = np.where((t >= HOUR) & (t < 2 * HOUR), 60.0, 10.0)
    about = "10 → 60 for an hour, of which the reader passes on 25; nodes take 2 min"
    return Curve("hot partition", about, _noisy(load, 9), 120, 10, source=25.0)


def slow_sink() -> Curve:
    """More than the sink takes."""
    t = _time(6)
    load = np.where((t >= HOUR) & (t < 3 * HOUR), 35.0, 10.0)
    about = "10 → 35 for two hours, of which the sink takes 25; nodes take 2 min"
    return Curve("slow sink", about, _noisy(load, 12), 120, 10, source=25.0, limit="sink")


def spot() -> Curve:
    """Nodes that are taken away."""
    t = _time(6)
    load = np.full(len(t), 95.0)
    about = "95, while 1 of the nodes, then 30, then 60 are taken away; nodes take 4 min"
    losses = ((0.5 * HOUR, 1), (1.5 * HOUR, 30), (4 * HOUR, 60))
    return Curve("spot loss", about, _noisy(load, 10), 240, 97, losses=losses, marks=tuple(at for at, _ in losses[1:]))


def batches() -> Curve:
    """A batch every two hours and nothing between."""
    t = _time(12)
    load = np.where(t % (2 * HOUR) < 0.4 * HOUR, 25.0, 0.0)
    marks = tuple(float(at) for at in np.arange(2 * HOUR, 12 * HOUR, 2 * HOUR))
    about = "25 for 24 minutes every two hours, nothing between, nodes take 1 min"
    return Curve("batches", about, _noisy(load, 11), 60, 0, marks=marks)


CURVES: tuple[Callable[[], Curve], ...] = (
    step,
    steps,
    cold_start,
    ramp,
    day_and_night,
    small_day,
    bursts,
    noise,
    hot_partition,
    slow_sink,
    spot,
    batches,
)


def standard() -> list[Curve]:
    """The standard set."""
    return [make() for make in CURVES]


def hard() -> list[Curve]:
    """Curves beyond the standard set."""
    return [sharp_bursts(), heavy_noise()]
