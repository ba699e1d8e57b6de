"""The replicas of a batch job, as Ray actors: started, given pieces, replaced when they die, let go when nothing is left.

Comes in: tasks. Goes out: what became of them. Never here: a row, or a signal.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from pipelines.batch.growth import fits, wanted
from pipelines.batch.member import Member
from pipelines.batch.outcome import Outcome, State
from pipelines.batch.pace import beside_an_encoder
from pipelines.batch.progress import LEAST_S, Progress
from pipelines.batch.queue import MOST_FAILED, SUSPECT, Queue
from pipelines.batch.replica import Counts, Replica
from pipelines.batch.there import Task, There
from pipelines.batch.work import Done
from pipelines.cluster import gpus_per_replica
from workers import log
from workers.errors import EnvironmentFault, StreamEmbedderError, in_one_line
from workers.settings import KafkaSettings, RegistrySettings, Settings

LOG = log.get(__name__)

TICK_S = 0.5
# So many replicas lost before they had a piece, and nothing done in between: no more are started.
MOST_LOST = 6


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
        self._waiting = Queue(tasks)
        self._members: list[Member] = []
        here = ray.cluster_resources() if settings.ray.address is None else None
        self._most = fits(pool, here)
        self._actor = ray.remote(replica_class).options(
            num_cpus=pool.cpus_per_replica,
            num_gpus=gpus,
            max_concurrency=pool.in_flight + 2,
            max_restarts=0,
            runtime_env={"env_vars": {} if self._cuda else beside_an_encoder(pool.cpus_per_replica, os.environ)},
        )
        self._start_s: float | None = None
        self._gone = Counts()
        self._left_out = 0.0
        self._lost_early = 0
        self._last_loss = ""
        self._outcome = Outcome(gpus=gpus)
        self.progress = Progress(sum(task.piece.weight for task in tasks))

    def run(self, stop: threading.Event, show: Callable[[State], None]) -> Outcome:
        """Work until nothing is left, or ``stop`` is set; ``show`` hears of it every half second.

        It ends before when it seems that nothing more can be done, and the outcome says why (``given_up``).

        Raises:
            EnvironmentFault, SettingsError: the model does not work there.
        """
        began: float | None = None
        last = time.monotonic()
        while self._waiting or any(member.tasks for member in self._members):
            if stop.is_set():
                self._outcome.stopped = True
                break
            self._give_up()
            if self._outcome.given_up is not None:
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
                self.progress.note(now, total.worked, total.skipped + self._left_out)
            self._outcome.most = max(self._outcome.most, ready)
            show(State(ready, len(self._members), self._left(), self._outcome.tally))
        self._outcome.worked_s = 0.0 if began is None else time.monotonic() - began
        self._outcome.busy_s = self._counts().busy_s
        self._outcome.start_s = self._start_s or 0.0
        for member in list(self._members):
            self._end(member)
        return self._outcome

    # ---- how many

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
        while self._waiting and len(self._members) < count and self._lost_early < MOST_LOST:
            actor = self._actor.remote(self._settings, cuda=self._cuda)
            self._members.append(Member(actor, time.monotonic(), actor.load.remote()))
        if not self._waiting:
            for member in [member for member in self._members if not member.tasks]:
                self._end(member)

    def _left(self) -> int:
        return len(self._waiting) + sum(len(member.tasks) for member in self._members)

    def _end(self, member: Member) -> None:
        """Let a replica go; what it counted stays, but for pieces that others will have to look at from their beginnings."""
        self._members.remove(member)
        self._gone += member.settled._replace(busy_s=member.counts.busy_s)
        self._ray.kill(member.actor)

    def _counts(self) -> Counts:
        return sum((member.counts for member in self._members), self._gone)

    # ---- the work

    def _hand_out(self) -> None:
        """Give waiting pieces to those who have the least to do."""
        while (task := self._waiting.draw()) is not None:
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
            self._waiting.take()
            member.alone = alone
            member.tasks[member.actor.work.remote(task.piece, task.name, task.there)] = task

    def _settle(self) -> None:
        """Wait for the next answer, and take it."""
        for member in self._members:
            if member.loading is None and member.asking is None:
                member.asking = member.actor.reading.remote()
        owners = {ref: member for member in self._members for ref in self._refs(member)}
        done, _ = self._ray.wait(list(owners), num_returns=1, timeout=TICK_S)
        # Counts are always there soon; they alone are no reason to come back at once.
        if all(ref is owners[ref].asking for ref in done):
            time.sleep(TICK_S / 2)
        done, _ = self._ray.wait(list(owners), num_returns=len(owners), timeout=0)
        answers = [(ref, self._answer(ref)) for ref in done]
        # A death comes last: what a replica answered before stays answered.
        for ref, answer in sorted(answers, key=lambda each: self._is_death(each[1])):
            if owners[ref] in self._members:
                self._take(owners[ref], ref, answer)

    @staticmethod
    def _refs(member: Member) -> list[Any]:
        return [ref for ref in (member.loading, member.asking, *member.tasks) if ref is not None]

    def _answer(self, ref: Any) -> Any:
        """What Ray has for ``ref``: a value, or an error of Ray's, which is returned."""
        try:
            return self._ray.get(ref)
        except self._ray.exceptions.RayError as error:
            return error

    def _is_death(self, answer: Any) -> bool:
        errors = self._ray.exceptions
        return isinstance(answer, errors.RayError) and not isinstance(answer, errors.RayTaskError)

    def _take(self, member: Member, ref: Any, answer: Any) -> None:
        if self._is_death(answer):
            self._lost(member, answer)
            return
        if isinstance(answer, self._ray.exceptions.RayTaskError):
            cause = answer.cause if isinstance(answer.cause, Exception) else answer
            if ref is member.loading:
                self._not_loaded(member, cause)
            elif ref in member.tasks:
                self._failed(member.tasks.pop(ref), cause)
            else:
                member.asking = None
            return
        if ref is member.loading:
            if answer.folders != self._there.folders:
                raise EnvironmentFault(
                    "a replica has another model than this machine, under the same name: pin model.revision, or give both the "
                    "same files"
                )
            member.loading = None
            self._outcome.load_s += answer.seconds
            self._start_s = time.monotonic() - member.created
        elif ref is member.asking:
            member.asking = None
            member.note(answer)
        else:
            del member.tasks[ref]
            member.note(answer.reading)
            member.settled += answer.own
            self._done(answer.done)

    def _done(self, done: Done) -> None:
        self._outcome.tally += done.tally
        self._outcome.reasons.update(done.reasons)
        self._went_on()

    def _failed(self, task: Task, error: Exception) -> None:
        """A piece could not be read or put: others come first, and then it is tried again, by whoever is next."""
        said = str(error) if isinstance(error, StreamEmbedderError) else f"unexpected {type(error).__name__}"
        said = said.removeprefix(f"{task.piece.uri}: ")  # which piece, and so which file, is said before it
        self._look(task)
        suspect = self._waiting.suspect
        self._note_failure(task, left_out=self._waiting.failed(task, said))
        if self._waiting.suspect and not suspect:
            self._probe()

    def _not_loaded(self, member: Member, error: Exception) -> None:
        if self._start_s is None:
            raise (
                error
                if isinstance(error, StreamEmbedderError)
                else EnvironmentFault(f"the encoder did not start: {in_one_line(error)}")
            )
        self._lost(member, error)

    def _lost(self, member: Member, error: Exception) -> None:
        """A replica is gone, and its pieces go to others."""
        said = error if isinstance(error, StreamEmbedderError) else type(error).__name__
        LOG.warning("replica lost %s", log.fields(error=said, pieces=len(member.tasks)))
        tasks = list(member.tasks.values())
        self._end(member)
        self._outcome.replaced += 1
        self._lost_early += not tasks
        self._last_loss = str(said)
        for task in tasks:
            self._look(task)
            self._note_failure(task, left_out=self._waiting.died(task))

    def _note_failure(self, task: Task, *, left_out: bool) -> None:
        told = log.fields(piece=task.piece, error=task.fault)
        LOG.warning("piece left out %s" if left_out else "piece failed, and is tried again %s", told)
        if left_out:
            self._left_out += task.piece.weight
            self._outcome.failed.append(f"{task.piece}: {task.fault}")

    def _look(self, task: Task) -> None:
        """See what an attempt has finished before it failed."""
        try:
            self._there.look()
            task.there = self._there.numbers(task.name)
            found = self._there.count([task.name])
        except EnvironmentFault as error:
            self._outcome.given_up = str(error)
            return
        self._outcome.tally += found
        if found.parts:
            self._went_on()

    def _went_on(self) -> None:
        """Something was done."""
        self._waiting.done()
        self._lost_early = 0

    # ---- when nothing more can be done

    def _probe(self) -> None:
        """A store that takes nothing makes every piece fail, after it was embedded and the store waited for."""
        try:
            self._there.probe()
        except EnvironmentFault as error:
            self._outcome.given_up = str(error)

    def _give_up(self) -> None:
        """Do, if nothing under way is left to hope for; the pieces that have failed until then are named."""
        waiting, outcome = self._waiting, self._outcome
        if outcome.given_up is None and not any(member.tasks for member in self._members):
            if waiting.held:
                outcome.given_up = (
                    f"{MOST_FAILED} pieces in a row and more failed, after the first {SUSPECT} drawn from all of the input, and "
                    "nothing was done in between"
                )
            elif self._lost_early >= MOST_LOST and not self._members:
                outcome.given_up = (
                    f"{self._lost_early} replicas in a row were lost before they had a piece ({self._last_loss})"
                )
        if outcome.given_up is not None:
            outcome.failed += [f"{task.piece}: {task.fault}" for task in waiting.failing()]
            outcome.given_up += f"; {waiting.untried:,} pieces were not tried"
