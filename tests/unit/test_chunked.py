"""Records in chunks on their way: gathered, committed together, written one record each."""

from __future__ import annotations

import io
import itertools
import json
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import fastavro
import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import calibrate
from pipelines.batch.columns import Encode
from pipelines.check_chunks import examine_chunks
from pipelines.encode import run_encode
from pipelines.fit import against_model
from pipelines.model import Model
from pipelines.report import sample as report
from pipelines.texts import Text
from tests.batch_job import Job, vector_of
from tests.fakes import DIM, FakeChunker, FakeSink, Pause, Rebalance, fake_encode, fake_vector, record
from tests.unit.test_checkpoint import DEAD, OUT, P0, Bench, opened
from tests.unit.test_reader import WAIT_S, Stream, stream, type_stream
from workers import flow, intake, metrics
from workers.codecs import renderer_for, rows_for
from workers.codecs.avro_record import AvroRenderer
from workers.codecs.parquet_rows import stored_rows
from workers.codecs.stored import StoredReader
from workers.encoder.layout import Layout, resolve
from workers.errors import PoisonError, SettingsError
from workers.gathering import Gathering
from workers.kafka_topics import Topic
from workers.offsets import OffsetLedger
from workers.records import (
    Batch,
    Chunk,
    Chunked,
    DeadLetter,
    Document,
    Embedding,
    Message,
    Origin,
    Outcome,
    Position,
    Record,
    Tokens,
    TopicPartition,
    chunk_key,
    type_vectors,
)
from workers.settings import KafkaOutput, ParquetOutput, Settings
from workers.window import WaitingText

__all__ = ["stream"]  # a fixture

TEXT = "one two three"
CHUNKED = {"model": {"overflow": "chunk"}}
REFUSED = DeadLetter("encode", "not_finite", "no")


def spans(count: int, width: int = 2) -> list[Chunk]:
    return [Chunk(index, count, index * width, (index + 1) * width) for index in range(count)]


def waiting(offset: int, count: int, epoch: int = 1, partition: int = 0) -> list[WaitingText]:
    origin = Origin("documents", partition, offset, epoch)
    document, tokens = Document(str(offset), "x" * 2 * count), Tokens(np.ones(2, np.int32), 2)
    return [WaitingText(origin, document, tokens, chunk) for chunk in spans(count)]


def embedded(text: WaitingText) -> Embedding:
    vector = np.full(DIM, text.chunk.index if text.chunk else -1, np.float32)
    return Embedding(text.document, vector, len(text.tokens.ids), False, text.chunk)


def chunked(name: str, count: int = 3, vector: type_vectors | None = None) -> Chunked:
    document = Document(name, "ab" * count)
    vectors = [fake_vector(f"{name}{n}") if vector is None else vector for n in range(count)]
    return Chunked(tuple(Embedding(document, vectors[n], 2, False, chunk) for n, chunk in enumerate(spans(count))))


# ---- gathering


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_each_record_has_one_outcome_when_its_last_chunk_has_come(data):
    counts = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=6))
    records = [waiting(offset, count) for offset, count in enumerate(counts)]
    gathering = Gathering()
    gathering.expect(text for texts in records for text in texts)
    coming = data.draw(st.permutations([text for texts in records for text in texts]))
    refused = set(data.draw(st.lists(st.integers(0, len(coming) - 1), max_size=3)))
    outcomes: dict[int, Outcome] = {}
    come: Counter[int] = Counter()
    for number, text in enumerate(coming):
        come[text.origin.offset] += 1
        for origin, outcome in gathering.whole([(text, REFUSED if number in refused else embedded(text))]):
            assert origin.offset not in outcomes
            outcomes[origin.offset] = outcome
            assert isinstance(outcome, DeadLetter) or come[origin.offset] == counts[origin.offset]
    assert not gathering and len(outcomes) == len(counts)
    lost = {coming[number].origin.offset for number in refused}
    for offset, outcome in outcomes.items():
        assert isinstance(outcome, DeadLetter) == (offset in lost)
        if isinstance(outcome, Chunked):
            assert [part.chunk for part in outcome.parts] == spans(counts[offset])
            assert [part.vector[0] for part in outcome.parts] == list(range(counts[offset]))
        else:
            assert outcome.message.startswith("chunk ")


def test_what_has_come_goes_with_its_assignment_and_what_comes_later_is_dropped():
    old, other = waiting(0, 3, epoch=1), waiting(5, 2, partition=1)
    gathering = Gathering()
    gathering.expect([*old, *other])
    gathering.whole([(old[0], embedded(old[0])), (other[0], embedded(other[0]))])
    gathering.keep({TopicPartition("documents", 0): 2, TopicPartition("documents", 1): 1})
    assert len(gathering) == 1
    again = waiting(0, 3, epoch=2)
    gathering.expect(again)
    late = [(text, embedded(text)) for text in (old[1], *again, old[2])]
    ((origin, outcome),) = gathering.whole(late)
    assert origin.epoch == 2 and isinstance(outcome, Chunked)
    gathering.give_up(other)
    assert len(gathering) == 0 and gathering.whole([(other[1], embedded(other[1]))]) == []


def test_a_text_that_is_no_chunk_is_its_record():
    (text,) = waiting(0, 1)
    text = replace(text, chunk=None)
    gathering = Gathering()
    gathering.expect([text])
    assert gathering.whole([(text, REFUSED)]) == [(text.origin, REFUSED)]


# ---- the reader


def sent(running: Stream, topic: str = OUT) -> list[tuple[bytes | None, int | None]]:
    return [(message.key, message.partition) for message in running.sink.committed if message.topic == topic]


def of_length(offset: int, length: int, mark: str = "t", partition: int = 0) -> Record:
    text = f"{mark}{offset:03}".ljust(length, "x")
    return record(offset, text.encode(), partition=partition, key=b"%d" % offset)


def test_all_chunks_of_a_record_leave_in_order_and_between_its_neighbours(stream: type_stream):
    lengths = [4, 35, 10, 11, 64, 5, 1_000]
    records = [of_length(n, lengths[n % 7]) for n in range(70)]
    running = stream(records, most_tokens=10, chunks=True).start()
    counts = [-(-len(each.value or b"") // 10) for each in records]
    running.wait_committed(sum(counts))
    running.finish()
    expected = [(b"%d#%d" % (n, index), 0) for n, count in enumerate(counts) for index in range(count)]
    assert sent(running) == expected
    assert running.meter.value(metrics.RECORDS_COMMITTED, outcome="embedding") == 70
    assert running.meter.value(metrics.CHUNKS_COMMITTED) == sum(counts)
    assert running.meter.value(metrics.TOKENS_COMMITTED) == sum(len(each.value or b"") for each in records)
    # In no transaction there is a part of a record.
    for messages, positions in running.sink.transactions:
        seen = Counter(int((message.key or b"").split(b"#")[0]) for message in messages)
        assert all(count == counts[n] for n, count in seen.items())
        assert all(n < positions[P0].offset for n in seen)


def test_a_record_is_refused_for_one_of_its_chunks(stream: type_stream):
    def encode(batch: Batch) -> type_vectors:
        found = fake_encode(batch)
        found[[3 in ids for ids in np.split(batch.ids, np.cumsum(batch.lengths)[:-1])]] = np.nan
        return found

    records = [of_length(n, 40) for n in range(6)]
    records[2] = record(2, b"y" * 25 + b"\3" + b"y" * 20, key=b"2")
    records[4] = record(4, b"many!", key=b"4")
    running = stream(records, most_tokens=10, chunks=True, encode=encode).start()
    running.wait_committed(4 * 4 + 2)
    running.finish()
    assert Counter((key or b"").split(b"#")[0] for key, _ in sent(running)) == {b"0": 4, b"1": 4, b"3": 4, b"5": 4}
    assert running.letters() == [("encode", "not_finite"), ("tokenize", "too_many_chunks")]
    (letter, _) = [message for message in running.sink.committed if message.topic == DEAD]
    assert (letter.key, letter.value) == (b"2", records[2].value)
    assert b"chunk 3 of 5" in (dict(letter.headers)["embedding-error-message"] or b"")


def test_a_partition_that_goes_with_half_of_a_record_and_comes_back_has_each_chunk_once(stream: type_stream):
    """The first record's first call comes back last, into another assignment."""
    release, began = threading.Event(), threading.Event()
    calls = itertools.count()

    def encode(batch: Batch) -> type_vectors:
        if next(calls) == 0:
            began.set()
            assert release.wait(WAIT_S)
        return fake_encode(batch)

    records = [of_length(n, 120) for n in range(20)]
    pause = Pause()
    steps = [*records[:10], pause, Rebalance([P0], back=True), *records[10:]]
    running = stream(steps, most_tokens=10, chunks=True, encode=encode).start()
    assert began.wait(WAIT_S)
    pause.go.set()
    running.wait_committed(240)
    release.set()
    running.finish()
    assert sent(running) == [(b"%d#%d" % (n, index), 0) for n in range(20) for index in range(12)]
    assert len(running.reader._gathering) == 0


def test_a_drain_gives_up_records_that_were_sent_in_part(stream: type_stream):
    go, out = threading.Event(), threading.Event()

    def encode(batch: Batch) -> type_vectors:
        out.set()
        assert go.wait(WAIT_S)
        return fake_encode(batch)

    # No two chunks are alike, or one answer would do for several.
    records = [record(n, b"".join(b"%02d%08d" % (n, part) for part in range(60))) for n in range(20)]
    running = stream(records, most_tokens=10, chunks=True, encode=encode).start()
    assert out.wait(WAIT_S) and running.source.handed_over.wait(WAIT_S)
    running.wait(lambda: running.meter.value(metrics.CALLS_IN_FLIGHT) == 3)
    draining = threading.Thread(target=running.reader.drain, args=(5.0,))
    draining.start()
    running.wait(running.reader._draining.is_set)
    go.set()
    draining.join(WAIT_S)
    assert running.ended() and running.error is None
    assert sent(running) == [], "a record's first chunks alone are nothing"
    assert len(running.reader._gathering) == 0 and running.reader.left == 20


def test_long_records_are_prepared_few_at_a_time():
    held = [record(n, b"x" * size) for n, size in enumerate([1, 1_000, 1_000, 5, 5, 3_000])]
    assert [len(some) for some in intake._portions(held, 1_000)] == [1, 1, 1, 2, 1]
    assert [len(some) for some in intake._portions(held, None)] == [6]
    assert [len(some) for some in intake._portions([record(n) for n in range(600)], 1 << 20)] == [256, 256, 88]
    assert list(intake._portions([], None)) == []


def test_a_reader_that_cuts_texts_takes_few_at_a_time(stream: type_stream):
    for chunks, most in ((True, intake.CHUNK_BYTES), (False, None)):
        assert stream([], chunks=chunks).reader._intake._most_bytes == most


def test_many_tokens_of_few_records_show_how_fast_a_reader_is():
    meter = metrics.Metrics()
    counted = flow.Flow(meter)
    counted.prepared(1, flow.MANY_TOKENS - 1, 1.0)
    assert meter.value(metrics.PREPARED_AT_SPEED) == 0
    counted.prepared(1, flow.MANY_TOKENS, 1.0)
    assert meter.value(metrics.PREPARED_AT_SPEED) == flow.MANY_TOKENS


# ---- the ledger


def test_chunks_count_in_the_ledger_as_what_they_are():
    ledger = OffsetLedger()
    ledger.assign(P0, 1, Position(0))
    records = [record(n) for n in range(4)]
    for each in records:
        ledger.add(each)
    empty = ledger.bytes
    for each in records:
        ledger.settle(each.origin, chunked("a", 5))
    assert ledger.bytes > empty + 4 * 5 * DIM * 4
    assert ledger.ready(100) == 20 and ledger.ready(5) == 5
    (prefix,) = ledger.drain(8)
    assert len(prefix.settled) == 2
    ledger.release(prefix)
    (prefix,) = ledger.drain(100)
    ledger.release(prefix)
    assert (ledger.bytes, ledger.records) == (0, 0)


# ---- outlets


def test_chunks_are_written_with_their_keys_to_their_partition():
    bench = opened()
    bench.settle(0, chunked("a"), partition=1, key=b"k")
    bench.settle(1, chunked("b", 1), partition=1, key=None)
    bench.checkpoint.commit()
    assert [(message.key, message.value, message.partition) for message in bench.sink.committed] == [
        (b"k#0", b"a#0", 1),
        (b"k#1", b"a#1", 1),
        (b"k#2", b"a#2", 1),
        (b"b#0", b"b#0", 1),
    ]
    assert chunk_key(b"k", 12) == b"k#12"


def test_a_chunk_that_does_not_fit_makes_its_record_a_dead_letter():
    bench = opened(sink=lambda group: FakeSink(group, max_bytes={OUT: 600}))
    big = chunked("x" * 500, 3)
    small = chunked("a", 2)
    parts = (small.parts[0], replace(big.parts[1], chunk=Chunk(1, 2, 2, 4)))
    bench.settle(0, Chunked(parts), key=b"k")
    bench.settle(1, chunked("b", 2), key=b"l")
    bench.checkpoint.commit()
    assert bench.values() == [b"b#0", b"b#1"]
    assert [message.key for message in bench.sink.committed if message.topic == DEAD] == [b"k"]


def test_a_chunk_without_a_direction_refuses_its_record_for_all_outputs():
    flat = np.zeros(DIM, np.float32)
    flat[-1] = 1
    bench: Bench = opened(outputs=("narrow", OUT), dims=(2, DIM))
    whole = chunked("a", 2)
    bench.settle(0, Chunked((whole.parts[0], replace(whole.parts[1], vector=flat))))
    bench.settle(1, chunked("b", 2))
    bench.checkpoint.commit()
    assert bench.values("narrow") == bench.values() == [b"b#0", b"b#1"]
    assert len(bench.values(DEAD)) == 1


# ---- formats

SOURCE = Record(Origin("docs", 3, 7, 1), b"k", b"v", 12, (("embedding-chunk-index", b"9"), ("a", b"b")))


def parts_of_text() -> Sequence[Embedding]:
    document = Document("id", TEXT, {"title": "T"})
    vector = np.array([0.6, -0.8], np.float32)
    return [
        Embedding(document, vector, 3, False, Chunk(0, 2, 0, 7)),
        Embedding(document, vector, 2, False, Chunk(1, 2, 8, 13)),
    ]


def rendered(**output: Any) -> Message:
    given = {"topic": "vectors", **output}
    made = Settings(outputs=[given], registry={"url": "http://r"}, **CHUNKED).outputs[0]
    assert isinstance(made, KafkaOutput)
    renderer = renderer_for(made, dim=2, model="m", fingerprint="f", chunked=True, schema_id=lambda _: 7)
    second = parts_of_text()[1]
    message = renderer.render(SOURCE, second, second.vector)
    assert message.key == b"k#1"
    if isinstance(renderer, AvroRenderer):
        schema = fastavro.parse_schema(json.loads(renderer.schema.text))
        value = fastavro.schemaless_reader(io.BytesIO((message.value or b"")[5:]), schema, None)
        message = replace(message, value=json.dumps(value).encode())
    return message


@pytest.mark.parametrize("format", ["json", "avro"])
def test_a_chunk_in_json_and_avro(format: str):
    value = json.loads(rendered(format=format, include=["title"]).value or b"")
    assert list(value)[-4:] == ["tokens", "truncated", "chunk", "title"]
    assert (value["id"], value["chunk"]) == ("id#1", {"index": 1, "count": 2, "start": 8, "end": 13})
    value = json.loads(rendered(format=format, include=["title"], chunk_text=True).value or b"")
    assert list(value)[-3:] == ["chunk", "chunk_text", "title"]
    assert value["chunk_text"] == "three"


def test_a_chunk_in_headers():
    headers = dict(rendered(format="binary").headers)
    assert {name: value for name, value in headers.items() if "chunk" in name} == {
        "embedding-chunk-index": b"1",
        "embedding-chunk-count": b"2",
        "embedding-chunk-start": b"8",
        "embedding-chunk-end": b"13",
    }
    assert (headers["embedding-id"], headers["a"]) == (b"id#1", b"b")


def test_a_chunk_in_a_file_and_what_reads_it():
    output = ParquetOutput(kind="parquet", uri="file:///x", include=("title",), chunk_text=True)
    renderer = rows_for(output, dim=2, model="m", fingerprint="f", chunked=True)
    rows = [renderer.row(SOURCE, part, part.vector, None) for part in parts_of_text()]
    rows.append(renderer.deletion(replace(SOURCE, key=chunk_key(b"k", 2))))
    content = renderer.file([renderer.batch(rows)], {})
    found = pl.read_parquet(io.BytesIO(content)).to_dicts()
    names = ["id", "key", "chunk_index", "chunk_count", "chunk_start", "chunk_end", "chunk_text", "title"]
    assert [tuple(row[name] for name in names) for row in found] == [
        ("id#0", b"k#0", 0, 2, 0, 7, "one two", "T"),
        ("id#1", b"k#1", 1, 2, 8, 13, "three", "T"),
        ("k#2", b"k#2", None, None, None, None, None, None),
    ]
    (stored,) = stored_rows(content)
    assert [(one.key, one.id, dict(one.fields)) for one in stored[:2]] == [
        (b"k#0", "id#0", {"title": "T", "chunk_text": "one two"}),
        (b"k#1", "id#1", {"title": "T", "chunk_text": "three"}),
    ]
    plain = rows_for(ParquetOutput(kind="parquet", uri="file:///x"), dim=2, model="m", fingerprint="f")
    assert not [name for name in plain.schema.names if "chunk" in name]


def test_what_reads_records_knows_chunks():
    message = rendered(format="json", include=["title"], chunk_text=True)
    held = Record(Origin("vectors", 0, 0, 0), message.key, message.value, 0, message.headers)
    (found,) = StoredReader(Settings()).read(held)
    assert (found.key, found.id, found.fields) == (b"k#1", "id#1", {"title": "T", "chunk_text": "three"})


# ---- settings


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (
            {"model": {"chunk": {"tokens": 9}}},
            "chunk says how texts are cut, and overflow is truncate: set overflow: chunk",
        ),
        (
            {"model": {"overflow": "chunk", "chunk": {"tokens": 9, "overlap": 5}}},
            "overlap (5) is more than half of tokens (9)",
        ),
        (
            {"model": {"overflow": "chunk", "max_tokens": 8, "chunk": {"tokens": 9}}},
            "chunk.tokens (9) is larger than max_tokens (8)",
        ),
        (
            {"outputs": [{"topic": "v", "chunk_text": True}]},
            "outputs.0.chunk_text writes a chunk's text, and model.overflow is truncate",
        ),
        (
            {"outputs": [{"topic": "v", "chunk_text": True, "format": "binary"}], **CHUNKED},
            "chunk_text needs format: json or avro",
        ),
        (
            {"outputs": [{"topic": "v", "include": ["chunk"]}], **CHUNKED},
            "include names chunk, which the output record uses",
        ),
        (
            {"outputs": [{"kind": "parquet", "uri": "file:///v", "include": ["chunk_end"]}], **CHUNKED},
            "include names chunk_end, which the output record uses",
        ),
        (
            {
                "outputs": [{"topic": "v", "format": "avro", "include": ["chunk.text"]}],
                "registry": {"url": "http://r"},
                **CHUNKED,
            },
            "include chunk.text would be called chunk_text in Avro",
        ),
    ],
)
def test_settings_that_contradict_each_other(given: dict[str, Any], says: str):
    with pytest.raises(ValueError, match=r".") as caught:
        Settings(**given)
    assert says in str(caught.value)


def test_without_chunks_fields_may_be_called_as_theirs():
    Settings(outputs=[{"topic": "v", "include": ["chunk", "chunk_text"]}])


@pytest.mark.parametrize(
    ("chunk", "says"),
    [
        ({"tokens": 999}, "model.chunk.tokens (999) is larger than the 256 tokens that all-MiniLM-L6-v2 takes"),
        ({"overlap": 200}, "model.chunk.overlap (200) is more than half of the 256 tokens of a chunk"),
    ],
)
def test_chunks_that_the_model_contradicts(chunk: dict[str, int], says: str):
    layout = Layout.read(resolve("all-MiniLM-L6-v2"))
    with pytest.raises(SettingsError) as caught:
        against_model(Settings(model={"overflow": "chunk", "chunk": chunk}), layout)
    assert str(caught.value) == says


def test_all_that_says_where_texts_are_cut_is_part_of_the_fingerprint():
    def found(**model: Any) -> str:
        return Model.open(Settings(model=model)).fingerprint(8, "float32")

    def cut(**chunk: Any) -> str:
        return found(overflow="chunk", chunk=chunk)

    alike = {cut(), cut(tokens=256), cut(most=7), found(overflow="chunk", max_tokens=256)}
    assert len(alike) == 1
    others = {found(), cut(tokens=128), cut(overlap=8), cut(cut="word"), cut(tokens=128, overlap=8)}
    assert len(others) == 5 and not alike & others


def test_outputs_need_a_partition_for_each_of_the_source():
    def topic(name: str, partitions: int) -> Topic:
        return Topic(name, partitions, 1 << 20, False, 0, 0)

    given = Settings(source={"topics": ["a", "b"]}, outputs=[{"topic": "few"}, {"topic": "many"}], **CHUNKED)
    topics = {name: topic(name, count) for name, count in {"a": 1, "b": 4, "few": 3, "many": 5}.items()}
    (finding,) = examine_chunks(given, ["a", "b", "gone"], topics)
    assert finding.wrong is not None
    assert finding.wrong.startswith(
        "topic few has 3 partitions and b 4: chunks go to the partition number that their document has"
    )
    assert not list(examine_chunks(Settings(source={"topics": ["b"]}, outputs=[{"topic": "few"}]), ["b"], topics))


# ---- commands


def test_batch_writes_a_row_for_each_chunk(tmp_path: Path):
    output = {"kind": "parquet", "uri": f"file://{tmp_path}/vectors", "chunk_text": True}
    job = Job(tmp_path, outputs=[output], **CHUNKED)
    job.tokenizer = FakeChunker(10)
    long = "0123456789abcdefghijABCDE"
    job.texts(
        "a.jsonl", [{"id": "a", "text": long}, {"id": "b", "text": "short"}, {"id": "c", "text": "xxxxxxxxxxnan! x"}]
    )
    _, made, reasons = job.run()
    assert (made.rows, made.tokens, reasons) == (2, 30, {"encode/not_finite": 1})
    rows = job.rows()
    assert [(row["id"], row["chunk_index"], row["chunk_count"], row["chunk_text"]) for row in rows] == [
        ("a#0", 0, 3, "0123456789"),
        ("a#1", 1, 3, "abcdefghij"),
        ("a#2", 2, 3, "ABCDE"),
        ("b#0", 0, 1, "short"),
    ]
    for row in rows:
        assert row["embedding"] == pytest.approx(vector_of(row["chunk_text"]), abs=1e-6)
        assert (row["key"] or b"").decode() == row["id"]


def test_encode_prints_a_line_for_each_chunk():
    out = io.BytesIO()
    model = {"overflow": "chunk", "chunk": {"tokens": 32, "cut": "word"}}
    words = " ".join(f"word{n}" for n in range(40))
    code = run_encode(Settings(model=model), dim=8, precision="float32", texts=[words, "short"], lines=None, out=out)
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert code == 0 and len(lines) > 3
    assert [line["id"] for line in lines] == [*(f"1#{n}" for n in range(len(lines) - 1)), "2#0"]
    again = io.BytesIO()
    parts = [words[line["chunk"]["start"] : line["chunk"]["end"]] for line in lines[:-1]]
    run_encode(Settings(model={"max_tokens": 32}), dim=8, precision="float32", texts=parts, lines=None, out=again)
    for line, alone in zip(lines, map(json.loads, again.getvalue().splitlines()), strict=False):
        assert line["embedding"] == pytest.approx(alone["embedding"], abs=1e-5) and line["tokens"] == alone["tokens"]
    assert " ".join(parts) == words


def test_calibrate_and_report_take_each_chunk_for_a_text():
    class Embeds:
        def embed(self, window: Sequence[Text], dim: int) -> list[Any]:
            whole = Embedding(Document("b", "t"), fake_vector("b"), 9, True)
            return [chunked("a", 3), PoisonError("text", "empty", "no"), whole][: len(window)]

    texts = [Text(name, name) for name in "abc"]
    sample = calibrate._Sample(Embeds(), DIM)  # type: ignore[arg-type]
    (vectors,) = sample.vectors(texts)
    assert vectors.shape == (4, DIM) and (sample.count, sample.refused) == (4, 1)
    drawn = report.embed(Embeds(), texts, 3, DIM, lambda _: None)  # type: ignore[arg-type]
    assert (len(drawn.vectors), drawn.tokens, drawn.longest, drawn.truncated) == (4, 3 * 2 + 9, 9, 1)


def test_a_table_has_no_place_for_chunks():
    with pytest.raises(SettingsError, match="a table keeps one row for each"):
        Encode(model={"overflow": "chunk"})
