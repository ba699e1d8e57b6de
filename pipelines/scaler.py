"""The scaling policy as Ray Serve wants it.

Comes in: Serve's context, ten times a second, inside the controller's event loop. Goes out: how many encoders there should be.
Never here: a wait or an exception, which would stop the controller (measured: other applications' updates hang).

Serve pickles this module by value, and imports the others where the controller runs. It makes one policy for each deployment, and
a new one when the controller restarts, which then holds the target until it has figures.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

from workers import log, metrics
from workers.autoscaler import Autoscaler
from workers.scaling import Limits
from workers.settings import Settings

LOG = log.get(__name__)
ASK_S = 5.0
# Serve pushes request counts every 10 s, and its mean must reach further back than that.
LOOK_BACK_S = 15.0


class EncoderScaler:
    """A policy for the deployment of encoders; it asks the deployments ``Reader`` and, if there is one, ``Queries`` beside it."""

    def __init__(self, app: str, readers: int, limits: Mapping[str, Any], queries: bool = False) -> None:
        """All of it JSON, and nothing of it secret: Serve shows it to whoever asks for its configuration."""
        from pipelines.exporter import RayExporter  # noqa: PLC0415 - where the controller runs

        log.configure()
        self._app = app
        self._handles: dict[str, Any] = {}
        self._scaler = Autoscaler(
            lambda: self._ask(
                "Reader", self._scaler.last
            ),  # nobody can ask a policy: status asks the readers, whom it tells
            Limits(**limits),
            readers=readers,
            meter=metrics.Metrics(RayExporter()),
            ask_queries=functools.partial(self._ask, "Queries") if queries else None,
        )
        self._scaler.start()

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        """The target for an ``AutoscalingContext``; the state is ours, so Serve keeps none."""
        target = self._scaler.target(
            context.current_num_replicas,
            context.target_num_replicas,
            lambda: context.total_num_requests,
            context.capacity_adjusted_min_replicas,
            context.capacity_adjusted_max_replicas,
        )
        return target, {}

    def _ask(self, deployment: str, *told: object) -> list[Mapping[str, float]]:
        if deployment not in self._handles:
            self._handles[deployment] = serve.get_deployment_handle(deployment, self._app)
        answers = self._handles[deployment].broadcast("stats", *told).results(timeout_s=ASK_S, return_exceptions=True)
        return [answer for answer in answers if isinstance(answer, Mapping)]


def scaled(settings: Settings, app: str) -> AutoscalingConfig:
    """The Encoder deployment's size where ``pool.min`` and ``pool.max`` differ: ours to decide, without delays of Serve's."""
    pool, scaling = settings.pool, settings.scaling
    limits = Limits(
        least=pool.min,
        most=pool.max,
        drain_s=scaling.drain_target_s,
        idle_s=scaling.idle_s,
        settle_s=scaling.settle_s,
        start_s=scaling.start_s,
        tokens_per_s=scaling.tokens_per_s,
        calls_per_replica=pool.in_flight,
    )
    return AutoscalingConfig(
        min_replicas=pool.min,
        max_replicas=pool.max,
        target_ongoing_requests=pool.in_flight,
        look_back_period_s=LOOK_BACK_S,
        upscale_delay_s=0,
        downscale_delay_s=0,
        downscale_to_zero_delay_s=0,
        policy=AutoscalingPolicy(
            policy_function="pipelines.scaler:EncoderScaler",
            policy_kwargs={
                "app": app,
                "readers": settings.readers.count,
                "limits": asdict(limits),
                "queries": settings.queries.enabled,
            },
        ),
    )
