"""The spans of one attempt to commit: one for each batch that it holds records of, and the first one's has the steps below it.

Comes in: what :class:`workers.trace.Commit` is told, by one thread. Goes out: spans. Never here: whether it has happened.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice

from opentelemetry.trace import Link, Span, SpanKind, set_span_in_context
from opentelemetry.util.types import AttributeValue

from workers.otel.batch import OpenBatch, end, failed
from workers.otel.provider import Spans
from workers.trace import Commit, Complete


class Attempt(Commit):
    """One attempt."""

    def __init__(
        self, spans: Spans, group: str, held: Callable[[Iterable[Complete]], list[tuple[OpenBatch, int]]]
    ) -> None:
        """``held``: the batches that a commit holds records of, each with the offset that it is committed up to."""
        self._spans = spans
        self._group = group
        self._held = held
        self._commits: list[Span] = []
        self._step: Span | None = None

    def begin(self, complete: Iterable[Complete]) -> None:
        """Begin a span in each batch's trace."""
        links: list[Link] = []
        for batch, reached in self._held(complete):
            attributes: dict[str, AttributeValue] = {
                "messaging.system": "kafka",
                "messaging.operation.name": "commit",
                "messaging.operation.type": "settle",
                "messaging.consumer.group.name": self._group,
                "messaging.destination.name": batch.partition.topic,
                "messaging.destination.partition.id": str(batch.partition.partition),
                "stream_embedder.offset.next": reached,
            }
            span = batch.child(f"commit {batch.partition.topic}", SpanKind.CLIENT, attributes, links)
            links = links or [Link(span.get_span_context())]
            self._commits.append(span)
        if self._commits:
            first, *others = self._commits
            first.set_attribute("stream_embedder.batches", len(self._commits))
            for other in islice(others, self._spans.most_links):
                first.add_link(other.get_span_context())

    def step(self, name: str, records: int | None = None) -> None:
        """One step after the other, below the first batch's span."""
        end(self._step)
        if not self._commits:
            return
        attributes = {} if records is None else {"messaging.batch.message_count": records}
        context = set_span_in_context(self._commits[0])
        self._step = self._spans.tracer.start_span(name, context, attributes=attributes)

    def done(self) -> None:
        """All of them end well."""
        end(self._step)
        for span in self._commits:
            end(span)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        """What has not ended by then has failed."""
        if error is not None:
            for span in (self._step, *self._commits):
                if span is not None:
                    failed(span, error)
        self.done()
