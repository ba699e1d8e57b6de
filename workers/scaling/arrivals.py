"""How much arrives, tokens/s: its level, its trend, its noise, and how high it was of late. Pure.

Comes in: what arrived between two looks. Goes out: a level that noise does not move and a change moves at once. Never here:
replicas.

A level that is smoothed lags behind a trend by as much as it is smoothed (Brown, "Smoothing, Forecasting and Prediction", 1963);
what is expected of it is therefore level + trend × smoothing. What leaves that by more than the noise, and stays there, is
no noise: the level is taken from the last few seconds, and smoothing begins anew.
"""

from __future__ import annotations

from dataclasses import dataclass

from workers.scaling.figures import toward

FAST_S, SPREAD_S, TREND_S = 4.0, 120.0, 240.0
# Noise is smoothed over as long as a replica takes to start, within these: what passes sooner, no replica can help.
SLOW_S = (30.0, 120.0)
# A leap leaves the expected by this share, and by so many mean deviations, for so long.
LEAP_SHARE, LEAP_SPREADS, LEAP_S = 0.15, 3.5, 4.0
# However much noise there was: a fall to this share of the expected is one.
FALLEN = 0.3
# The settling time in pieces, of which the highest level is kept.
PIECES = 12


@dataclass(frozen=True, slots=True)
class Arrivals:
    """What is known of the arrivals. ``trend`` in tokens/s²; ``spread``: mean absolute deviation of what two seconds bring.

    ``highs``: the highest level in each piece of the settling time, the present piece first.
    """

    level: float = 0.0
    trend: float = 0.0
    spread: float = 0.0
    highs: tuple[float, ...] = ()
    fast: float = 0.0
    seen_s: float = 0.0
    since_leap_s: float = 0.0
    beyond_s: float = 0.0
    piece_s: float = 0.0

    def follow(self, sample: float, passed: float, *, start_s: float, settle_s: float) -> Arrivals:
        """The arrivals after ``passed`` more seconds that brought ``sample`` tokens/s on average."""
        within = min(smoothing(start_s), self.since_leap_s + passed)
        fast = toward(self.fast, sample, passed, min(FAST_S, self.since_leap_s + passed))
        expected = self.level + self.trend * within
        leap = max(LEAP_SHARE * expected, LEAP_SPREADS * self.spread)
        fall = min(leap, (1 - FALLEN) * expected)
        beyond = (fast > expected + leap) - (fast < expected - fall)
        beyond_s = beyond * passed + (self.beyond_s if beyond * self.beyond_s > 0 else 0.0)
        trend, since_leap_s = self.trend, self.since_leap_s + passed
        if abs(beyond_s) >= LEAP_S:
            level, since_leap_s = fast, FAST_S
        else:
            level = toward(self.level, sample, passed, within)
            level = max(0.0, min(max(level, expected - fall), expected + leap))
            if since_leap_s > within:
                trend = toward(trend, (level - self.level) / passed, passed, TREND_S)
        seen_s = self.seen_s + passed
        spread = self.spread
        if self.seen_s > 0:
            spread = toward(spread, abs(sample - expected), passed, min(SPREAD_S, seen_s))
        highs, piece_s = self.highs or (level,), self.piece_s + passed
        if piece_s >= settle_s / PIECES:
            highs, piece_s = (level, *highs[: PIECES - 1]), 0.0
        elif level > highs[0]:
            highs = (level, *highs[1:])
        return Arrivals(level, trend, spread, highs, fast, seen_s, since_leap_s, beyond_s, piece_s)


def smoothing(start_s: float) -> float:
    """Seconds that the level is smoothed over."""
    return min(max(start_s, SLOW_S[0]), SLOW_S[1])
