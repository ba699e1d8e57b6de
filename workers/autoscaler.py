"""The scaling policy at work: it asks the readers for their figures, decides, and says what it decided and why.

Comes in: what readers count (their metrics), and who answers queries; replicas that are ready and wanted, requests under way.
Goes out: a target; a log line and metrics for each decision. Never here: the decision itself (``workers.scaling``), Ray, or Kafka.

A thread of its own asks. Whoever wants a target gets one from memory: that never waits, and never raises.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from workers import log, metrics
from workers.periodic import every
from workers.query_demand import QueryDemand
from workers.scaling import Decision, Limits, Observation, Reason, State, decide

LOG = log.get(__name__)

PERIOD_S = 2.0
# The mean of Serve's request counts reaches back so far; within it a request may still be a reader's call.
REQUESTS_LAST_S = 45.0
# Of what readers have prepared, so much of the past counts (a half-life, in looks).
FORGET = 0.9
# A reader has shown how fast it is after so many seconds of it.
FEED_KNOWN_S = 0.5
SAY_AGAIN_S = 60.0

type_stats = Mapping[str, float]
type_ask = Callable[[], Sequence[type_stats]]


@dataclass(frozen=True, slots=True)
class Figures:
    """What all readers said at ``at``, monotonic seconds. Their backlogs were ``age_s`` old at most, ``mean_age_s`` on average."""

    at: float
    age_s: float
    mean_age_s: float
    held: float
    backlog: float
    arrived: float
    done: float
    call_s: float
    calls: float
    tokens_per_record: float | None
    feed: float | None
    blocked: bool


class Readers:
    """Adds up what readers count, of which any may begin anew, or be missing."""

    def __init__(self, count: int) -> None:
        """``count`` readers are needed for an answer."""
        self._count = count
        self._prepared = [0.0, 0.0]
        self._at_speed = [0.0, 0.0]
        self._before: dict[str, float] = {}

    def add_up(self, at: float, answers: Sequence[type_stats]) -> Figures | None:
        """The figures; None while a reader is missing, or has not heard from its brokers."""
        if len(answers) < self._count:
            return None
        ages = [answer.get("backlog_age_seconds", math.inf) for answer in answers]
        if not all(math.isfinite(age) for age in ages):
            return None

        def total(metric: metrics.Metric) -> float:
            return sum(
                value
                for answer in answers
                for name, value in answer.items()
                if name == metric.name or name.startswith(metric.name + "{")
            )

        self._forgetting(self._prepared, total(metrics.TOKENS_PREPARED), total(metrics.RECORDS_PREPARED), "prepared")
        self._forgetting(self._at_speed, total(metrics.PREPARED_AT_SPEED), total(metrics.PREPARING_SECONDS), "at_speed")
        tokens, records = self._prepared
        fast, seconds = self._at_speed
        return Figures(
            at=at,
            age_s=max(ages),
            mean_age_s=sum(ages) / len(ages),
            held=total(metrics.IN_FLIGHT_RECORDS),
            backlog=total(metrics.BACKLOG_RECORDS),
            arrived=total(metrics.RECORDS_ARRIVED),
            done=total(metrics.TOKENS_ENCODED),
            call_s=total(metrics.CALL_SECONDS),
            calls=total(metrics.CALLS_IN_FLIGHT),
            # Before anything is prepared a record is a record: one token, which makes a backlog of few tokens.
            tokens_per_record=tokens / records if records > 0 else 1.0,
            # Each reader works beside the others.
            feed=self._count * fast / seconds if seconds >= FEED_KNOWN_S else None,
            blocked=total(metrics.PARTITIONS_PAUSED) > 0,
        )

    def _forgetting(self, sums: list[float], tokens: float, per: float, name: str) -> None:
        """Add what was counted since the last look to sums that forget; nothing new forgets nothing."""
        new = (tokens - self._before.get(name, 0.0), per - self._before.get(name + "/", 0.0))
        self._before |= {name: tokens, name + "/": per}
        if min(new) >= 0 and new[1] > 0:
            sums[0], sums[1] = FORGET * sums[0] + new[0], FORGET * sums[1] + new[1]


class Autoscaler:
    """Knows how many encoders there should be. ``clock`` in seconds, as the figures' ages."""

    def __init__(
        self,
        ask: type_ask,
        limits: Limits,
        *,
        readers: int,
        meter: metrics.Metrics,
        clock: Callable[[], float] = time.monotonic,
        ask_queries: type_ask | None = None,
    ) -> None:
        """``ask``, and ``ask_queries`` of who answers them, may take long and raise anything: a thread of ours calls them."""
        self._ask = ask
        self._ask_queries = ask_queries
        self._demand = QueryDemand()
        self._limits = limits
        self._readers = Readers(readers)
        self._meter = meter
        self._clock = clock
        self._state = State()
        self._figures: Figures | None = None
        self._held = 0.0
        self._calls: deque[tuple[float, float]] = deque()
        self._decided: Figures | None = None
        self._decided_at = -math.inf
        self._said: tuple[int, Reason] | None = None
        self._said_at = -math.inf
        self._since = 0.0
        self.last: dict[str, Any] | None = None
        """What was decided last, for people: ``target``, ``need``, ``reason``, and ``since`` when (Unix time)."""
        self._asks: threading.Event | None = None
        self._failed = False

    # ---- the thread that asks

    def start(self) -> None:
        """Begin to ask. Serve drops a policy without a word when it makes another: the asking ends with this object."""
        self._asks = every(PERIOD_S, self.look, "autoscaler")

    def stop(self) -> None:
        """Ask no more."""
        if self._asks is not None:
            self._asks.set()

    def look(self) -> None:
        """Ask once; what cannot be had now leaves the last figures, which grow old."""
        if self._ask_queries is not None:
            try:
                self._demand.note(self._clock(), self._ask_queries())
            except Exception as error:  # noqa: BLE001 - who answers them is being replaced
                LOG.debug("queries not asked %s", log.fields(error=type(error).__name__))
        try:
            answers = self._ask()
            found = self._readers.add_up(self._clock(), answers)
        except Exception as error:  # noqa: BLE001 - readers are being replaced, or Serve is; we ask again
            LOG.debug("readers not asked %s", log.fields(error=type(error).__name__))
            self._held = 0.0
            return
        self._held = sum(answer.get(metrics.IN_FLIGHT_RECORDS.name, 0.0) for answer in answers)
        if found is not None:
            self._figures = found

    # ---- whoever wants to know

    def target(self, ready: int, target: int, requests: Callable[[], float], least: int, most: int) -> int:
        """How many replicas there should be, of which ``ready`` take calls and ``target`` are wanted so far.

        ``requests``: all that are waiting or being served, our readers' calls among them; asked only when it is needed.
        """
        now, figures = self._clock(), self._figures
        news = figures is not None and figures is not self._decided
        if not news and now - self._decided_at < self._limits.stale_s:
            return target
        self._decided, self._decided_at = figures, now
        try:
            return self._decide(now, figures, ready, target, requests(), least, most)
        except Exception:
            # A policy that raises stops every application of the cluster from being updated. This one is for a bug of ours.
            if not self._failed:
                self._failed = True
                LOG.exception("scaling failed; the number of encoders stays %s", log.fields(target=target))
            return target

    def _decide(
        self, now: float, figures: Figures | None, ready: int, target: int, requests: float, least: int, most: int
    ) -> int:
        asked = self._others(now, requests, figures) + self._demand.replicas * self._limits.calls_per_replica
        seen = Observation(now, ready, target, math.inf, held=self._held, requests=asked)
        if figures is not None:
            seen = Observation(
                # Counters are of the moment when readers were asked.
                at=max(figures.at, self._state.at or 0.0),
                ready=ready,
                target=target,
                age_s=now - figures.at + figures.age_s,
                held=figures.held,
                unread=max(0.0, figures.backlog - figures.held),
                tokens_per_record=figures.tokens_per_record,
                arrived=figures.arrived,
                done=figures.done,
                call_s=figures.call_s,
                feed=figures.feed,
                blocked=figures.blocked,
                requests=seen.requests,
                arrived_at=figures.at - figures.mean_age_s,
            )
        decision = decide(seen, self._state, replace(self._limits, least=least, most=most))
        self._state = decision.state
        self._say(now, seen, decision)
        return decision.target

    def _others(self, now: float, requests: float, figures: Figures | None) -> float:
        """Requests that are neither our readers' calls nor for queries: Serve counts all, as a mean over some time."""
        self._calls.append((now, figures.calls + self._demand.calls if figures is not None else math.inf))
        while self._calls[0][0] < now - REQUESTS_LAST_S:
            self._calls.popleft()
        ours = max(calls for _, calls in self._calls)
        # Less than half a request is what is left of one in the mean.
        return max(0.0, requests - ours) if requests - ours >= 0.5 else 0.0

    # ---- what is said

    def _say(self, now: float, seen: Observation, decision: Decision) -> None:
        meter = self._meter
        meter.set(metrics.ENCODERS_TARGET, decision.target)
        meter.add(metrics.SCALING_DECISIONS, reason=decision.reason.value)
        if math.isfinite(seen.age_s):
            meter.set(metrics.SCALING_AGE, seen.age_s)
        if decision.reason is not Reason.STALE:
            meter.set(metrics.ENCODERS_NEED, decision.need)
            meter.set(metrics.SCALING_TOKEN_BACKLOG, decision.backlog)
            meter.set(metrics.SCALING_ARRIVALS, decision.arrivals)
            meter.set(metrics.SCALING_RATE, decision.rate or 0.0)
        said = (decision.target, decision.reason)
        if said != self._said:
            self._since = time.time()
        self.last = {
            "target": decision.target,
            "need": decision.need,
            "reason": decision.reason.value,
            "since": self._since,
        }
        if said == self._said and now - self._said_at < SAY_AGAIN_S:
            return
        self._said, self._said_at = said, now
        LOG.info(
            "encoders %s",
            log.fields(
                target=decision.target,
                before=seen.target,
                ready=seen.ready,
                reason=decision.reason.value,
                need=decision.need,
                backlog_tokens=round(decision.backlog),
                arrivals_tokens_per_s=round(decision.arrivals),
                replica_tokens_per_s="unknown" if decision.rate is None else round(decision.rate),
                held="unknown" if seen.held is None else round(seen.held),
                unread="unknown" if seen.unread is None else round(seen.unread),
                requests=seen.requests,
                age_s=seen.age_s,
            ),
        )
