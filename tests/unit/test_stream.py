"""A replica ends when its GPU is lost: as an answer, the error would count against the texts."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest

from workers import metrics
from workers.errors import DeviceLost, RetryableError
from workers.records import Batch
from workers.settings import KafkaSettings, QueriesSettings, RegistrySettings, Settings


class Ended(BaseException):
    """In place of the process's end."""


class Failing:
    """An encoder that raises."""

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.stats = type("Stats", (), {"tokens": 0, "padding": 0, "halved": 0})

    def encode(self, batch: Batch, dim: int) -> None:
        raise self.error


def replica(error: Exception) -> Any:
    from pipelines.stream import Encoder

    made: Any = object.__new__(Encoder)  # the replica without its model
    made._encoder, made._dim, made._meter = Failing(error), 4, metrics.Metrics()
    return made


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray Serve's, at import
def test_a_lost_device_ends_the_replica(monkeypatch, caplog):
    def end(code: int) -> None:
        raise Ended(code)

    monkeypatch.setattr(os, "_exit", end)
    batch = Batch.of([np.ones(3, np.int32)])
    with pytest.raises(Ended, match="1"):
        replica(DeviceLost("cuda is lost to this process"))._forward(batch)
    assert 'replica ends error="cuda is lost to this process"' in caplog.text
    with pytest.raises(RetryableError):
        replica(RetryableError("too little memory"))._forward(batch, whole=True)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray Serve's, at import
def test_what_opens_kafka_and_the_registry_does_not_go_to_the_encoders():
    from pipelines.stream import build

    given = Settings(
        outputs=[{"topic": "vectors"}],
        pool={"gpus_per_replica": 0},
        kafka={"bootstrap_servers": "far:1"},
        registry={"url": "https://far:2", "token": "s3cret"},
    )
    reader = build(given)._bound_deployment
    settings, encoder = reader.init_args
    assert settings.registry.token.get_secret_value() == "s3cret"
    (closed,) = encoder._bound_deployment.init_args
    assert (closed.kafka, closed.registry) == (KafkaSettings(), RegistrySettings())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray Serve's, at import
def test_queries_are_the_ingress_where_they_are_asked_for_and_their_key_is_nobody_elses():
    from pipelines.stream import APP, build

    given = Settings(
        outputs=[{"topic": "vectors"}],
        pool={"gpus_per_replica": 0, "in_flight": 2},
        readers={"count": 3},
        kafka={"bootstrap_servers": "far:1"},
        queries={"enabled": True, "api_key": "s3cret"},
    )
    made = build(given)._bound_deployment
    settings, app, encoders, readers = made.init_args
    assert (made.name, app, settings.queries.api_key.get_secret_value()) == ("Queries", APP, "s3cret")
    assert settings.kafka == KafkaSettings()
    encoder, reader = encoders._bound_deployment, readers._bound_deployment
    assert (encoder.name, reader.name) == ("Encoder", "Reader")
    assert reader.init_args[1] is encoders
    assert [part.init_args[0].queries.api_key for part in (encoder, reader)] == [None, None]
    # Three readers and the queries may each have two calls there.
    assert encoder.max_ongoing_requests == 8
    assert encoder._deployment_config.request_router_config.request_router_kwargs == {"most": 2}
    without = build(given.model_copy(update={"queries": QueriesSettings()}))._bound_deployment
    assert (without.name, without.init_args[1]._bound_deployment.max_ongoing_requests) == ("Reader", 6)
