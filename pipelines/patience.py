"""Loading a model where it could be loaded before: what fails then is waited for, what fails at the first start is not.

Comes in: something that loads. Goes out: what it loaded. Never here: what a model is.

Serve replaces a replica that could not be built by the next one at once, as a process that imports torch for nothing, round
and round. So a replica of an application that has run tries again by itself, more and more slowly; in the end it does make
place for another process, perhaps on another machine: a GPU that has failed is lost to the process that saw it fail.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from workers import log, metrics
from workers.deadline import Deadline
from workers.errors import StreamEmbedderError

LOG = log.get(__name__)

PATIENCE_S = 60.0
BACKOFF_S = (1.0, 15.0)

type_loaded = TypeVar("type_loaded")


def patiently(
    load: Callable[[], type_loaded], actor: str, meter: metrics.Metrics, has_run: Callable[[], bool]
) -> type_loaded:
    """What ``load`` returns; ``actor`` is the one that loads, in the metric.

    Raises:
        Exception: whatever ``load`` raised last: at once where the application has not run (``has_run``), or after a minute.
    """
    deadline = Deadline(PATIENCE_S)
    delay = BACKOFF_S[0]
    while True:
        try:
            return load()
        except Exception as error:  # whatever a driver, a disk or a library may raise
            meter.add(metrics.MODEL_LOADS_FAILED, actor=actor)
            if deadline.expired or not has_run():
                raise
            LOG.warning("model not loaded %s", log.fields(retry_in_s=delay, error=_said(error)))
        time.sleep(delay)
        delay = min(2 * delay, BACKOFF_S[1])


def _said(error: Exception) -> str:
    line = (str(error).strip() or "no reason given").splitlines()[0][:300]
    return line if isinstance(error, StreamEmbedderError) else f"{type(error).__name__}: {line}"


def has_run(application: str) -> bool:
    """Whether an application's deployment was finished once; one that is being deployed anew, in another version, has not."""
    from ray import serve  # noqa: PLC0415 - heavy
    from ray.serve.schema import ApplicationStatus  # noqa: PLC0415

    try:
        status = serve.status().applications[application].status
    except Exception as error:  # noqa: BLE001 - the controller may be dead or starting: then somebody deployed before
        LOG.debug("status unknown %s", log.fields(error=type(error).__name__))
        return True
    return status in (ApplicationStatus.RUNNING, ApplicationStatus.UNHEALTHY)
