"""The command ``run``: Ray here or elsewhere, the application on it, a live line, and a drain at the end.

Comes in: settings. Goes out: an exit code, after SIGTERM or Ctrl-C. Never here: anything that the stream needs: when this
process dies on a cluster, the application goes on.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

from pipelines import check
from pipelines.census import own_sentence
from pipelines.live import Live, Sample, sample
from workers import kafka_client, kafka_topics, log
from workers.errors import EnvironmentFault, RetryableError
from workers.settings import Settings

LOG = log.get(__name__)
SAMPLE_S = 1.0
RAY_ENDS_S = 3.0
_MARK = "RAY_STARTED_BY_RUN"  # what Ray starts inherits it, and shows it to who looks for what is left
_ENDS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def run(settings: Settings, encoder_class: type | None = None) -> int:
    """Run the pipeline until a signal; 0 once it has drained. ``encoder_class`` may stand in for the model's encoder.

    Raises:
        EnvironmentFault: something that the settings point at is wrong, or Ray is lost.
        SettingsError: the settings do not suit the model.
    """
    log.configure()
    stop = threading.Event()
    with _signals(stop), Live() as live:
        live.say("checking broker, topics and model")
        check.require_sound(settings)
        if stop.is_set():
            return 0
        live.say("starting Ray" if settings.ray.address is None else f"joining Ray at {settings.ray.address}")
        with _cluster(settings, stop):
            if stop.is_set():
                return 0
            live.say("starting the readers and encoders")
            readers = _deploy(settings, stop, encoder_class)
            if not stop.is_set():
                live.say("running; SIGTERM or Ctrl-C drains")
            _watch(settings, readers, stop, live)
            live.say("draining")
            live.say(_drain(settings, readers))
    return 0


@contextlib.contextmanager
def _signals(stop: threading.Event) -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in _ENDS}
    _catch(stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _catch(stop: threading.Event) -> None:
    for number in _ENDS:
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:  # nohup means it
            signal.signal(number, lambda *_: stop.set())


@contextlib.contextmanager
def _cluster(settings: Settings, stop: threading.Event) -> Iterator[None]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray  # noqa: PLC0415 - heavy

    mark = os.environ[_MARK] = uuid.uuid4().hex
    others = set(psutil.Process().children(recursive=True))
    arguments: dict[str, Any] = {"logging_level": logging.ERROR, "namespace": "stream-embedder"}
    if settings.ray.address is None:
        arguments |= {"address": "local", "include_dashboard": False}
    else:
        arguments |= {"address": settings.ray.address}
    try:
        _start(ray, arguments, settings, stop)
        yield
    finally:
        started = set(psutil.Process().children(recursive=True)) - others
        ray.shutdown()
        if settings.ray.address is None:
            _end(started, mark)


def _start(ray: Any, arguments: dict[str, Any], settings: Settings, stop: threading.Event) -> None:
    """Start Ray or join it, unless a signal comes first."""
    try:
        # What Ray starts inherits this: a terminal that closes says so to all of them, and they are needed for the drain.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
        with _catching_while_it_connects(ray, stop):
            try:
                ray.init(**arguments)
            except Exception as error:
                # On a busy machine Ray gives up on its own processes too early, and says so in no class of its own.
                if type(error) is not Exception or settings.ray.address is not None:
                    raise
                LOG.warning("Ray did not start %s", log.fields(error=_first_line(error)))
                ray.shutdown()
                ray.init(**arguments)
        _catch(stop)  # ray.init sets handlers of its own …
    except SystemExit:  # … which end the process while it starts
        stop.set()
        _catch(stop)
    except ConnectionError as error:
        raise _no_ray(settings, error) from error
    except OSError as error:
        # Ray keeps its sockets in the temporary folder, and a socket's path has 107 bytes at most.
        raise EnvironmentFault(
            f"Ray cannot start on this machine: {_first_line(error)}; set RAY_TMPDIR to a short, writable folder such as /tmp"
        ) from error
    except Exception as error:  # whatever Ray raises here, there is no Ray
        raise _no_ray(settings, error) from error
    finally:
        del os.environ[_MARK]
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})


@contextlib.contextmanager
def _catching_while_it_connects(ray: Any, stop: threading.Event) -> Iterator[None]:
    """Keep our handlers while Ray's core connects: Ray's own raises SystemExit into the middle of it, which ends in a crash."""
    worker = ray._private.worker
    connect = worker.connect

    def caught(*arguments: Any, **more: Any) -> Any:
        _catch(stop)
        return connect(*arguments, **more)

    worker.connect = caught
    try:
        yield
    finally:
        worker.connect = connect


def _end(started: set[psutil.Process], mark: str) -> None:
    """End what is left of our own Ray: its agents wait for a minute and more when they lose it while it starts.

    They are children of ours until it goes, or carry the mark; one that has given itself a title may have lost the mark.
    """
    left = [*started, *_marked(mark)]
    for patience_s in (RAY_ENDS_S, RAY_ENDS_S, 0):
        left = psutil.wait_procs(left, timeout=patience_s)[1]
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        left += _marked(mark)


def _marked(mark: str) -> list[psutil.Process]:
    """Processes that carry the mark in their environment. Ray's titles overwrite its beginning, which ends it for psutil."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            raw = Path(f"/proc/{process.pid}/environ")
            carries = mark.encode() in raw.read_bytes() if raw.exists() else process.environ().get(_MARK) == mark
            if carries and process.pid != os.getpid():
                found.append(process)
    return found


def _no_ray(settings: Settings, error: Exception) -> EnvironmentFault:
    where = settings.ray.address or "this machine"
    return EnvironmentFault(f"Ray cannot be reached or started on {where}: {_first_line(error)}")


def _deploy(settings: Settings, stop: threading.Event, encoder_class: type | None) -> Any:
    """Start the application; returns the readers' handle when it runs or somebody wants to stop."""
    from ray import serve  # noqa: PLC0415
    from ray.serve.schema import ApplicationStatus, DeploymentStatusTrigger, LoggingConfig  # noqa: PLC0415

    from pipelines import stream  # noqa: PLC0415

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    quiet = LoggingConfig(log_level="WARNING", enable_access_log=False)
    serve.start(proxy_location="Disabled", logging_config=quiet)
    built = stream.build(settings, encoder_class or stream.Encoder)
    target = serve.RunTarget(target=built, name=stream.APP, route_prefix=None, logging_config=quiet)
    readers = serve.run_many([target], wait_for_applications_running=False)[0]
    while not stop.wait(0.2):
        application = serve.status().applications.get(stream.APP)
        if application is None:
            continue
        if application.status == ApplicationStatus.RUNNING:
            break
        # A replica that died while others started is Serve's to replace, whatever Serve calls that; one that could not be
        # built, three times over, is our failure.
        triggers = {found.status_trigger for found in application.deployments.values()}
        if (
            application.status == ApplicationStatus.DEPLOY_FAILED
            and DeploymentStatusTrigger.HEALTH_CHECK_FAILED not in triggers
        ):
            said = " ".join([application.message, *(found.message for found in application.deployments.values())])
            raise EnvironmentFault(_reason(said))
    return readers


def _reason(message: str) -> str:
    """Our own sentence out of Serve's message, which holds the whole traceback of a replica."""
    return own_sentence(message) or f"the application did not start: {message.strip().splitlines()[-1][:300]}"


def _watch(settings: Settings, readers: Any, stop: threading.Event, live: Live) -> None:
    lag = _Lag(settings)
    lag.start()
    try:
        while not stop.wait(SAMPLE_S):
            found = _look(readers, lag.latest)
            if found is not None:
                live.show(found)
    finally:
        lag.stop()


def _look(readers: Any, lag: int | None) -> Sample | None:
    """Ask Serve and the readers; None while the controller does not answer, which stops nothing."""
    import ray  # noqa: PLC0415
    from ray import serve  # noqa: PLC0415

    from pipelines.stream import APP  # noqa: PLC0415

    if not ray.is_initialized():
        raise EnvironmentFault("the connection to Ray is lost")
    try:
        deployments = serve.status().applications[APP].deployments
        running = {name: found.replica_states.get("RUNNING", 0) for name, found in deployments.items()}
        answers = readers.broadcast("stats").results(timeout_s=2.0, return_exceptions=True)
    except Exception as error:  # noqa: BLE001 - the controller or a reader is being replaced
        LOG.debug("not looked %s", log.fields(error=type(error).__name__))
        return None
    wanted = sum(deployments["Encoder"].replica_states.values())
    return sample(time.monotonic(), [answer for answer in answers if isinstance(answer, Mapping)], lag, running, wanted)


def _drain(settings: Settings, readers: Any) -> str:
    """Let every reader finish and leave, and say what is left; on a cluster that stays, take the application away."""
    from ray import serve  # noqa: PLC0415

    from pipelines.stream import APP  # noqa: PLC0415

    said = "drained; what the readers held is read again at the next start"
    try:
        answers = readers.broadcast("drain").results(
            timeout_s=settings.delivery.drain_timeout_s + 12, return_exceptions=True
        )
        ended = [answer[1] for answer in answers if isinstance(answer, tuple) and answer[0]]
        if len(ended) < len(answers):
            LOG.warning("a reader did not drain in time; what it held is read again at the next start")
        else:
            said = left_behind(sum(ended))
    except Exception as error:  # noqa: BLE001 - nothing to drain is drained: the application never ran, or is gone
        LOG.warning("no reader to drain %s", log.fields(error=type(error).__name__))
    if settings.ray.address is not None:
        serve.delete(APP)
    return said


def left_behind(records: int) -> str:
    """What is said of a drain that left so many records uncommitted."""
    if records == 0:
        return "drained; all that was read is committed"
    return f"drained; of what was read {records:,} records are not committed: they are read again at the next start"


class _Lag:
    """The group's lag, asked every two seconds on a thread of its own: an answer may take long while a broker is down."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._ask, name="lag", daemon=True)
        self._said = ""
        self.latest: int | None = None

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()

    def _ask(self) -> None:
        while not self._stop.wait(0.1):
            try:
                with kafka_client.admin(self._settings.kafka) as client:
                    while not self._stop.wait(2.0):
                        self.latest = kafka_topics.lag(client, self._settings.source)
                        self._said = ""
            except (EnvironmentFault, RetryableError) as error:
                self.latest = None
                if str(error) != self._said:  # once for each reason, and not every two seconds
                    self._said = str(error)
                    LOG.warning("lag unknown %s", log.fields(error=error))
                self._stop.wait(2.0)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
