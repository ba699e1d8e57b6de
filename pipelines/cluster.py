"""Ray for the commands ``run`` and ``batch``: started on this machine and ended with all that it left, or joined.

Comes in: settings. Goes out: this process connected to Ray, inside a ``with``. Never here: the application that runs on it
(``pipelines.stream``).
"""

from __future__ import annotations

import contextlib
import logging
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from workers import log
from workers.errors import EnvironmentFault, SettingsError
from workers.settings import Settings

LOG = log.get(__name__)
ENDS_S = 3.0
_MARK = "RAY_STARTED_BY_RUN"  # what Ray starts inherits it, and shows it to who looks for what is left


@contextlib.contextmanager
def connected(settings: Settings) -> Iterator[None]:
    """Start Ray here, or join it where ``ray.address`` says; our own Ray ends with the block, and nothing of it is left.

    Raises:
        EnvironmentFault: Ray cannot be reached or started.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray  # noqa: PLC0415 - heavy

    mark = os.environ[_MARK] = uuid.uuid4().hex
    others = set(psutil.Process().children(recursive=True))
    try:
        try:
            _start(ray, settings)
        finally:
            del os.environ[_MARK]
        yield
    finally:
        started = set(psutil.Process().children(recursive=True)) - others
        ray.shutdown()
        if settings.ray.address is None:
            _end(started, mark)


def gpus_per_replica(settings: Settings) -> float:
    """The setting, or what the cluster suggests."""
    import ray  # noqa: PLC0415 - heavy

    if settings.pool.gpus_per_replica is not None:
        return settings.pool.gpus_per_replica
    if not ray.is_initialized():
        # serve run builds the application before it joins the cluster.
        raise SettingsError(
            "pool.gpus_per_replica must be set (0 for CPU) where no cluster can be asked for its GPUs yet"
        )
    return 1.0 if ray.cluster_resources().get("GPU", 0) >= 1 else 0.0


def _start(ray: Any, settings: Settings) -> None:
    arguments: dict[str, Any] = {"logging_level": logging.ERROR, "namespace": "stream-embedder"}
    if settings.ray.address is None:
        arguments |= {"address": "local", "include_dashboard": False}
        if settings.ray.metrics_port is not None:
            arguments["_metrics_export_port"] = settings.ray.metrics_port
    else:
        arguments |= {"address": settings.ray.address}
    try:
        try:
            ray.init(**arguments)
        except Exception as error:
            # On a busy machine Ray gives up on its own processes too early, and says so in no class of its own.
            if type(error) is not Exception or settings.ray.address is not None:
                raise
            LOG.warning("Ray did not start %s", log.fields(error=_first_line(error)))
            ray.shutdown()
            ray.init(**arguments)
    except ConnectionError as error:
        raise _no_ray(settings, error) from error
    except OSError as error:
        # Ray keeps its sockets in the temporary folder, and a socket's path has 107 bytes at most.
        raise EnvironmentFault(
            f"Ray cannot start on this machine: {_first_line(error)}; set RAY_TMPDIR to a short, writable folder such as /tmp"
        ) from error
    except Exception as error:  # whatever Ray raises here, there is no Ray
        raise _no_ray(settings, error) from error


def _end(started: set[psutil.Process], mark: str) -> None:
    """End what is left of our own Ray: its agents wait for a minute and more when they lose it while it starts.

    They are children of ours until it goes, or carry the mark; one that has given itself a title may have lost the mark.
    """
    left = [*started, *marked(_MARK, mark)]
    for patience_s in (ENDS_S, ENDS_S, 0):
        left = psutil.wait_procs(left, timeout=patience_s)[1]
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        left += marked(_MARK, mark)


def marked(name: str, mark: str) -> list[psutil.Process]:
    """Processes with ``name=mark`` in their environment. Ray's titles overwrite its beginning, which ends it for psutil."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            raw = Path(f"/proc/{process.pid}/environ")
            carries = mark.encode() in raw.read_bytes() if raw.exists() else process.environ().get(name) == mark
            if carries and process.pid != os.getpid():
                found.append(process)
    return found


def _no_ray(settings: Settings, error: Exception) -> EnvironmentFault:
    where = settings.ray.address or "this machine"
    return EnvironmentFault(f"Ray cannot be reached or started on {where}: {_first_line(error)}")


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
