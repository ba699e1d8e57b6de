"""What ``check`` looks at where traces are on: the libraries, and whether a collector answers.

Comes in: settings. Goes out: findings. Never here: a refusal because no collector answers: without one spans are lost, and records
are not.
"""

from __future__ import annotations

from collections.abc import Iterator

from pipelines.finding import Finding
from workers import otel
from workers.errors import EnvironmentFault
from workers.settings import Settings


def examine_traces(settings: Settings) -> Iterator[Finding]:
    """Nothing where traces are off."""
    if not settings.telemetry.traces:
        return
    try:
        lost = otel.probe()
    except EnvironmentFault as error:
        yield Finding("traces", str(error))
        return
    if lost is None:
        yield Finding("traces")
    else:
        yield Finding(
            "traces",
            f"no spans are taken at {lost}; until they are, they are lost, and the pipeline runs on (OTEL_EXPORTER_OTLP_ENDPOINT, "
            "here and in the environment of Ray's nodes)",
            may_never_happen=True,
        )
