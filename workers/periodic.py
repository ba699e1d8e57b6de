"""A thread that does something again and again for an object, for as long as somebody holds the object.

Comes in: a method and a period. Goes out: calls of it. Never here: a reference that keeps the object alive.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any


def every(seconds: float, method: Callable[[], Any], name: str) -> threading.Event:
    """Call a bound method every so many ``seconds``, first after one period, on a daemon thread called ``name``.

    It ends with the method's object, or once the event that is returned is set. ``method`` is to catch what it raises.
    """
    owner, stop = weakref.WeakMethod(method), threading.Event()
    weakref.finalize(method.__self__, stop.set)  # type: ignore[attr-defined]

    def work() -> None:
        while not stop.wait(seconds):
            if (alive := owner()) is None:
                return
            alive()
            del alive

    threading.Thread(target=work, name=name, daemon=True).start()
    return stop
