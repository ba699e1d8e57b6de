"""A collector of traces: OTLP over HTTP, as OpenTelemetry's own takes it, into memory.

Comes in: ``POST /v1/traces``. Goes out: spans, each with its resource. Never here: a sampler, or a file.
"""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)


@dataclass(frozen=True, slots=True)
class CollectedSpan:
    """One span; ids in hex, ``parent`` empty for a root."""

    name: str
    trace: str
    id: str
    parent: str
    resource: dict[str, Any]
    attributes: dict[str, Any]
    links: list[tuple[str, str]]
    begin: int
    end: int


class Collector:
    """What has come so far; ``raw`` is all of it as it came."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: list[CollectedSpan] = []
        self.raw = b""
        self.requests = 0

    def spans(self, name: str | None = None) -> list[CollectedSpan]:
        with self._lock:
            return [span for span in self._found if name is None or span.name == name]

    def take(self, body: bytes) -> None:
        request = ExportTraceServiceRequest.FromString(body)
        with self._lock:
            self.raw += body
            self.requests += 1
            for of_resource in request.resource_spans:
                resource = _values(of_resource.resource.attributes)
                for span in (span for scope in of_resource.scope_spans for span in scope.spans):
                    self._found.append(
                        CollectedSpan(
                            span.name,
                            span.trace_id.hex(),
                            span.span_id.hex(),
                            span.parent_span_id.hex(),
                            resource,
                            _values(span.attributes),
                            [(link.trace_id.hex(), link.span_id.hex()) for link in span.links],
                            span.start_time_unix_nano,
                            span.end_time_unix_nano,
                        )
                    )


def _values(attributes: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}


@contextmanager
def collector() -> Iterator[tuple[Collector, str]]:
    """A collector, and the endpoint to name in ``OTEL_EXPORTER_OTLP_ENDPOINT``."""
    found = Collector()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            known = self.path == "/v1/traces" and self.headers["content-type"] == "application/x-protobuf"
            if known:
                found.take(body)
            answer = ExportTraceServiceResponse().SerializeToString()
            self.send_response(200 if known else 404)
            self.send_header("content-type", "application/x-protobuf")
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield found, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
