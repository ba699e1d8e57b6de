"""What an encoder replica does of a call: it waits for its turn, and is computed.

Comes in: calls that say where in a trace they are. Goes out: spans below that. Never here: a call that says nothing.
"""

from __future__ import annotations

from collections.abc import Callable

from opentelemetry.context import Context
from opentelemetry.trace import NonRecordingSpan, SpanKind, set_span_in_context

from workers.otel import parent
from workers.otel.batch import end, failed
from workers.otel.provider import Spans
from workers.records import Batch
from workers.trace import ReplicaTrace, type_result


class Replica(ReplicaTrace):
    """One replica's spans."""

    def __init__(self, spans: Spans) -> None:
        self._spans = spans
        self._tracer = spans.tracer

    def timed(self, call: Batch, work: Callable[[], type_result]) -> Callable[[], type_result]:
        """A span for the call, with one for the wait and one for the work below it.

        A call that is cancelled while it waits leaves none: what has not ended is not exported.
        """
        above = None if call.trace is None else parent.read(call.trace.encode())
        if above is None:
            return work
        attributes = {"stream_embedder.texts": len(call), "stream_embedder.tokens": call.tokens}
        context = set_span_in_context(NonRecordingSpan(above), Context())
        span = self._tracer.start_span("encoder", context, SpanKind.SERVER, attributes)
        below = set_span_in_context(span, Context())
        queue = self._tracer.start_span("queue", below)

        def timed() -> type_result:
            end(queue)
            compute = self._tracer.start_span("compute", below)
            try:
                return work()
            except BaseException as error:
                failed(compute, error)
                failed(span, error)
                raise
            finally:
                end(compute)
                end(span)

        return timed

    def close(self) -> None:
        """Send what there is."""
        self._spans.close()
