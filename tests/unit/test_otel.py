"""Traces of a reader over fakes, in the SDK's own memory: one for each batch, whole, and with nothing of a record in it."""

from __future__ import annotations

import itertools
import logging
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanContext, SpanKind, StatusCode, TraceFlags

from pipelines.check_traces import examine_traces
from tests.collector import collector
from tests.fakes import FakeSink, Group, Pause, Rebalance, fake_encode
from tests.unit.test_reader import DEAD, OUT, P0, P1, text, texts, type_stream
from tests.unit.test_reader import stream as stream  # noqa: PLC0414 - the fixture
from workers import metrics, otel
from workers.errors import EnvironmentFault, RetryableError
from workers.otel import batches as rooms
from workers.otel import parent
from workers.otel.batches import Batches
from workers.otel.provider import Spans
from workers.otel.replica import Replica
from workers.records import Batch, Message, Record, type_vectors
from workers.settings import Settings
from workers.trace import UNTRACED, ReplicaTrace

ROOT = Path(__file__).parents[2]
PRODUCER = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
ON = Settings.model_validate({"telemetry": {"traces": True}})


class Seen:
    """Spans that have ended, as a collector would have them."""

    def __init__(self, spans: Spans) -> None:
        self.spans = spans
        self.memory = InMemorySpanExporter()
        spans.provider.add_span_processor(SimpleSpanProcessor(self.memory))

    def reader(self, *, files: bool = False) -> Batches:
        return Batches(self.spans, "embedder", "stream-embedder-0", files=files)

    def all(self, name: str | None = None) -> list[ReadableSpan]:
        return [span for span in self.memory.get_finished_spans() if name is None or span.name == name]

    def one(self, name: str) -> ReadableSpan:
        (found,) = self.all(name)
        return found

    def below(self, span: ReadableSpan) -> dict[str, ReadableSpan]:
        """A span's children by name."""
        return {child.name: child for child in self.all() if child.parent and child.parent.span_id == _id(span)}


def _id(span: ReadableSpan) -> int:
    assert span.context is not None
    return span.context.span_id


def linked(span: ReadableSpan) -> list[int]:
    return [link.context.span_id for link in span.links]


def said(span: ReadableSpan, name: str) -> object:
    return (span.attributes or {}).get(name)


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The environment of nobody in particular, and no collector; what was done to loggers is undone."""
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    for name in ("OTEL_TRACES_SAMPLER", "OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        monkeypatch.delenv(name, raising=False)
    libraries = logging.getLogger("opentelemetry")
    handlers, propagate = list(libraries.handlers), libraries.propagate
    yield
    libraries.handlers[:], libraries.propagate = handlers, propagate


@pytest.fixture
def seen() -> Iterator[Seen]:
    made = Seen(Spans("reader", metrics.Metrics()))
    yield made
    made.spans.close()


def produced(record: Record, *parents: bytes) -> Record:
    return replace(record, headers=tuple(("traceparent", each) for each in parents))


# ---- the whole way


def test_a_record_can_be_followed_from_its_producer_to_its_commit(stream: type_stream, seen: Seen):
    record = produced(text(7, "secret words", key=b"secret key"), PRODUCER)
    running = stream([record], trace=seen.reader()).start()
    running.wait_committed(1)
    running.finish()

    root = seen.one("process documents")
    assert root.kind is SpanKind.CONSUMER and root.parent is None
    assert [(link.context.trace_id, link.context.span_id) for link in root.links] == [
        (0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331)
    ]
    assert dict(root.attributes or {}) | {"stream_embedder.age_s": 0} == {
        "messaging.system": "kafka",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.consumer.group.name": "embedder",
        "messaging.client.id": "stream-embedder-0",
        "messaging.destination.name": "documents",
        "messaging.destination.partition.id": "0",
        "messaging.batch.message_count": 1,
        "stream_embedder.offset.first": 7,
        "stream_embedder.offset.last": 7,
        "stream_embedder.age_s": 0,
    }
    phases = seen.below(root)
    assert set(phases) == {"prepare", "pack", "encode", "commit documents"}
    order = [phases[name] for name in ("prepare", "encode", "commit documents")]
    assert all(before.end_time <= after.start_time for before, after in itertools.pairwise(order))
    assert all(root.start_time <= span.start_time and span.end_time <= root.end_time for span in phases.values())
    assert phases["pack"].end_time <= phases["encode"].end_time
    call = seen.below(phases["encode"])["call encoder"]
    assert call.kind is SpanKind.CLIENT and said(call, "stream_embedder.tokens") == len("secret words")
    steps = seen.below(phases["commit documents"])
    assert list(steps) == ["render", "send", "membership", "offsets"]
    assert all(step.end_time <= phases["commit documents"].end_time for step in steps.values())
    assert said(steps["send"], "messaging.batch.message_count") == 1
    assert said(phases["commit documents"], "stream_embedder.offset.next") == 8
    assert {span.status.status_code for span in seen.all()} == {StatusCode.UNSET}
    assert "secret" not in "".join(span.to_json() for span in seen.all())


def test_the_resource_says_who_it_is_unless_the_environment_does(seen: Seen, monkeypatch: pytest.MonkeyPatch):
    found = seen.spans.provider.resource.attributes
    assert (found["service.name"], found["stream_embedder.actor"]) == ("stream-embedder", "reader")
    assert found["service.instance.id"] and found["service.version"]
    monkeypatch.setenv("OTEL_SERVICE_NAME", "vectors")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.version=9,deployment.environment.name=test")
    found = Spans("encoder", metrics.Metrics()).provider.resource.attributes
    assert (found["service.name"], found["service.version"]) == ("vectors", "9")
    assert (found["deployment.environment.name"], found["stream_embedder.actor"]) == ("test", "encoder")


def test_records_that_need_no_encoder_have_no_time_with_one(stream: type_stream, seen: Seen):
    running = stream([text(0, "decode!")], trace=seen.reader()).start()
    running.wait_committed(1)
    running.finish()
    assert running.letters() == [("decode", "invalid")]
    assert set(seen.below(seen.one("process documents"))) == {"prepare", "commit documents"}


def test_every_batch_of_a_long_stream_has_its_trace_and_none_is_left(stream: type_stream, seen: Seen):
    trace = seen.reader()
    records = [each for pair in zip(texts(150, 0), texts(150, 1), strict=True) for each in pair]
    running = stream(records, trace=trace).start()
    running.wait_committed(300)
    running.finish()
    roots = seen.all("process documents")
    assert Counter(said(root, "messaging.destination.partition.id") for root in roots) == {"0": 150, "1": 150}
    assert all({"prepare", "pack", "encode", "commit documents"} == set(seen.below(root)) for root in roots)
    assert not any(said(root, "stream_embedder.given_up") for root in roots)
    assert (trace._count, trace._open, trace._calls) == (0, {}, {})


def test_what_serves_two_batches_is_in_the_first_ones_trace_and_linked_to_the_other(seen: Seen):
    trace = seen.reader()
    zero, one = texts(2, 0), texts(2, 1)
    trace.received([zero, one])
    for batch in (zero, one):
        with trace.preparing(batch) as ready:
            ready(2)
    call = trace.sent([zero, one], Batch.of([np.arange(3, dtype=np.int32)] * 2))
    assert call.trace is not None
    trace.retried(call, "died")
    trace.answered(call, None)
    with trace.commit() as told:
        told.begin([_prefix(zero), _prefix(one)])
        told.step("render")
        told.done()
    for partition in (P0, P1):
        trace.committed(partition, 1, 2)

    first, other = seen.all("process documents")
    assert said(first, "messaging.destination.partition.id") == "0"
    encode, others = seen.below(first)["encode"], seen.below(other)["encode"]
    sent = seen.one("call encoder")
    assert sent.parent is not None and sent.parent.span_id == _id(encode)
    assert (linked(sent), linked(others)) == ([_id(others)], [_id(sent)])
    assert [(event.name, dict(event.attributes or {})) for event in sent.events] == [("retry", {"cause": "died"})]
    commit, follows = seen.below(first)["commit documents"], seen.below(other)["commit documents"]
    assert set(seen.below(commit)) == {"render"} and seen.below(follows) == {}
    assert (linked(commit), linked(follows)) == ([_id(follows)], [_id(commit)])
    assert said(commit, "stream_embedder.batches") == 2


def _prefix(records: Sequence[Record], below: int | None = None) -> object:
    from workers.offsets import Prefix

    origin = records[0].origin
    end = records[-1].origin.offset + 1 if below is None else below
    return Prefix(origin.topic_partition, origin.epoch, (), end, {})


def test_a_batch_that_is_committed_in_two_parts_ends_with_the_second(seen: Seen):
    trace, records = seen.reader(), texts(4)
    trace.received([records])
    for below in (2, 4):
        with trace.commit() as told:
            told.begin([_prefix(records, below)])
            told.done()
        assert not seen.all("process documents")
        trace.committed(P0, 1, below)
    assert [said(span, "stream_embedder.offset.next") for span in seen.all("commit documents")] == [2, 4]
    assert seen.one("process documents")


def test_a_commit_has_the_batches_that_it_holds_records_of_and_no_other(seen: Seen):
    trace = seen.reader()
    trace.received([texts(2), texts(2, start=2)])
    with trace.commit() as told:
        told.begin([_prefix(texts(2))])
        told.done()
    trace.committed(P0, 1, 2)
    assert len(seen.all("commit documents")) == len(seen.all("process documents")) == 1
    trace.close()


# ---- producers


def test_links_go_to_the_producers_that_somebody_keeps_each_once(seen: Seen):
    trace = seen.reader()
    other, unkept = PRODUCER.replace(b"b7ad", b"b7ae"), PRODUCER[:-2] + b"00"
    parents = [PRODUCER, other, PRODUCER, unkept, b"nonsense", b""]
    records = [produced(record, each) for record, each in zip(texts(6), parents, strict=True)]
    trace.received([records])
    for _ in range(2):  # decoding had to wait, and is done again
        with trace.preparing(records):
            pass
    trace.committed(P0, 1, 6)
    assert linked(seen.one("process documents")) == [0xB7AD6B7169203331, 0xB7AE6B7169203331]
    assert len(seen.all("prepare")) == 2


def test_a_batch_holds_nothing_of_attempts_that_are_over(seen: Seen):
    trace, records = seen.reader(), texts(1)
    trace.received([records])
    for _ in range(50):
        with pytest.raises(RetryableError), trace.commit() as told:
            told.begin([_prefix(records)])
            raise RetryableError("not now")
    (batch,) = trace._batches(P0)
    assert len(batch._children) == 1
    trace.close()


def test_links_have_the_bound_that_the_environment_gives_them(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OTEL_SPAN_LINK_COUNT_LIMIT", "3")
    seen = Seen(Spans("reader", metrics.Metrics()))
    trace = seen.reader()
    records = [produced(each, b"00-%032x-%016x-01" % (n + 1, n + 1)) for n, each in enumerate(texts(5))]
    trace.received([records])
    with trace.preparing(records):
        pass
    trace.committed(P0, 1, 5)
    root = seen.one("process documents")
    assert linked(root) == [1, 2, 3]
    assert said(root, "stream_embedder.links_left_out") == 2
    assert Spans("reader", metrics.Metrics()).most_links == 3


def test_an_output_record_names_its_batch_where_its_source_names_nobody(stream: type_stream, seen: Seen):
    running = stream([text(0, "without"), produced(text(1, "with"), PRODUCER), text(2, "decode!")], trace=seen.reader())
    running.start().wait_committed(3)
    running.finish()
    by_value = {message.value: message for message in running.sink.committed}
    first = min(seen.all("process documents"), key=lambda root: said(root, "stream_embedder.offset.first"))
    assert first.context is not None
    name, value = by_value[b"without"].headers[-1]
    assert (name, value) == ("traceparent", parent.write(first.context).encode())
    (dead,) = (message for message in running.sink.committed if message.topic == DEAD)
    assert "traceparent" not in dict(dead.headers), "a dead letter is its record, byte for byte"


def test_a_header_of_the_sources_stays_as_it_is(seen: Seen):
    from tests.fakes import FakeRenderer
    from workers.otel.carrying import Carrying
    from workers.records import Document, Embedding

    class Keeping(FakeRenderer):
        def render(self, record: Record, *rest: object) -> Message:
            return replace(super().render(record, *rest), headers=record.headers)  # type: ignore[arg-type]

    trace = seen.reader()
    record = produced(text(0, "with"), b"what the user likes")
    trace.received([[record]])
    vector = np.ones(8, np.float32)
    embedding = Embedding(Document("id", "with"), vector, 1, False)
    carrying = Carrying(Keeping(OUT), trace, lambda _: None)
    assert carrying.render(record, embedding, vector).headers == record.headers
    assert trace.parent(record.origin) is not None
    trace.close()


def test_no_record_is_refused_for_its_trace(stream: type_stream, seen: Seen):
    """Of the fewest bytes that the record takes without, none is left for a header."""
    least = Message(OUT, b"key", b"a", (), 0).size
    sink: Callable[[Group], FakeSink] = lambda group: FakeSink(group, max_bytes={OUT: least})  # noqa: E731
    running = stream([text(0, "a")], sink=sink, trace=seen.reader()).start()
    running.wait_committed(1)
    running.finish()
    (message,) = running.sink.committed
    assert (message.topic, message.headers) == (OUT, ())


@pytest.mark.parametrize(
    "value",
    [
        PRODUCER[:-2] + b"00",
        PRODUCER[:-1],
        PRODUCER + b"-more",
        b"ff" + PRODUCER[2:],
        PRODUCER.upper(),
        b"00-" + b"0" * 32 + PRODUCER[35:],
        PRODUCER[:36] + b"0" * 16 + b"-01",
        PRODUCER + b"\n",
        b"01" + PRODUCER[2:] + b"more",
        b"",
    ],
)
def test_a_header_that_names_no_span_that_is_kept_is_passed_over(value: bytes):
    assert parent.read(value) is None


@given(trace=st.integers(1, (1 << 128) - 1), span=st.integers(1, (1 << 64) - 1))
def test_what_is_written_is_read(trace: int, span: int):
    written = parent.write(SpanContext(trace, span, False, TraceFlags(1)))
    found, later = parent.read(written.encode()), parent.read(b"01" + written[2:].encode() + b"-what comes later")
    assert found is not None and later is not None
    assert (
        (found.trace_id, found.span_id, found.is_remote) == (trace, span, True) == (later.trace_id, later.span_id, True)
    )


# ---- what goes wrong


def test_a_commit_that_fails_says_so_and_the_next_one_ends_the_trace(stream: type_stream, seen: Seen):
    running = stream(
        [text(0, "secret")], sink=lambda group: FakeSink(group, writes=["fail", "ok"]), trace=seen.reader()
    )
    running.start().wait_committed(1)
    running.finish()
    first, second = seen.all("commit documents")
    assert (first.status.status_code, said(first, "error.type")) == (StatusCode.ERROR, "RetryableError")
    assert seen.below(first)["send"].status.status_code is StatusCode.ERROR
    assert second.status.status_code is StatusCode.UNSET
    assert first.parent == second.parent and first.status.description is None
    assert seen.one("process documents").status.status_code is StatusCode.UNSET


def test_a_commit_that_had_happened_ends_the_trace_too(stream: type_stream, seen: Seen):
    sink: Callable[[Group], FakeSink] = lambda group: FakeSink(group, commits=["happened", "ok"])  # noqa: E731
    running = stream([text(0, "a")], sink=sink, trace=seen.reader()).start()
    running.wait(lambda: bool(seen.all("process documents")))
    running.finish()
    assert seen.one("commit documents").status.status_code is StatusCode.ERROR
    assert said(seen.one("process documents"), "stream_embedder.given_up") is None


def test_partitions_that_go_end_their_traces_and_say_why(stream: type_stream, seen: Seen):
    hold = Pause()

    def encode(batch: Batch) -> type_vectors:
        hold.go.wait(10)
        return fake_encode(batch)

    steps = [text(0, "a"), Rebalance([P0], back=True, lost=True)]
    running = stream(steps, encode=encode, trace=seen.reader()).start()
    running.wait(lambda: len(seen.all("process documents")) == 1)
    hold.go.set()
    running.wait_committed(1)
    running.finish()
    gone, again = seen.all("process documents")
    assert (said(gone, "stream_embedder.given_up"), said(again, "stream_embedder.given_up")) == ("lost", None)
    assert "commit documents" in seen.below(again) and "commit documents" not in seen.below(gone)


def test_a_call_that_is_sent_again_says_why(stream: type_stream, seen: Seen):
    attempts = iter([True, False])

    def encode(batch: Batch) -> type_vectors:
        if next(attempts):
            raise RuntimeError("secret")
        return fake_encode(batch)

    running = stream([text(0, "a")], encode=encode, trace=seen.reader()).start()
    running.wait_committed(1)
    running.finish()
    (event,) = seen.one("call encoder").events
    assert (event.name, dict(event.attributes or {})) == ("retry", {"cause": "raised"})


def test_a_text_of_an_assignment_that_has_ended_is_no_part_of_the_next_one(seen: Seen):
    trace, call = seen.reader(), Batch.of([np.arange(3, dtype=np.int32)])
    old = texts(1)
    trace.received([old])
    trace.given_up([P0], "revoked")
    again = [replace(each, origin=replace(each.origin, epoch=2)) for each in old]
    trace.received([again])
    assert trace.sent([old], call) is call and trace.parent(old[0].origin) is None
    assert trace.sent([again], call) is not call and trace.parent(again[0].origin) is not None
    trace.close()


def test_what_is_open_at_the_end_is_told(stream: type_stream, seen: Seen):
    running = stream([text(0, "a")], sink=lambda group: FakeSink(group, writes=["fail"]), trace=seen.reader()).start()
    running.wait(lambda: bool(seen.all("commit documents")))
    running.reader.stop()
    assert running.ended()
    assert said(seen.one("process documents"), "stream_embedder.given_up") == "ended"


def test_decoding_that_has_to_wait_is_seen(seen: Seen):
    trace, records = seen.reader(), texts(1)
    trace.received([records])
    with pytest.raises(RetryableError), trace.preparing(records):
        raise RetryableError("a registry is away")
    assert said(seen.one("prepare"), "error.type") == "RetryableError"
    trace.close()


def test_no_more_batches_have_spans_than_memory_has_room_for(seen: Seen, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(rooms, "MOST_OPEN", 3)
    trace, records = seen.reader(), texts(5)
    trace.received([record] for record in records)
    trace.committed(P0, 1, 1)
    trace.received([[text(5, "five")]])
    trace.committed(P0, 1, 6)
    assert [said(root, "stream_embedder.offset.first") for root in seen.all("process documents")] == [0, 1, 2, 5]


def test_what_is_told_of_batches_without_a_trace_is_nothing(seen: Seen):
    trace, records = seen.reader(), texts(2)
    call = Batch.of([np.arange(3, dtype=np.int32)])
    trace.received([[text(9, "nine", 1)]])
    assert trace.sent([records], call) is call
    trace.answered(call, None)
    trace.retried(call, "died")
    with trace.preparing(records) as ready, trace.putting("lake", P0, 0, 2), trace.commit() as told:
        ready(2)
        told.begin([_prefix(records)])
        told.step("render")
        told.done()
    trace.committed(P0, 1, 2)
    trace.given_up([P0], "lost")
    assert trace.parent(records[0].origin) is None
    assert seen.all() == []
    trace.close()


def test_batches_that_the_sampler_leaves_out_are_not_traced(stream: type_stream, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_traceidratio")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0.0")
    seen, calls = Seen(Spans("reader", metrics.Metrics())), []

    def encode(batch: Batch) -> type_vectors:
        calls.append(batch.trace)
        return fake_encode(batch)

    running = stream(texts(20), encode=encode, trace=seen.reader()).start()
    running.wait_committed(20)
    running.finish()
    assert seen.all() == [] and set(calls) == {None}
    assert all("traceparent" not in dict(message.headers) for message in running.sink.committed)


# ---- files


def test_a_file_is_in_the_trace_of_its_first_batch_and_linked_to_the_others(seen: Seen):
    trace = seen.reader(files=True)
    trace.received([texts(2), texts(2, start=2), texts(2, start=4)])
    trace.committed(P0, 1, 6)
    roots = seen.all("process documents")
    with trace.putting("parquet:lake", P0, 1, 4):
        pass
    with pytest.raises(EnvironmentFault), trace.putting("parquet:lake", P0, 4, 6):
        raise EnvironmentFault("the store is away")
    put, refused = seen.all("put file")
    assert put.parent is not None and put.parent.span_id == _id(roots[0])
    assert linked(put) == [_id(roots[1])]
    assert (said(put, "stream_embedder.offset.first"), said(put, "stream_embedder.offset.next")) == (1, 4)
    assert (refused.status.status_code, said(refused, "error.type")) == (StatusCode.ERROR, "EnvironmentFault")
    trace.given_up([P0], "revoked")
    with trace.putting("parquet:lake", P0, 4, 6):
        pass
    assert len(seen.all("put file")) == 2


def test_the_files_of_a_reader_are_in_its_traces(seen: Seen, tmp_path: Path):
    from tests.unit.test_reader_files import RENDERER, Lake
    from workers.sinks.files import FileOutput

    class Traced(Lake):
        def _output(self, name, chain, meter):  # type: ignore[no-untyped-def]
            return FileOutput(
                name, f"{name}#f", chain, RENDERER, self.rotation, most_bytes=1 << 20, meter=meter, trace=trace
            )

    trace = seen.reader(files=True)
    lake = Traced(tmp_path, rows=10)
    running = lake.stream(texts(20), trace=trace).start()
    running.wait_committed(20)
    running.finish()  # which puts the rows that have not filled a file
    assert lake.group.positions[P0].offset == 20
    roots = {_id(root) for root in seen.all("process documents")}
    puts = seen.all("put file")
    assert sum(1 + len(put.links) for put in puts) >= len(roots) == 20, "no row is in a file that is not traced"
    assert all(put.parent is not None and put.parent.span_id in roots for put in puts)


# ---- the replica


def test_a_replica_goes_on_with_the_call_of_the_reader(seen: Seen):
    replica = Replica(seen.spans)
    call = replace(Batch.of([np.arange(3, dtype=np.int32)] * 2), trace=PRODUCER.decode())
    work = replica.timed(call, lambda: 42)
    time.sleep(0.001)
    assert work() == 42
    served = seen.one("encoder")
    assert served.parent is not None and served.parent.span_id == 0xB7AD6B7169203331
    assert (said(served, "stream_embedder.texts"), said(served, "stream_embedder.tokens")) == (2, 6)
    parts = seen.below(served)
    assert list(parts) == ["queue", "compute"] and parts["queue"].end_time <= parts["compute"].start_time
    with pytest.raises(ZeroDivisionError):
        replica.timed(call, lambda: 1 / 0)()
    assert seen.all("encoder")[-1].status.status_code is StatusCode.ERROR

    def untouched() -> int:
        return 1

    assert replica.timed(replace(call, trace=None), untouched) is untouched
    assert ReplicaTrace().timed(call, untouched) is untouched


def test_a_part_of_a_call_is_in_the_calls_trace():
    call = replace(Batch.of([np.arange(3, dtype=np.int32)] * 2), trace="somewhere")
    assert (call.slice(0, 1).trace, call.slice(1, 2).trace) == ("somewhere", "somewhere")


# ---- off, on, and not to be had


def test_where_traces_are_off_nothing_is_imported():
    code = (
        "import sys, pipelines.assemble, workers.otel\n"
        "from workers.settings import Settings\n"
        "from workers import metrics, trace\n"
        "assert workers.otel.reader_trace(Settings(), 'r', metrics.Metrics()) is trace.UNTRACED\n"
        "assert type(workers.otel.replica_trace(Settings(), metrics.Metrics())) is trace.ReplicaTrace\n"
        "sys.exit(sorted(name for name in sys.modules if name.startswith('opentelemetry')) != [])"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_what_a_reader_tells_where_nobody_listens_changes_nothing():
    call, records = Batch.of([np.arange(3, dtype=np.int32)]), texts(1)
    assert UNTRACED.sent([records], call) is call
    with UNTRACED.preparing(records) as ready, UNTRACED.putting("lake", P0, 0, 1), UNTRACED.commit() as told:
        ready(1)
        told.begin([])
        told.step("render")
        told.done()
    with pytest.raises(ZeroDivisionError), UNTRACED.commit():
        raise ZeroDivisionError
    assert UNTRACED.parent(records[0].origin) is None


def test_missing_libraries_are_one_sentence(monkeypatch: pytest.MonkeyPatch):
    for name in [name for name in sys.modules if name.startswith("workers.otel.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(EnvironmentFault, match=r"telemetry\.traces needs OpenTelemetry's SDK.*pip install"):
        otel.reader_trace(ON, "r", metrics.Metrics())
    (finding,) = examine_traces(ON)
    assert finding.wrong is not None and not finding.may_never_happen
    assert "\n" not in finding.wrong


@pytest.mark.parametrize(
    ("environ", "sentence"),
    [
        (
            {"OTEL_TRACES_EXPORTER": "zipkin"},
            r"needs OTEL_TRACES_EXPORTER: zipkin, which is not installed: pip install op",
        ),
        (
            {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
            r"OTLP over grpc, which is not installed: pip install opentelemetry-exporter-otlp-proto-grpc, or turn",
        ),
        (
            {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/json"},
            r"PROTOCOL is http/json, and is one of http/protobuf, grpc",
        ),
    ],
)
def test_an_exporter_that_there_is_not_is_one_sentence(
    environ: dict[str, str], sentence: str, monkeypatch: pytest.MonkeyPatch
):
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(EnvironmentFault, match=sentence):
        otel.replica_trace(ON, metrics.Metrics())
    (finding,) = examine_traces(ON)
    assert finding.wrong is not None and not finding.may_never_happen


def test_check_says_nothing_of_traces_that_are_off():
    assert list(examine_traces(Settings())) == []


def away(monkeypatch: pytest.MonkeyPatch) -> str:
    """An endpoint at which nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "otlp")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
    return f"http://127.0.0.1:{port}/v1/traces"


def test_a_collector_takes_what_has_ended(monkeypatch: pytest.MonkeyPatch):
    with collector() as (found, endpoint):
        monkeypatch.setenv("OTEL_TRACES_EXPORTER", "otlp")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
        (finding,) = examine_traces(ON)
        assert finding.wrong is None and found.requests == 1
        meter = metrics.Metrics()
        trace = otel.reader_trace(ON, "stream-embedder-0", meter)
        record = produced(text(3, "secret", key=b"secret"), PRODUCER)
        trace.received([[record]])
        with trace.preparing([record]):
            pass
        trace.close()
        (root,), (child,) = found.spans("process documents"), found.spans("prepare")
        assert (child.trace, child.parent, root.parent) == (root.trace, root.id, "")
        assert root.links == [("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331")]
        assert (root.resource["service.name"], root.resource["stream_embedder.actor"]) == ("stream-embedder", "reader")
        assert root.attributes["stream_embedder.given_up"] == "ended"
        assert b"secret" not in found.raw
        assert meter.value(metrics.SPANS_LOST) == 0

        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", f"{endpoint}/elsewhere")
        (finding,) = examine_traces(ON)
        assert finding.may_never_happen and "/elsewhere: Failed to export spans batch code: 404" in (
            finding.wrong or ""
        )


def test_a_collector_that_is_away_is_a_warning(monkeypatch: pytest.MonkeyPatch):
    endpoint = away(monkeypatch)
    (finding,) = examine_traces(ON)
    assert finding.may_never_happen and finding.wrong is not None
    assert finding.wrong.startswith(f"no spans are taken at {endpoint}: ")


def test_spans_that_no_collector_takes_are_counted_and_complained_of_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    away(monkeypatch)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.1")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
    meter = metrics.Metrics()
    spans = Spans("reader", meter)
    for count in (1, 2):
        spans.tracer.start_span("lost").end()
        deadline = time.monotonic() + 10
        while meter.value(metrics.SPANS_LOST) < count:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    spans.close()
    complaints = [record.getMessage() for record in caplog.records if record.name == "stream_embedder.otel.provider"]
    assert complaints and len(set(complaints)) == len(complaints), "each is said once"
    assert all(complaint.startswith("traces said=") for complaint in complaints)


def test_the_end_waits_for_no_collector(monkeypatch: pytest.MonkeyPatch):
    with socket.socket() as deaf:  # it takes connections, and never answers
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        monkeypatch.setenv("OTEL_TRACES_EXPORTER", "otlp")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{deaf.getsockname()[1]}")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
        monkeypatch.setattr("workers.otel.provider.CLOSE_S", 0.05)
        before = set(threading.enumerate())
        spans = Spans("reader", metrics.Metrics())
        spans.tracer.start_span("left").end()
        began = time.monotonic()
        spans.close()
        assert time.monotonic() - began < 5
    # They go on for a while, and would draw random numbers beside the next tests.
    for thread in set(threading.enumerate()) - before:
        thread.join(15)
        assert not thread.is_alive(), thread.name
