"""A trace for each batch of records: received, prepared, packed, encoded, committed.

Comes in: what :class:`workers.trace.Trace` is told. Goes out: spans. Never here: a span for each record, a text, a key, or I/O: the
provider's own threads export.

What serves several batches, an encoder's call, a commit, a file, is a span in the trace of the first of them, with links to the
others. Each batch has a span of its own for the time that it took of these. Batches that the sampler leaves out cost a look at
the sampler.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from itertools import islice

from opentelemetry.context import Context
from opentelemetry.trace import Link, NonRecordingSpan, Span, SpanContext, SpanKind, set_span_in_context
from opentelemetry.util.types import AttributeValue

from workers.otel import parent
from workers.otel.attempt import Attempt
from workers.otel.batch import Lane, OpenBatch, end, failed
from workers.otel.provider import Spans
from workers.records import Batch, Origin, Record, TopicPartition
from workers.trace import Commit, Complete, Trace, Waiting, type_ready

# So many batches have spans at a time, and what comes beyond has none: memory has a bound where a topic trickles in batches of one.
MOST_OPEN = 1_000
# So many batches that are committed are known of each partition, while their rows wait for a file.
MOST_WAITING = 256


class Batches(Trace):
    """A reader's traces. Its lock is held for memory operations only, and nobody is called who would take another."""

    def __init__(self, spans: Spans, group: str, client: str, *, files: bool) -> None:
        """``client``: what this reader is called in its ``group``; ``files``: whether some output is files."""
        self._spans = spans
        self._tracer = spans.tracer
        self._group = group
        self._client = client
        self._lock = threading.Lock()
        # Those of a partition are all of one assignment.
        self._open: dict[tuple[str, int], Lane] = {}
        self._count = 0
        self._calls: dict[str, tuple[Span, dict[OpenBatch, int]]] = {}
        self._files = files
        self._waiting: dict[TopicPartition, deque[tuple[int, int, SpanContext]]] = {}

    # ---- from the source to the encoder

    def received(self, batches: Iterable[Sequence[Record]]) -> None:
        """Begin a trace for each, as the sampler says."""
        for batch in batches:
            if self._count >= MOST_OPEN:
                return
            origin, last = batch[0].origin, batch[-1].origin.offset
            attributes: dict[str, AttributeValue] = {
                "messaging.system": "kafka",
                "messaging.operation.name": "process",
                "messaging.operation.type": "process",
                "messaging.consumer.group.name": self._group,
                "messaging.client.id": self._client,
                "messaging.destination.name": origin.topic,
                "messaging.destination.partition.id": str(origin.partition),
                "messaging.batch.message_count": len(batch),
                "stream_embedder.offset.first": origin.offset,
                "stream_embedder.offset.last": last,
            }
            if (dated := batch[0].timestamp_ms) >= 0:
                attributes["stream_embedder.age_s"] = round(max(0.0, time.time() - dated / 1000), 3)
            root = self._tracer.start_span(f"process {origin.topic}", Context(), SpanKind.CONSUMER, attributes)
            if root.is_recording():
                opened = OpenBatch(self._tracer, root, origin, last)
                with self._lock:
                    self._open.setdefault(opened.partition, Lane()).add(opened)
                    self._count += 1

    def preparing(self, batch: Sequence[Record]) -> AbstractContextManager[type_ready]:
        """A span below the batch's; one more when it has to be done again."""
        found = self._find(batch[0].origin)
        return super().preparing(batch) if found is None else self._preparing(found, batch)

    @contextlib.contextmanager
    def _preparing(self, found: OpenBatch, batch: Sequence[Record]) -> Iterator[type_ready]:
        def ready(texts: int) -> None:
            span.set_attribute("stream_embedder.texts", texts)
            with self._lock:
                found.unsent = found.unanswered = texts
                found.pack = found.child("pack") if texts else None

        self._link(found, batch)
        span = found.child("prepare")
        try:
            yield ready
        except BaseException as error:
            failed(span, error)
            raise
        finally:
            end(span)

    def _link(self, found: OpenBatch, batch: Sequence[Record]) -> None:
        """Link to those who produced the records, each once, those that somebody keeps."""
        if found.linked:
            return
        found.linked = True
        headers = dict.fromkeys(
            value for record in batch for name, value in record.headers if name == parent.HEADER and value is not None
        )
        producers = [context for value in headers if (context := parent.read(value)) is not None]
        for context in producers[: self._spans.most_links]:
            found.root.add_link(context)
        if len(producers) > self._spans.most_links:
            found.root.set_attribute("stream_embedder.links_left_out", len(producers) - self._spans.most_links)

    def sent(self, rows: Sequence[Sequence[Waiting]], call: Batch) -> Batch:
        """A span below the first batch's, which the encoder's replica goes on with."""
        if not self._count:
            return call
        with self._lock:
            counts: dict[OpenBatch, int] = {}
            for row in rows:
                for text in row:
                    origin = text.origin
                    lane = self._open.get((origin.topic, origin.partition))
                    if lane is not None and (found := lane.find(origin)) is not None:
                        counts[found] = counts.get(found, 0) + 1
            if not counts:
                return call
            phases = []
            for batch, count in counts.items():
                if batch.encode is None:
                    batch.encode = batch.child("encode")
                phases.append(batch.encode)
                batch.unsent -= count
                if batch.unsent <= 0:
                    end(batch.pack)
            first, *others = phases
            span = self._tracer.start_span(
                "call encoder",
                set_span_in_context(first),
                SpanKind.CLIENT,
                {"stream_embedder.texts": len(call), "stream_embedder.tokens": call.tokens},
                [Link(other.get_span_context()) for other in islice(others, self._spans.most_links)],
            )
            for other in others:
                other.add_link(span.get_span_context())
            trace = parent.write(span.get_span_context())
            self._calls[trace] = span, counts
        return replace(call, trace=trace)

    def retried(self, call: Batch, cause: str) -> None:
        """An event of the call's."""
        if call.trace is not None and (found := self._calls.get(call.trace)) is not None:
            found[0].add_event("retry", {"cause": cause})

    def answered(self, call: Batch, error: BaseException | None) -> None:
        """The call ends, and with a batch's last one its time with encoders."""
        if call.trace is None:
            return
        with self._lock:
            found = self._calls.pop(call.trace, None)
            if found is None:
                return
            span, counts = found
            if error is not None:
                failed(span, error)
            end(span)
            for batch, count in counts.items():
                batch.unanswered -= count
                if batch.unanswered <= 0:
                    end(batch.encode)

    # ---- the commit

    def commit(self) -> Commit:
        """See :class:`workers.otel.attempt.Attempt`."""
        return Attempt(self._spans, self._group, self._held) if self._count else super().commit()

    def _held(self, complete: Iterable[Complete]) -> list[tuple[OpenBatch, int]]:
        with self._lock:
            return [
                (batch, min(prefix.next_offset, batch.last + 1))
                for prefix in complete
                for batch in self._batches(prefix.topic_partition)
                if batch.epoch == prefix.epoch and batch.first < prefix.next_offset
            ]

    def committed(self, partition: TopicPartition, epoch: int, below: int) -> None:
        """The traces end of the batches that are committed to the last record; their files may follow."""
        if not self._count:
            return
        with self._lock:
            done = [batch for batch in self._batches(partition) if batch.epoch == epoch and batch.last < below]
            self._drop(partition, done)
            if self._files and done:
                waiting = self._waiting.setdefault(partition, deque(maxlen=MOST_WAITING))
                waiting.extend((batch.first, batch.last, batch.root.get_span_context()) for batch in done)

    def putting(self, output: str, partition: TopicPartition, start: int, below: int) -> AbstractContextManager[None]:
        """A span in the trace of the first batch whose rows the file has."""
        with self._lock:
            known = self._waiting.get(partition, ())
            waiting = [context for first, last, context in known if first < below and last >= start]
        if not waiting:
            return super().putting(output, partition, start, below)
        return self._putting(output, partition, start, below, waiting)

    @contextlib.contextmanager
    def _putting(
        self, output: str, partition: TopicPartition, start: int, below: int, waiting: Sequence[SpanContext]
    ) -> Iterator[None]:
        first, *others = waiting
        attributes: dict[str, AttributeValue] = {
            "stream_embedder.output": output,
            "messaging.destination.name": partition.topic,
            "messaging.destination.partition.id": str(partition.partition),
            "stream_embedder.offset.first": start,
            "stream_embedder.offset.next": below,
        }
        links = [Link(other) for other in islice(others, self._spans.most_links)]
        context = set_span_in_context(NonRecordingSpan(first))
        span = self._tracer.start_span("put file", context, SpanKind.CLIENT, attributes, links)
        try:
            yield
        except BaseException as error:
            failed(span, error)
            raise
        finally:
            end(span)

    # ---- what does not come that far

    def given_up(self, partitions: Iterable[TopicPartition], why: str) -> None:
        """Their traces end here, and say why."""
        with self._lock:
            for partition in partitions:
                held = self._batches(partition)
                for batch in held:
                    batch.root.set_attribute("stream_embedder.given_up", why)
                self._drop(partition, held)
                self._waiting.pop(partition, None)

    def parent(self, origin: Origin) -> bytes | None:
        """The batch's own span: who reads the output goes on from there."""
        found = self._find(origin)
        return None if found is None else found.header

    def close(self) -> None:
        """Give up what is open, and send what there is."""
        self.given_up([TopicPartition(*each) for each in list(self._open)], "ended")
        self._spans.close()

    def _find(self, origin: Origin) -> OpenBatch | None:
        """The batch that a record is in."""
        lane = self._open.get((origin.topic, origin.partition))
        return None if lane is None else lane.find(origin)

    def _batches(self, partition: TopicPartition) -> list[OpenBatch]:
        lane = self._open.get(partition)
        return [] if lane is None else lane.batches

    def _drop(self, partition: TopicPartition, gone: Sequence[OpenBatch]) -> None:
        """End the traces of a partition's first batches; under the lock."""
        for batch in gone:
            batch.close()
        self._count -= len(gone)
        if left := self._batches(partition)[len(gone) :]:
            self._open[partition] = Lane(left)
        else:
            self._open.pop(partition, None)
