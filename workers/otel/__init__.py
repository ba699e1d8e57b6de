"""Spans of OpenTelemetry, made of what :mod:`workers.trace` is told. The only room of its libraries, which are an extra.

Comes in: settings. Goes out: who is told: nobody, where ``telemetry.traces`` is off, and then nothing is imported. Never here: what
a span is.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

from workers import metrics
from workers.errors import EnvironmentFault
from workers.settings import Settings
from workers.trace import UNTRACED, ReplicaTrace, Trace

if TYPE_CHECKING:
    from workers.otel.provider import Spans


def reader_trace(settings: Settings, instance: str, meter: metrics.Metrics) -> Trace:
    """Whom a reader tells; ``instance``: what it is called.

    Raises:
        EnvironmentFault: as :func:`spans`.
    """
    if not settings.telemetry.traces:
        return UNTRACED
    made = spans("reader", meter)
    from workers.otel.batches import Batches  # noqa: PLC0415 - only who traces pays for the libraries

    return Batches(made, settings.source.group, instance, files=any(out.kind == "parquet" for out in settings.outputs))


def replica_trace(settings: Settings, meter: metrics.Metrics) -> ReplicaTrace:
    """Whom an encoder replica tells; errors as above."""
    if not settings.telemetry.traces:
        return ReplicaTrace()
    made = spans("encoder", meter)
    from workers.otel.replica import Replica  # noqa: PLC0415 - only who traces pays for the libraries

    return Replica(made)


def spans(actor: str, meter: metrics.Metrics) -> Spans:
    """This process's way to export spans.

    Raises:
        EnvironmentFault: the libraries are missing, or the environment names an exporter that there is not.
    """
    made: Spans = _provider().Spans(actor, meter)
    return made


def probe() -> str | None:
    """Where, and perhaps why, spans would be lost now; None: nowhere. Asks the collector, two seconds at most; errors as above."""
    found: str | None = _provider().probe()
    return found


def _provider() -> ModuleType:
    try:
        return importlib.import_module("workers.otel.provider")
    except ImportError as error:
        raise EnvironmentFault(
            f"telemetry.traces needs OpenTelemetry's SDK, which cannot be loaded ({error}): pip install 'stream-embedder[traces]', "
            "or turn traces off"
        ) from error
