"""One batch's spans, from the source to its commit; and a partition's batches.

Comes in: a span that has begun. Goes out: its children, and their ends, none of them twice. Never here: a lock.
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence

from opentelemetry.trace import Link, Span, SpanKind, StatusCode, Tracer, set_span_in_context
from opentelemetry.util.types import AttributeValue

from workers.otel import parent
from workers.records import Origin, TopicPartition


class OpenBatch:
    """A batch that has a trace: the records of an assignment from offset ``first`` to ``last``, both among them."""

    __slots__ = (
        *("_children", "_context", "_tracer", "encode", "epoch", "first", "header", "last", "linked", "pack"),
        *("partition", "root", "unanswered", "unsent"),
    )

    def __init__(self, tracer: Tracer, root: Span, origin: Origin, last: int) -> None:
        """``root``: the batch's span; ``origin``: of its first record."""
        self.partition: TopicPartition = origin.topic_partition
        self.epoch, self.first, self.last = origin.epoch, origin.offset, last
        self.root = root
        self.header = parent.write(root.get_span_context()).encode()
        self.linked = False  # to who produced its records
        self.pack: Span | None = None
        self.encode: Span | None = None
        self.unsent = self.unanswered = 0
        self._tracer = tracer
        self._context = set_span_in_context(root)
        self._children: list[Span] = []

    def child(
        self,
        name: str,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Mapping[str, AttributeValue] | None = None,
        links: Sequence[Link] = (),
    ) -> Span:
        """Begin a span below the batch's."""
        span = self._tracer.start_span(name, self._context, kind, attributes, links)
        # Those that have ended are nobody's any more: what is tried for hours leaves many.
        self._children = [*(child for child in self._children if child.is_recording()), span]
        return span

    def close(self) -> None:
        """End what has not ended, the batch's own span last."""
        for span in self._children:
            end(span)
        end(self.root)


class Lane:
    """A partition's batches, in the order of their offsets. It only grows: who has one reads on without the lock."""

    __slots__ = ("batches", "firsts")

    def __init__(self, batches: Sequence[OpenBatch] = ()) -> None:
        self.batches = list(batches)
        self.firsts = [batch.first for batch in batches]

    def add(self, batch: OpenBatch) -> None:
        """The next one."""
        self.batches.append(batch)
        self.firsts.append(batch.first)  # found from now on

    def find(self, origin: Origin) -> OpenBatch | None:
        """The batch that a record is in."""
        at = bisect.bisect_right(self.firsts, origin.offset)
        if at == 0:
            return None
        found = self.batches[at - 1]
        return found if origin.offset <= found.last and origin.epoch == found.epoch else None


def end(span: Span | None) -> None:
    """End a span that has not ended."""
    if span is not None and span.is_recording():
        span.end()


def failed(span: Span, error: BaseException | None) -> None:
    """Say that what a span stands for has failed, by the error's class: its words may be anybody's."""
    if span.is_recording():
        span.set_status(StatusCode.ERROR)
        if error is not None:
            span.set_attribute("error.type", type(error.__cause__ or error).__qualname__)
