"""Turns at a device: a query waits for what is under way and for nothing more, and the stream is not forgotten."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future

import pytest

from workers.turns import PATIENCE_S, Turns

WAIT_S = 20.0


class Device:
    """Does one thing at a time, which takes as long as the thing says, on a clock of its own."""

    def __init__(self) -> None:
        self.now = 0.0
        self.done: list[str] = []
        self.turns = Turns(lambda: self.now)

    def add(self, name: str, seconds: float = 0.1) -> Future[str]:
        def work() -> str:
            self.now += seconds
            self.done.append(name)
            return name

        return self.turns.submit(work, query=name.startswith("q"))

    def busy(self) -> Callable[[], None]:
        """Keep it at something until the function that is returned is called."""
        begun, end = threading.Event(), threading.Event()

        def work() -> None:
            begun.set()
            end.wait(WAIT_S)

        self.turns.submit(work, query=False)
        assert begun.wait(WAIT_S)
        return end.set


def test_queries_go_before_the_stream_and_each_line_keeps_its_order() -> None:
    device = Device()
    release = device.busy()
    futures = [device.add(name) for name in ("s1", "s2", "q1", "s3", "q2")]
    release()
    assert [future.result(WAIT_S) for future in futures] == ["s1", "s2", "q1", "s3", "q2"]
    assert device.done == ["q1", "q2", "s1", "s2", "s3"]


def test_queries_without_end_do_not_stop_the_stream() -> None:
    device = Device()
    release = device.busy()
    queries = [device.add(f"q{n:02}") for n in range(35)]
    stream = [device.add(f"s{n}") for n in range(3)]
    release()
    for future in [*queries, *stream]:
        future.result(WAIT_S)
    between = round(PATIENCE_S / 0.1)
    places = [device.done.index(f"s{n}") for n in range(3)]
    assert places == pytest.approx([between, 2 * between + 1, 3 * between + 2], abs=1)


def test_what_is_cancelled_is_passed_over_and_what_raises_is_its_callers() -> None:
    device = Device()
    release = device.busy()
    given_up = device.add("q1")
    assert given_up.cancel()

    def broken() -> None:
        raise SystemExit("no end of the thread")

    failed = device.turns.submit(broken, query=True)
    release()
    with pytest.raises(SystemExit):
        failed.result(WAIT_S)
    assert device.add("s1").result(WAIT_S) == "s1"
    assert device.done == ["s1"]


def test_nothing_of_what_was_done_is_held() -> None:
    class Thing:
        pass

    turns, thing = Turns(), Thing()
    seen = weakref.ref(thing)
    turns.submit(lambda thing=thing: thing, query=True).result(WAIT_S)
    del thing
    # The thread may still be on its way to the next one.
    assert turns.submit(lambda: 1, query=False).result(WAIT_S) == 1
    gc.collect()
    assert seen() is None
