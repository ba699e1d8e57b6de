"""The replicas of a batch job, as Ray actors: started, given pieces, replaced when they die, let go when nothing is left.

Comes in: tasks. Goes out: what became of them. Never here: a row, or a signal.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipelines.batch.growth import wanted
from pipelines.batch.outcome import Outcome, State
from pipelines.batch.progress import LEAST_S, Progress
from pipelines.batch.replica import Counts, Replica
from pipelines.batch.there import Task, There
from pipelines.batch.work import Done
from pipelines.cluster import gpus_per_replica
from workers import log
from workers.errors import EnvironmentFault, StreamEmbedderError, in_one_line
from workers.settings import KafkaSettings, RegistrySettings, Settings

LOG = log.get(__name__)

TICK_S = 0.5
# A piece that has failed so often is left out, and the others go on; one whose replicas have died is worked on alone.
MOST_FAILURES = 3
# So many replicas lost, or pieces failed, and nothing finished in between: then it is not the pieces.
MOST_LOSSES = 6


@dataclass(slots=True, eq=False)
class _Member:
    """One actor. ``tasks`` are under way, by what Ray will answer with."""

    actor: Any
    created: float
    loading: Any
    tasks: dict[Any, Task] = field(default_factory=dict)
    asking: Any = None
    counts: Counts = field(default_factory=Counts)
    alone: bool = False


class Crew:
    """All replicas of a job; Ray runs. Used once, by one thread."""

    def __init__(self, settings: Settings, tasks: Sequence[Task], there: There, replica_class: type = Replica) -> None:
        """Nothing is started here. ``replica_class`` may stand in for :class:`Replica`."""
        import ray  # noqa: PLC0415 - heavy

        self._ray = ray
        gpus = gpus_per_replica(settings)
        pool = settings.pool.model_copy(update={"gpus_per_replica": gpus})
        self._settings = settings.model_copy(update={"pool": pool})
        if not settings.batch_reads_topics:
            # Replicas speak to neither Kafka nor a registry: what opens them does not go where they run.
            self._settings = self._settings.model_copy(
                update={"kafka": KafkaSettings(), "registry": RegistrySettings()}
            )
        self._cuda = gpus > 0
        self._there = there
        self._waiting = deque(tasks)
        self._members: list[_Member] = []
        self._most = self._fits()
        self._actor = ray.remote(replica_class).options(
            num_cpus=pool.cpus_per_replica, num_gpus=gpus, max_concurrency=pool.in_flight + 2, max_restarts=0
        )
        self._start_s: float | None = None
        self._gone = Counts()
        self._losses = 0
        self._outcome = Outcome()
        self.progress = Progress(sum(task.piece.weight for task in tasks))

    def run(self, stop: threading.Event, show: Callable[[State], None]) -> Outcome:
        """Work until nothing is left, or ``stop`` is set; ``show`` hears of it every half second.

        Raises:
            EnvironmentFault, SettingsError: the model does not work there, or replica after replica is lost.
        """
        began: float | None = None
        last = time.monotonic()
        while self._waiting or any(member.tasks for member in self._members):
            if stop.is_set():
                self._outcome.stopped = True
                break
            self._adjust()
            self._hand_out()
            self._settle()
            now = time.monotonic()
            ready = sum(member.loading is None for member in self._members)
            if ready and began is None:
                began, last = now, now
            self._outcome.replica_s += ready * (now - last)
            last = now
            if began is not None:
                total = self._counts()
                self.progress.note(now, total.worked, total.skipped)
            self._outcome.most = max(self._outcome.most, ready)
            show(State(ready, len(self._members), self._left(), self._outcome.tally))
        self._outcome.worked_s = 0.0 if began is None else time.monotonic() - began
        self._outcome.busy_s = self._counts().busy_s
        self._outcome.start_s = self._start_s or 0.0
        for member in list(self._members):
            self._end(member)
        return self._outcome

    # ---- how many

    def _fits(self) -> int:
        """How many replicas there may be: ``pool.max``; on this machine alone no more than it has room for."""
        pool = self._settings.pool
        if self._settings.ray.address is not None:
            return pool.max
        there = self._ray.cluster_resources()
        needs = {"CPU": pool.cpus_per_replica, "GPU": pool.gpus_per_replica or 0.0}
        room = [int(there.get(name, 0) / need) for name, need in needs.items() if need > 0]
        fits = min([pool.max, *room])
        if fits < max(1, pool.min):
            has = ", ".join(f"{there.get(name, 0):g} {name}s" for name in needs)
            raise EnvironmentFault(
                f"this machine has {has}, too few for {max(1, pool.min)} replicas of pool.cpus_per_replica "
                f"{pool.cpus_per_replica:g} and pool.gpus_per_replica {needs['GPU']:g}: lower those, or name a cluster with "
                "ray.address"
            )
        return fits

    def _adjust(self) -> None:
        ready = sum(member.loading is None for member in self._members)
        left_s = self.progress.left_s if self.progress.age_s >= LEAST_S else None
        count = wanted(
            now=len(self._members),
            fewest=self._settings.pool.min,
            most=self._most,
            pieces=self._left(),
            left_s=None if left_s is None else left_s * max(1, ready),
            start_s=self._start_s or self._settings.scaling.start_s,
        )
        while self._waiting and len(self._members) < count:
            actor = self._actor.remote(self._settings, cuda=self._cuda)
            self._members.append(_Member(actor, time.monotonic(), actor.load.remote()))
        if not self._waiting:
            for member in [member for member in self._members if not member.tasks]:
                self._end(member)

    def _left(self) -> int:
        return len(self._waiting) + sum(len(member.tasks) for member in self._members)

    def _end(self, member: _Member) -> None:
        """Let a replica go; what it counted stays."""
        self._members.remove(member)
        counts, gone = member.counts, self._gone
        self._gone = Counts(*(one + two for one, two in zip(counts, gone, strict=True)))
        self._ray.kill(member.actor)

    def _counts(self) -> Counts:
        every = [self._gone, *(member.counts for member in self._members)]
        return Counts(*(sum(column) for column in zip(*every, strict=True)))

    # ---- the work

    def _hand_out(self) -> None:
        """Give waiting pieces to those who have the least to do."""
        while self._waiting:
            task = self._waiting[0]
            alone = task.deaths > 0
            room = 1 if alone else self._settings.pool.in_flight
            able = [
                member
                for member in self._members
                if member.loading is None and not (member.alone and member.tasks) and len(member.tasks) < room
            ]
            if not able:
                return
            member = min(able, key=lambda each: len(each.tasks))
            self._waiting.popleft()
            member.alone = alone
            member.tasks[member.actor.work.remote(task.piece, task.name, task.there)] = task

    def _settle(self) -> None:
        """Wait for the next answer, and take it."""
        for member in self._members:
            if member.loading is None and member.asking is None:
                member.asking = member.actor.counts.remote()
        owners = {ref: member for member in self._members for ref in self._refs(member)}
        done, _ = self._ray.wait(list(owners), num_returns=1, timeout=TICK_S)
        # Counts are always there soon; they alone are no reason to come back at once.
        if all(ref is owners[ref].asking for ref in done):
            time.sleep(TICK_S / 2)
        done, _ = self._ray.wait(list(owners), num_returns=len(owners), timeout=0)
        for ref in done:
            if owners[ref] in self._members:
                self._take(owners[ref], ref)

    @staticmethod
    def _refs(member: _Member) -> list[Any]:
        return [ref for ref in (member.loading, member.asking, *member.tasks) if ref is not None]

    def _take(self, member: _Member, ref: Any) -> None:
        from ray import exceptions  # noqa: PLC0415

        try:
            answer = self._ray.get(ref)
        except exceptions.RayTaskError as error:
            cause = error.cause if isinstance(error.cause, Exception) else error
            if ref is member.loading:
                self._not_loaded(member, cause)
            elif ref in member.tasks:
                self._failed(member.tasks.pop(ref), cause)
            else:
                member.asking = None
            return
        except exceptions.RayError as error:
            self._lost(member, error)
            return
        if ref is member.loading:
            if answer.folders != self._there.folders:
                raise EnvironmentFault(
                    "a replica has another model than this machine, under the same name: pin model.revision, or give both the "
                    "same files"
                )
            member.loading = None
            self._start_s = time.monotonic() - member.created
        elif ref is member.asking:
            member.asking = None
            member.counts = answer
        else:
            del member.tasks[ref]
            member.counts = answer.counts
            self._done(answer.done)

    def _done(self, done: Done) -> None:
        self._outcome.tally += done.tally
        self._outcome.reasons.update(done.reasons)
        self._losses = 0

    def _failed(self, task: Task, error: Exception) -> None:
        """A piece could not be read or put: try again, on whoever is next, or leave it out."""
        said = str(error) if isinstance(error, StreamEmbedderError) else f"unexpected {type(error).__name__}"
        task.failures += 1
        self._look(task)
        if task.failures >= MOST_FAILURES:
            LOG.warning("piece left out %s", log.fields(piece=task.piece, error=said))
            self._outcome.failed.append(f"{task.piece}: {said}")
        else:
            LOG.warning("piece failed, and is tried again %s", log.fields(piece=task.piece, error=said))
            self._waiting.append(task)
        self._count_loss(said)

    def _not_loaded(self, member: _Member, error: Exception) -> None:
        if self._start_s is None:
            raise (
                error
                if isinstance(error, StreamEmbedderError)
                else EnvironmentFault(f"the encoder did not start: {in_one_line(error)}")
            )
        self._lost(member, error)

    def _lost(self, member: _Member, error: Exception) -> None:
        """A replica is gone, and its pieces go to others."""
        said = error if isinstance(error, StreamEmbedderError) else type(error).__name__
        LOG.warning("replica lost %s", log.fields(error=said, pieces=len(member.tasks)))
        tasks = list(member.tasks.values())
        self._end(member)
        self._outcome.replaced += 1
        for task in tasks:
            task.deaths += 1
            self._look(task)
            if task.deaths >= MOST_FAILURES:
                self._outcome.failed.append(f"{task.piece}: {task.deaths} replicas have died at it")
            else:
                self._waiting.append(task)
        self._count_loss(f"a replica is gone ({said})")

    def _look(self, task: Task) -> None:
        """See what an attempt has finished before it failed."""
        self._there.look()
        task.there = self._there.numbers(task.name)
        self._outcome.tally += self._there.count([task.name])

    def _count_loss(self, said: str) -> None:
        self._losses += 1
        if self._losses >= MOST_LOSSES:
            raise EnvironmentFault(
                f"{self._losses} times in a row a piece failed or a replica was lost, the last time: {said}; run the same "
                "command again when that is mended, and it goes on where it stopped"
            )
