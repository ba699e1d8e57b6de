"""OpenTelemetry as its own environment variables say: exporters, sampler, limits, resource.

Comes in: ``OTEL_…``, which its SDK reads by itself in every process. Goes out: a tracer, and an end that waits for no collector.
Never here: what is traced, or anything that is global: Ray may have tracing of its own.
"""

from __future__ import annotations

import importlib.metadata
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence

from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from workers import log, metrics
from workers.errors import EnvironmentFault, in_one_line

LOG = log.get(__name__)

SERVICE = "stream-embedder"
# What is left to send at the end has so long: a collector that does not answer keeps nobody from ending.
CLOSE_S = 2.0
# A collector that is asked whether it is there has so long.
PROBE_S = 2.0
# A complaint of the libraries' is repeated this often: where a collector is away, every export has the same one.
REPEAT_S = 60.0
EXPORTERS = "opentelemetry_traces_exporter"
PROTOCOLS = {"http/protobuf": "otlp_proto_http", "grpc": "otlp_proto_grpc"}


class Spans:
    """A process's own ``provider``. ``tracer`` makes spans; ``most_links``: so many of its links a span keeps."""

    def __init__(self, actor: str, meter: metrics.Metrics) -> None:
        """``actor``: reader or encoder. The exporters' threads start here.

        Raises:
            EnvironmentFault: as :func:`exporters`.
        """
        _listen()
        limits = SpanLimits()
        found = exporters()
        self.provider = TracerProvider(resource=_resource(actor), span_limits=limits, shutdown_on_exit=False)
        for make in found:
            self.provider.add_span_processor(BatchSpanProcessor(_Counting(make(), meter)))
        self.tracer = self.provider.get_tracer(SERVICE, _version())
        self.most_links = sys.maxsize if limits.max_links is None else limits.max_links

    def close(self) -> None:
        """Send what is left, for :data:`CLOSE_S` at most."""
        ending = threading.Thread(target=self.provider.shutdown, name="spans", daemon=True)
        ending.start()
        ending.join(CLOSE_S)


def exporters() -> list[Callable[[], SpanExporter]]:
    """The exporters that ``OTEL_TRACES_EXPORTER`` names: otlp unless it says otherwise, and none for ``none``.

    Raises:
        EnvironmentFault: one of them is not installed.
    """
    names = [name.strip() for name in (os.environ.get("OTEL_TRACES_EXPORTER") or "otlp").split(",")]
    return [_exporter(name) for name in names if name not in ("", "none")]


def probe() -> str | None:
    """Why spans would be lost now; None: a collector takes them, or there is none to be asked.

    Raises:
        EnvironmentFault: as :func:`exporters`.
    """
    for make in exporters():
        exporter = make()
        endpoint = getattr(exporter, "_endpoint", None)
        if endpoint is None:
            continue  # the console, and what else is on this machine
        answer = _Answer()
        libraries = logging.getLogger("opentelemetry")
        libraries.addHandler(answer)
        before, libraries.propagate = libraries.propagate, False
        try:
            # An export of nothing; one that failed is tried again for longer than anybody here waits.
            threading.Thread(target=lambda: answer.take(exporter.export([])), daemon=True).start()  # noqa: B023
            answer.there.wait(PROBE_S)
            exporter.shutdown()
        finally:
            libraries.removeHandler(answer)
            libraries.propagate = before
        if answer.said is None:
            return f"{endpoint}, within {PROBE_S:.0f} s"
        if answer.said:
            return f"{endpoint}: {answer.said}"
    return None


def _exporter(name: str) -> Callable[[], SpanExporter]:
    entry, wanted = name, f"OTEL_TRACES_EXPORTER: {name}"
    if name == "otlp":
        given = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
        protocol = given or "http/protobuf"
        if protocol not in PROTOCOLS:
            raise EnvironmentFault(
                f"telemetry.traces: OTEL_EXPORTER_OTLP_PROTOCOL is {protocol}, and is one of {', '.join(PROTOCOLS)}"
            )
        entry, wanted = PROTOCOLS[protocol], f"OpenTelemetry's exporter for OTLP over {protocol}"
    found = importlib.metadata.entry_points(group=EXPORTERS, name=entry)
    package = f"opentelemetry-exporter-{entry.replace('_', '-')}"
    mend = "'stream-embedder[traces]'" if entry == PROTOCOLS["http/protobuf"] else package
    try:
        made: type[SpanExporter] = next(iter(found)).load()
    except (StopIteration, ImportError) as error:
        why = "is not installed" if isinstance(error, StopIteration) else f"cannot be loaded ({in_one_line(error)})"
        raise EnvironmentFault(
            f"telemetry.traces needs {wanted}, which {why}: pip install {mend}, or turn traces off"
        ) from error
    return made


def _resource(actor: str) -> Resource:
    """What all spans of this process say of it; where the environment says something else, that."""
    found = Resource.create()
    service = str(found.attributes[SERVICE_NAME])
    named = Resource({SERVICE_NAME: SERVICE if service.startswith("unknown_service") else service})
    return Resource({SERVICE_VERSION: _version(), "stream_embedder.actor": actor}).merge(found).merge(named)


def _version() -> str:
    try:
        return importlib.metadata.version(SERVICE)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


class _Counting(SpanExporter):
    """Counts the spans that an exporter could not be rid of."""

    def __init__(self, exporter: SpanExporter, meter: metrics.Metrics) -> None:
        self._exporter = exporter
        self._meter = meter

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self._exporter.export(spans)
        if result is not SpanExportResult.SUCCESS:
            self._meter.add(metrics.SPANS_LOST, len(spans))
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()


class _Seldom(logging.Handler):
    """What the libraries complain of, in our log, and no complaint again and again."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._said: dict[str, float] = {}

    def emit(self, record: logging.LogRecord) -> None:
        now = time.monotonic()
        if now - self._said.get(record.msg, -REPEAT_S) >= REPEAT_S:
            self._said[record.msg] = now
            LOG.log(record.levelno, "traces %s", log.fields(said=" ".join(record.getMessage().split())[:300]))


class _Answer(logging.Handler):
    """What came of an export: the first complaint, or nothing to complain of; ``said`` is None while neither is there."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.there = threading.Event()
        self.said: str | None = None

    def emit(self, record: logging.LogRecord) -> None:
        if self.said is None:
            self.said = " ".join(record.getMessage().split())[:300]
            self.there.set()

    def take(self, result: SpanExportResult) -> None:
        if self.said is None:
            self.said = "" if result is SpanExportResult.SUCCESS else "it refuses"
            self.there.set()


def _listen() -> None:
    libraries = logging.getLogger("opentelemetry")
    if not any(isinstance(handler, _Seldom) for handler in libraries.handlers):
        libraries.addHandler(_Seldom())
        libraries.propagate = False
