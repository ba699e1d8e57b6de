"""The command ``run``: Ray here or elsewhere, the application on it, a live line, and a drain at the end.

Comes in: settings. Goes out: an exit code, after SIGTERM or Ctrl-C. Never here: anything that the stream needs: when this
process dies on a cluster, the application goes on.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from typing import Any

from pipelines import check, cluster
from pipelines.census import own_sentence
from pipelines.live import Live, Sample, sample
from pipelines.queries import proxy
from workers import kafka_client, kafka_topics, log
from workers.errors import EnvironmentFault, RetryableError
from workers.settings import Settings

LOG = log.get(__name__)
SAMPLE_S = 1.0


def run(settings: Settings, stop: threading.Event, encoder_class: type | None = None) -> int:
    """Run the pipeline until ``stop`` is set; 0 once it has drained. ``encoder_class`` may stand in for the model's encoder.

    Raises:
        EnvironmentFault: something that the settings point at is wrong, or Ray is lost.
        SettingsError: the settings do not suit the model.
    """
    log.configure()
    with Live() as live:
        live.say("checking broker, topics and model")
        check.require_sound(settings)
        if stop.is_set():
            return 0
        live.say("starting Ray" if settings.ray.address is None else f"joining Ray at {settings.ray.address}")
        with cluster.connected(settings):
            if stop.is_set():
                return 0
            live.say("starting the readers and encoders")
            readers = _deploy(settings, stop, encoder_class)
            if settings.queries.enabled and not stop.is_set():
                live.say(f"answering queries at {proxy.address(settings)}")
            if not stop.is_set():
                live.say("running; SIGTERM or Ctrl-C drains")
            _watch(settings, readers, stop, live)
            live.say("draining")
            live.say(_drain(settings, readers))
    return 0


def _deploy(settings: Settings, stop: threading.Event, encoder_class: type | None) -> Any:
    """Start the application; returns the readers' handle when it runs or somebody wants to stop."""
    from ray import serve  # noqa: PLC0415
    from ray.serve.schema import ApplicationStatus, DeploymentStatusTrigger, LoggingConfig  # noqa: PLC0415

    from pipelines import stream  # noqa: PLC0415

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    quiet = LoggingConfig(log_level="WARNING", enable_access_log=False)
    proxy.start(settings, quiet)
    built = stream.build(settings, encoder_class or stream.Encoder)
    prefix = "/" if settings.queries.enabled else None
    target = serve.RunTarget(target=built, name=stream.APP, route_prefix=prefix, logging_config=quiet)
    ingress = serve.run_many([target], wait_for_applications_running=False)[0]
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
    if not settings.queries.enabled:
        return ingress
    # Not checked: somebody who wants to stop may not have waited until it is there.
    return serve.get_deployment_handle("Reader", stream.APP, _check_exists=False)


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
    if settings.queries.enabled:
        _drain_queries(settings)
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


def _drain_queries(settings: Settings) -> None:
    """Have the queries answered that are here."""
    from ray import serve  # noqa: PLC0415

    from pipelines.stream import APP  # noqa: PLC0415

    timeout_s = settings.delivery.drain_timeout_s
    try:
        answers = serve.get_deployment_handle("Queries", APP).broadcast("drain", timeout_s)
        if not all(answers.results(timeout_s=timeout_s + 2)):
            LOG.warning("some queries were not answered in time")
    except Exception as error:  # noqa: BLE001 - it never ran, or is gone
        LOG.warning("queries not drained %s", log.fields(error=type(error).__name__))


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
