"""The faults: each strikes once, and whatever it took away is back when it returns, but for what has to come back by itself.

Comes in: a stage and a running pipeline. Goes out: damage. Never here: when, or how often.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.integration.pipeline import wait_until
from tests.lab import transaction
from tests.lab.chronicle import Chronicle
from tests.lab.stage import Stage
from tests.lab.supervised import CONTROLLER, ENCODER, READER, Supervised

# A member that is silent for ten seconds is out of its group.
PAST_SESSION_S = 13.0
# Whatever starts here starts on a machine that has much else to do.
PATIENCE_S = 300.0
# Transactions are open for a part of each commit interval while records flow.
TRANSACTION_S = 20.0


@dataclass(frozen=True, slots=True)
class Scene:
    """What a fault may touch. ``pipelines`` has the one that is looked after, and others as they come; ``feed`` has some
    more records flow."""

    stage: Stage
    pipelines: list[Supervised]
    chronicle: Chronicle
    settings: Mapping[str, Any]
    folder: Path
    random: random.Random
    feed: Callable[[], None]

    @property
    def pipeline(self) -> Supervised:
        return self.pipelines[0]


type_fault = Callable[[Scene], None]

# Two of a step that are the broker's.
_one_after_the_other = threading.Lock()


def _victim(scene: Scene, title: str) -> int:
    return scene.random.choice(scene.pipeline.wait_for(title, timeout=PATIENCE_S))


def _kill(title: str) -> type_fault:
    def strike(scene: Scene) -> None:
        scene.chronicle.kill(_victim(scene, title))

    return strike


def _stop(title: str, least: float, most: float) -> type_fault:
    def strike(scene: Scene) -> None:
        _pause(scene, _victim(scene, title), least, most)

    return strike


def _stop_driver(scene: Scene) -> None:
    process = scene.pipeline.process
    assert process is not None
    _pause(scene, process.pid, 10, 25)


def _pause(scene: Scene, pid: int, least: float, most: float) -> None:
    # Another fault of the same moment may have been there first.
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)
        try:
            time.sleep(scene.random.uniform(least, most))
        finally:
            os.kill(pid, signal.SIGCONT)


def _kill_driver(scene: Scene) -> None:
    scene.pipeline.kill_everything()
    time.sleep(scene.random.uniform(0, 2))
    scene.pipeline.start()


def _kill_broker(scene: Scene) -> None:
    with _one_after_the_other, scene.chronicle.outage("broker"):
        scene.stage.broker.kill()
        time.sleep(scene.random.uniform(0, 3))
        scene.stage.broker.start()


def _stop_broker(scene: Scene) -> None:
    with _one_after_the_other, scene.chronicle.outage("broker"):
        scene.stage.broker.pause()
        try:
            time.sleep(scene.random.uniform(PAST_SESSION_S, PAST_SESSION_S + 5))
        finally:
            scene.stage.broker.resume()


def _kill_readers(scene: Scene) -> None:
    for pid in scene.pipeline.parts(READER):
        scene.chronicle.kill(pid)


def _mid_transaction(then: type_fault) -> type_fault:
    def strike(scene: Scene) -> None:
        scene.pipeline.wait_for(READER, timeout=PATIENCE_S)
        topic = next(output["topic"] for output in scene.settings["outputs"] if output["kind"] == "kafka")
        with transaction.watched(scene.stage.broker.settings, topic) as is_open:
            scene.feed()
            until = time.monotonic() + TRANSACTION_S
            while not (found := is_open()) and time.monotonic() < until:
                pass  # as often as the broker answers: a transaction does not last
            then(scene)
        if not found:
            scene.chronicle.notes.append(f"no transaction was open for {TRANSACTION_S:.0f} s: killed all the same")

    return strike


def _short_of_memory(scene: Scene) -> None:
    pipeline, limit = scene.pipeline, scene.pipeline.limit
    assert limit is not None, "a plan with this fault has a limit from its start"
    pipeline.wait_for(READER, timeout=PATIENCE_S)
    with scene.chronicle.outage("memory"):
        said = limit.press(lambda: len(pipeline.short_of_memory()))
    scene.chronicle.notes.append(f"memory runs short: {said}")


@contextlib.contextmanager
def _second(scene: Scene) -> Iterator[Supervised]:
    """Another deployment of the same pipeline, as while one version replaces another: its readers join the group."""
    folder = scene.folder / f"second-{time.monotonic_ns()}"
    folder.mkdir()
    settings = {**scene.settings, "delivery": {**scene.settings["delivery"], "cluster": "second"}}
    # The broker may be down just then: whoever runs a deployment starts it again.
    second = Supervised(folder, settings, scene.pipeline.module, scene.chronicle)
    scene.pipelines.append(second)
    with second:
        # Its readers are members by then, with partitions or, where there are too few, without.
        wait_until(lambda: "live running" in second.tail(10_000), PATIENCE_S, lambda: f"no second\n{second.tail()}")
        time.sleep(scene.random.uniform(1, 5))
        yield second


def _second_drains(scene: Scene) -> None:
    with _second(scene) as second:
        code = second.terminate()
        assert code == 0, f"a second deployment drained with exit code {code}\n{second.tail()}"


def _second_killed(scene: Scene) -> None:
    with _second(scene):
        pass


def _kill_s3(scene: Scene) -> None:
    with scene.chronicle.outage("store"):
        scene.stage.s3.stop()
        time.sleep(scene.random.uniform(0, 6))
        scene.stage.s3.start()


def _s3_fails(fault: str) -> type_fault:
    def strike(scene: Scene) -> None:
        with scene.chronicle.outage("store"):
            scene.stage.proxy.fault = fault
            try:
                time.sleep(scene.random.uniform(3, 8))
            finally:
                scene.stage.proxy.fault = None

    return strike


STRIKE: dict[str, type_fault] = {
    "encoder killed": _kill(ENCODER),
    "encoder stopped": _stop(ENCODER, 2, 15),
    "reader killed": _kill(READER),
    "readers killed mid-transaction": _mid_transaction(_kill_readers),
    "reader stopped past its session": _stop(READER, PAST_SESSION_S, PAST_SESSION_S + 5),
    "controller killed": _kill(CONTROLLER),
    "controller stopped": _stop(CONTROLLER, 2, 10),
    "driver stopped": _stop_driver,
    "driver and its Ray killed": _kill_driver,
    "broker killed": _kill_broker,
    "broker killed mid-transaction": _mid_transaction(_kill_broker),
    "broker stopped past the session": _stop_broker,
    "second deployment comes and drains": _second_drains,
    "second deployment comes and is killed": _second_killed,
    "memory runs short": _short_of_memory,
    "S3 killed": _kill_s3,
    "S3 answers 500, stores nothing": _s3_fails("refuse"),
    "S3 answers 500, but stores": _s3_fails("deny what was done"),
    "S3 drops the connection, but stores": _s3_fails("lose the answer"),
    "S3 slow": _s3_fails("slow"),
    "S3 full": _s3_fails("full"),
}
