"""Signals that end a program, taken by a thread that waits for them.

Comes in: an event. Goes out: it set, by SIGTERM, SIGINT or SIGHUP. Never here: a handler that matters: Ray's core puts its own
in the place of ours while it starts, and they end the process in the middle of that.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

_ENDS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_blocking = False


def _unblock_in_child() -> None:
    # What Ray starts is ended by SIGTERM. SIGHUP stays: a closing terminal sends it to all, and they are needed for the drain.
    if _blocking:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT})


os.register_at_fork(after_in_child=_unblock_in_child)


@contextlib.contextmanager
def setting() -> Iterator[threading.Event]:
    """An event that is set by a signal that ends a program, instead of its end.

    To be entered in the main thread before anything starts threads; importing numpy does.

    The signals are blocked in this thread and in those that it starts, so that no handler, whoever sets it, ever runs; a thread
    of our own waits for them. Processes forked with a ``preexec_fn``, as Ray's are, have SIGTERM and SIGINT again. SIGHUP is
    left alone where it is ignored, as ``nohup`` asks.
    """
    global _blocking  # noqa: PLW0603 - what runs after a fork sees only globals
    ends = {number for number in _ENDS if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN}
    before = {number: signal.getsignal(number) for number in ends}
    stop, over = threading.Event(), threading.Event()
    waiting = threading.Thread(target=_wait, args=(ends, stop, over), name="signals", daemon=True)
    _handle(ends, stop)  # for a thread that was there before, and blocks nothing
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ends)
    _blocking = True
    try:
        waiting.start()
        yield stop
    finally:
        over.set()
        if waiting.ident is not None:
            with contextlib.suppress(ProcessLookupError):  # a signal from outside has ended it just now
                signal.pthread_kill(waiting.ident, signal.SIGTERM)
            waiting.join()
        _handle(ends, stop)
        _blocking = False
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in before.items():
            signal.signal(number, handler)


def _handle(ends: set[signal.Signals], stop: threading.Event) -> None:
    for number in ends:
        signal.signal(number, lambda *_: stop.set())


def _wait(ends: set[signal.Signals], stop: threading.Event, over: threading.Event) -> None:
    while not over.is_set():
        signal.sigwait(ends)
        if not over.is_set():
            stop.set()
