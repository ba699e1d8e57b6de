"""The command ``status``: looks, judges, shows; once, or again and again.

Comes in: settings and options. Goes out: a page, lines or JSON on standard output, and an exit code. Never here: a change to
anything.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TextIO

from pipelines.arguments import Arguments
from pipelines.status import fingerprints, kafka_side, page
from pipelines.status.companion import Application, Companion
from pipelines.status.fingerprints import Fingerprint
from pipelines.status.judgement import Patience, judge, moved, unreachable, worked
from pipelines.status.kafka_side import Seen
from pipelines.status.looks import Looks
from pipelines.status.page import View
from workers import log
from workers.deadline import Deadline
from workers.errors import EnvironmentFault, RetryableError, StreamEmbedderError
from workers.settings import KafkaOutput, Settings

PERIOD_S = 2.0
AGAIN_S = 1.0
# Who waits for Ray and fingerprints once does not wait so long again: they are shown when they are there.
LATER_S = 2.0
# Ray that cannot be joined is tried again after this: each try is a process that imports Ray.
RAY_AGAIN_S = 30.0
_TOP, _REST_OF_LINE, _REST_OF_SCREEN = "\x1b[H", "\x1b[K", "\x1b[J"


def from_line(settings: Settings, arguments: Arguments) -> int:
    """Run what a command line asks for; see :class:`Status`."""
    options = arguments.options
    settings.require_stream()
    log.configure(logging.ERROR)  # what a client or a model has to say would stand in the page
    ray = None if settings.ray.address is None else Companion(settings.ray.address)
    try:
        status = Status(
            settings,
            Looks(lambda: kafka_side.look(settings), f"Kafka at {settings.kafka.bootstrap_servers}"),
            None if ray is None else Looks(ray.ask, f"Ray at {settings.ray.address}"),
            None if options.no_fingerprints else Looks(lambda: fingerprints.look(settings), "who holds the outputs"),
            wait_s=options.wait,
            timeout_s=options.timeout,
        )
        shown = Shown(sys.stdout, as_json=options.json, watching=options.watch)
        return status.watch(shown) if options.watch else status.once(shown)
    finally:
        if ray is not None:
            ray.close()


@dataclass
class Shown:
    """Where pages go."""

    out: TextIO
    as_json: bool = False
    watching: bool = False

    def show(self, view: View) -> None:
        """One view, as who reads it wants it."""
        if self.as_json:
            text = json.dumps(page.as_json(view))
        elif not self.watching:
            text = "\n".join(page.lines(view))
        elif not self.out.isatty():
            text = page.line(view)
        else:
            columns, rows = shutil.get_terminal_size()
            most = max(1, rows - 1 - len(page.lines(view, 0)))
            lines = [line[:columns] for line in page.lines(view, most)][: rows - 1]
            text = _TOP + "".join(f"{line}{_REST_OF_LINE}\n" for line in lines) + _REST_OF_SCREEN
        print(text, end="" if text.endswith(_REST_OF_SCREEN) else "\n", file=self.out, flush=True)


class Status:
    """Looks at a pipeline. Each look has a time in which to answer, so that what is dead is said and not waited for."""

    def __init__(
        self,
        settings: Settings,
        kafka: Looks[Seen],
        ray: Looks[Application | None] | None,
        marks: Looks[list[Fingerprint]] | None,
        *,
        wait_s: float,
        timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """``ray`` None: no address is set; ``marks`` None: nobody wants fingerprints. Nothing is looked at yet."""
        self._settings = settings
        self._kafka = kafka
        self._ray = ray
        self._marks = marks
        self._wait_s = wait_s
        self._timeout_s = timeout_s
        self._clock = clock
        self._sleep = sleep
        self._patience = Patience(wait_s, _files_s(settings))
        self._before: tuple[Seen, Application | None] | None = None
        self._moved_at = 0.0
        self._seen_to_move = False
        self._found: Sequence[Fingerprint] | None = None
        self._without_ray: str | None = None
        self._ray_again = -math.inf
        if ray is None:
            self._without_ray = (
                "without ray.address nothing is known of replicas (--ray.address auto, on a node of its cluster)"
            )

    def once(self, shown: Shown) -> int:
        """Look until it is known whether the pipeline is well, and show that; 0: it is.

        That takes one look; where something waits that is not seen to move, ``wait_s`` and another look.
        """
        view = self._look()
        waited = Deadline(self._wait_s, self._clock)
        while view.judgement.reached and (view.judgement.wrong or not self._certain(view)):
            self._sleep(min(AGAIN_S, waited.remaining()))
            last = waited.expired
            view = self._look(LATER_S)
            if last:
                break
        shown.show(view)
        return view.judgement.exit_code

    def watch(self, shown: Shown) -> int:
        """Look and show, until somebody ends it."""
        while True:
            began = self._clock()
            shown.show(self._look(0.0 if self._before is None else LATER_S))
            self._sleep(max(0.0, PERIOD_S - (self._clock() - began)))

    def _certain(self, view: View) -> bool:
        """Whether looking on would tell nothing more: nothing waits, or it has been seen to move."""
        return self._seen_to_move or view.seen is None or not any(lane.behind for lane in view.seen.lanes)

    def _look(self, beside_s: float = math.inf) -> View:
        """Kafka has ``timeout_s`` for its answer. So have Ray and fingerprints; but no more than ``beside_s`` after Kafka's."""
        deadline = Deadline(self._timeout_s, self._clock)
        ray = self._ray if self._clock() >= self._ray_again else None
        for looks in (self._kafka, ray, self._marks):
            if looks is not None:
                looks.begin()
        try:
            seen = self._kafka.within(deadline.remaining())
        except (EnvironmentFault, RetryableError) as error:
            return View(time.time(), None, unreachable(_with_advice(error)))
        beside = Deadline(min(beside_s, deadline.remaining()), self._clock)
        application = self._replicas(ray, beside)
        before = self._before
        quiet_s = self._quiet_s(seen, application)
        pool = self._settings.pool
        return View(
            now=time.time(),
            seen=seen,
            judgement=judge(seen, application, quiet_s, self._patience),
            application=application,
            without_ray=self._without_ray,
            rate=None if before is None else _rate(before[0], seen),
            fixed=pool.min if pool.min == pool.max else None,
            members=self._settings.readers.count,
            without_fingerprints=self._fingerprints(beside),
            fingerprints=self._found,
        )

    def _replicas(self, ray: Looks[Application | None] | None, deadline: Deadline) -> Application | None:
        """What Ray says; or why it says nothing, which is kept."""
        if ray is None:
            return None
        try:
            found = ray.within(deadline.remaining())
        except StreamEmbedderError as error:
            if not ray.under_way:
                self._ray_again = self._clock() + RAY_AGAIN_S
            self._without_ray = f"nothing is known of replicas: {error}"
            return None
        self._without_ray = (
            None if found is not None else f"Ray at {self._settings.ray.address} runs no application of ours"
        )
        return found

    def _fingerprints(self, deadline: Deadline) -> str | None:
        """Have them read, once; returns why there are none."""
        if self._marks is None:
            return None
        try:
            self._found = self._marks.within(deadline.remaining())
        except StreamEmbedderError as error:
            return f"nothing is known of fingerprints: {error}"
        self._marks = None
        return None

    def _quiet_s(self, seen: Seen, application: Application | None) -> float:
        """For how long nothing has moved, as far as we have looked."""
        before, self._before = self._before, (seen, application)
        if before is None:
            self._moved_at = seen.at
        elif moved(before[0], seen) or worked(before[1], application):
            self._moved_at, self._seen_to_move = seen.at, True
        elif not any(lane.behind for lane in before[0].lanes):
            self._moved_at = seen.at  # there was nothing to do
        return seen.at - self._moved_at


def _files_s(settings: Settings) -> float | None:
    """How long outputs may commit nothing while they gather a file, where all outputs are files."""
    if any(isinstance(output, KafkaOutput) for output in settings.outputs):
        return None
    slowest = max(output.rotate.seconds for output in settings.outputs if not isinstance(output, KafkaOutput))
    return slowest + 10 * settings.delivery.commit_interval_s


def _rate(before: Seen, now: Seen) -> float | None:
    """Records/s that were committed between two looks."""
    if now.at <= before.at:
        return None
    then = {lane.partition: lane.standing.following for lane in before.lanes}
    done = sum(
        max(0, lane.standing.following - then.get(lane.partition, lane.standing.following)) for lane in now.lanes
    )
    return done / (now.at - before.at)


def _with_advice(error: StreamEmbedderError) -> str:
    return f"{error}; nothing is known of the pipeline until that is mended (stream-embedder check says what it takes)"
