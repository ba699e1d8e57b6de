"""All chunks of a record in one output record, under its own key: written, read back, replaced and deleted."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import duckdb
import fastavro
import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest

from pipelines.assemble import _unwritten
from pipelines.check_chunks import examine_chunks
from pipelines.check_sizes import record_size
from pipelines.model import Model
from pipelines.search.ranking import Ranking
from tests.batch_job import Job, vector_of
from tests.fakes import DIM, FakeChunker, FakeRenderer, fake_vector, record
from tests.unit.test_state import DIGESTS, P0, known
from tests.unit.test_stored import Registry
from workers.codecs import rows_for, whole_for
from workers.codecs.avro_together import AvroTogether
from workers.codecs.fingerprint import fingerprint_of
from workers.codecs.parquet_rows import stored_rows
from workers.codecs.schemas import subject_of
from workers.codecs.stored import Space, Stored, StoredReader
from workers.encoder.quantize import Projection
from workers.errors import PoisonError, SettingsError
from workers.kafka_topics import Topic
from workers.offsets import Prefix
from workers.outlets import DeadLetterOutlet, FileOutlet, Outlet, Outlets
from workers.records import (
    Chunk,
    Chunked,
    DeadLetter,
    Document,
    Embedding,
    Message,
    Origin,
    Outcome,
    Record,
    Settled,
    Tombstone,
)
from workers.settings import KafkaOutput, ParquetOutput, Settings
from workers.sinks.files import FileOutput

TEXT = "one two three"
SOURCE = Record(Origin("docs", 3, 7, 1), b"k", b"v", 12, (("embedding-chunk-spans", b"9"), ("a", b"b")))
VECTORS = np.random.default_rng(3).normal(size=(2, 16)).astype(np.float32)
CHUNKED = {"model": {"overflow": "chunk"}}
PRECISIONS = ["float32", "float16", "int8", "ubinary"]


def parts(title: str = "T") -> list[Embedding]:
    document = Document("id", TEXT, {"title": title})
    chunks = (Chunk(0, 2, 0, 7), Chunk(1, 2, 8, 13))
    return [Embedding(document, VECTORS[n], 3 - n, False, chunk) for n, chunk in enumerate(chunks)]


def projected(precision: str) -> list[Any]:
    return list(Projection(16, precision)(VECTORS).rows())


def written(registry: Registry | None = None, held: Record = SOURCE, title: str = "T", **output: Any) -> Message:
    given = {"topic": "vectors", "chunks": "together", **output}
    made = Settings(outputs=[given], registry={"url": "http://r"}, **CHUNKED).outputs[0]
    assert isinstance(made, KafkaOutput)
    whole = whole_for(made, dim=16, model="m", fingerprint="f" * 16, schema_id=registry or Registry())
    assert whole is not None
    return whole.render_whole(held, parts(title), projected(made.precision))


def of(message: Message) -> Record:
    return Record(Origin("vectors", 0, 0, 0), message.key, message.value, 0, message.headers)


# ---- formats


@pytest.mark.parametrize("format", ["json", "avro"])
def test_an_object_has_a_list_of_chunks(format: str) -> None:
    registry = Registry()
    message = written(registry, format=format, include=["title"], chunk_text=True, precision="int8")
    assert (message.key, message.partition, message.timestamp_ms) == (b"k", None, 12)
    value: Any
    if format == "avro":
        schema = fastavro.parse_schema(json.loads(registry.schemas[7].text))
        value = fastavro.schemaless_reader(io.BytesIO((message.value or b"")[5:]), schema, None)
    else:
        value = json.loads(message.value or b"")
    (first, one), (second, two) = projected("int8")
    for chunk, scale in zip(value["chunks"], (one, two), strict=True):
        assert np.float32(chunk.pop("scale")) == scale
    assert value["chunks"] == [
        {"index": 0, "embedding": first.tolist(), "tokens": 3, "start": 0, "end": 7, "text": "one two"},
        {"index": 1, "embedding": second.tolist(), "tokens": 2, "start": 8, "end": 13, "text": "three"},
    ]
    del value["chunks"]
    assert value == {
        "id": "id",
        "dim": 16,
        "precision": "int8",
        "model": "m",
        "fingerprint": "f" * 16,
        "tokens": 5,
        "truncated": False,
        "title": "T",
    }


def test_bytes_are_the_vectors_one_after_another() -> None:
    message = written(format="binary", precision="int8")
    headers = dict(message.headers)
    (first, one), (second, two) = projected("int8")
    assert message.value == first.tobytes() + second.tobytes()
    assert [np.float32(scale) for scale in (headers["embedding-scale"] or b"").split(b",")] == [one, two]
    assert [headers[f"embedding-{name}"] for name in ("id", "chunk-count", "chunk-spans", "tokens", "dim")] == [
        *(b"id", b"2", b"0-7,8-13", b"5", b"16")
    ]
    assert headers["a"] == b"b" and len(headers) == len(message.headers), "none of ours stands there twice"


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("format", ["json", "binary", "avro"])
def test_what_reads_outputs_reads_each_chunk(format: str, precision: str) -> None:
    registry, fields = Registry(), {} if format == "binary" else {"include": ["title"], "chunk_text": True}
    message = written(registry, format=format, precision=precision, **fields)
    if format == "avro":
        assert "chunks" in registry.schemas[7].text
    found = StoredReader(Settings(), registry).read(of(message))
    space = Space("m", "f" * 16, 16, precision)
    assert [(one.key, one.id, one.space, one.more) for one in found] == [
        (b"k", "id#0", space, False),
        (b"k", "id#1", space, True),
    ]
    for one, (vector, scale), text in zip(found, projected(precision), ("one two", "three"), strict=True):
        assert one.values is not None and np.array_equal(one.values, vector) and one.scale == scale
        assert dict(one.fields) == ({"chunk_text": text, "title": "T"} if fields else {})
    assert fingerprint_of(message.value, message.headers) == "f" * 16
    (first, _) = StoredReader(Settings(), registry).read(replace(of(message), key=None))
    assert first.key == "id", "all are one document's"


@pytest.mark.parametrize("format", ["json", "avro", "binary"])
def test_what_is_not_whole_is_none_of_ours(format: str) -> None:
    registry = Registry()
    message = written(registry, format=format, precision="int8")
    reader = StoredReader(Settings(), registry)
    if format == "json":
        value = json.loads(message.value or b"")
        value["chunks"][1]["embedding"].pop()
        assert reader.read(replace(of(message), value=json.dumps(value).encode())) == []
        value["chunks"][1] = 7
        assert reader.read(replace(of(message), value=json.dumps(value).encode())) == []
    elif format == "avro":
        assert reader.read(replace(of(message), value=(message.value or b"")[:-9])) == []
    else:
        assert reader.read(replace(of(message), value=(message.value or b"")[:-1])) == []
        for name, content in (
            ("embedding-scale", b"0.5"),
            ("embedding-scale", b"x,y"),
            ("embedding-chunk-spans", b"0-1"),
        ):
            headers = tuple((each, content if each == name else held) for each, held in message.headers)
            assert reader.read(replace(of(message), headers=headers)) == []


@pytest.mark.parametrize("format", ["json", "avro", "binary"])
def test_half_a_character_and_numbers_that_are_none_are_refused(format: str) -> None:
    output = KafkaOutput(
        topic="v", format=cast(Any, format), chunks="together", include=() if format == "binary" else ("title",)
    )
    whole = whole_for(output, dim=16, model="m", fingerprint="f", schema_id=Registry())
    assert whole is not None
    broken = [replace(part, document=Document("\ud800", TEXT)) for part in parts()]
    with pytest.raises(PoisonError, match="surrogate"):
        whole.render_whole(SOURCE, broken, projected("float32"))
    if format != "binary":
        with pytest.raises(PoisonError, match="surrogate"):
            whole.render_whole(SOURCE, parts("\ud800"), projected("float32"))
        with pytest.raises(PoisonError, match="not finite"):
            whole.render_whole(SOURCE, parts(), [(np.full(16, np.nan, np.float32), None)] * 2)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_engine_reads_the_chunks_of_a_row(precision: str, tmp_path: Path) -> None:
    given = ParquetOutput(
        kind="parquet",
        uri="file:///x",
        include=("title",),
        chunk_text=True,
        precision=cast(Any, precision),
        chunks="together",
    )
    renderer = rows_for(given, dim=16, model="m", fingerprint="f", chunked=True)
    vectors = projected(precision)
    rows = [renderer.whole_row(SOURCE, parts(), vectors), renderer.deletion(replace(SOURCE, key=b"gone"))]
    rows.append(renderer.whole_row(replace(SOURCE, key=None), parts()[:1], vectors[:1]))
    content = renderer.file([renderer.batch(rows)], {})
    assert renderer.schema.names[:3] == ["id", "chunks", "tokens"]
    assert not {"embedding", "scale", "chunk_index", "chunk_text"}.intersection(renderer.schema.names)
    file = tmp_path / "a.parquet"
    file.write_bytes(content)
    for table in (
        pq.read_table(file).to_pylist(),
        pl.read_parquet(file).to_dicts(),
        duckdb.sql(f"select * from read_parquet('{file}')").arrow().read_all().to_pylist(),
    ):
        assert [(row["id"], row["key"], row["deleted"], row["tokens"], row["title"]) for row in table] == [
            ("id", b"k", False, 5, "T"),
            ("gone", b"gone", True, 0, None),
            ("id", None, False, 3, "T"),
        ]
        assert table[1]["chunks"] is None
        assert [[chunk["index"] for chunk in table[n]["chunks"]] for n in (0, 2)] == [[0, 1], [0]]
        for chunk, (vector, scale), part in zip(table[0]["chunks"], vectors, parts(), strict=True):
            assert np.array_equal(np.array(chunk["embedding"], vector.dtype), vector)
            assert chunk.get("scale") == (None if scale is None else float(scale))
            assert part.chunk is not None
            assert (chunk["start"], chunk["end"], chunk["text"]) == (part.chunk.start, part.chunk.end, part.text)
    each = duckdb.sql(f"select id, unnest(chunks, recursive := true) from read_parquet('{file}')").fetchall()
    assert len(each) == 3
    # Written anew by another engine, which leaves our notes out.
    again = pq.read_table(file).replace_schema_metadata(None)
    pq.write_table(again, file)
    for known_as in [content, file.read_bytes()] if precision != "ubinary" else [content]:
        (found,) = stored_rows(known_as)
        assert [(one.key, one.id, one.more) for one in found] == [
            *((b"k", "id#0", False), (b"k", "id#1", True), (b"gone", "gone", False), ("id", "id#0", False))
        ]
        assert found[2] == Stored(b"gone", "gone")
        for one, (vector, scale), text in zip(found, vectors, ("one two", "three"), strict=False):
            assert one.values is not None and np.array_equal(one.values, vector) and one.scale == scale
            assert dict(one.fields) == {"chunk_text": text, "title": "T"}
    packed = "RLE_DICTIONARY" in str(pq.ParquetFile(io.BytesIO(content)).metadata.row_group(0).to_dict()["columns"][2])
    assert packed == (precision in ("int8", "ubinary"))


def test_a_field_may_be_called_chunks_where_each_is_a_row() -> None:
    given = ParquetOutput(kind="parquet", uri="file:///x", include=("chunks",))
    renderer = rows_for(given, dim=16, model="m", fingerprint="f")
    row = renderer.row(SOURCE, Embedding(Document("id", "t", {"chunks": "x"}), VECTORS[0], 1, False), VECTORS[0], None)
    ((found,),) = stored_rows(renderer.file([renderer.batch([row])], {}))
    assert dict(found.fields) == {"chunks": "x"}


def test_of_a_document_all_chunks_count_and_its_next_version_takes_the_place_of_all() -> None:
    space, questions = Space("m", "f", 2, "float32"), np.eye(2, dtype=np.float32)
    ranking = Ranking(lambda _, stored: np.asarray(stored.values @ questions, np.float32))

    def chunk(index: int, *numbers: float) -> Stored:
        return Stored(b"k", f"k#{index}", space, np.array(numbers, np.float32), more=index > 0)

    ranking.add([chunk(0, 1, 0), chunk(1, 0, 1), chunk(2, 0.5, 0.5)])
    assert len(ranking) == 3 and [hits[0].id for hits in ranking.best(1)] == ["k#0", "k#1"]
    ranking.add([chunk(0, 0.1, 0.2)])
    assert len(ranking) == 1 and [hits[0].id for hits in ranking.best(9)] == ["k#0", "k#0"]
    ranking.add([Stored(b"k", "k")])
    assert len(ranking) == 0


# ---- what is written, beside an output with a record for each chunk


class Whole:
    def render_whole(self, record: Record, parts: Sequence[Embedding], vectors: Sequence[Any]) -> Message:
        names = b" ".join(part.id.encode() for part in parts)
        return Message("together", record.key, names, record.headers, record.timestamp_ms)


class Rows:
    def row(self, record: Record, embedding: Embedding, vector: Any, scale: Any) -> object:
        raise AssertionError("chunks come together")

    def whole_row(self, record: Record, parts: Sequence[Embedding], vectors: Sequence[Any]) -> object:
        return record.key, len(parts)

    def deletion(self, record: Record) -> object:
        return record.key, "gone"


def chunked(held: Record, count: int) -> Chunked:
    document = Document("id", "ab" * count, digest=DIGESTS.of(held, Document("id", f"text of {count}")))
    chunks = [Chunk(n, count, 2 * n, 2 * n + 2) for n in range(count)]
    return Chunked(tuple(Embedding(document, fake_vector(str(chunk)), 2, False, chunk) for chunk in chunks))


class World:
    """Two topics and files over a state, one record after another."""

    def __init__(self, *, state: bool, tombstone: bool = False) -> None:
        projection = Projection(DIM, "float32")
        topics = [
            Outlet("kafka:each", "each", projection, FakeRenderer("each")),
            Outlet("kafka:together", "together", projection, FakeRenderer("together"), Whole()),
        ]
        rows = Rows()
        lake = FileOutlet(projection, rows, cast(FileOutput, type("Lake", (), {"name": "lake"})), rows)
        self.known = known() if state else None
        dead = DeadLetterOutlet("dead", "f", tombstone)
        self.outlets = Outlets(topics, [lake], dead, lambda _: None, known=self.known)
        self.offset = 0

    def write(self, *outcomes: Outcome | int, key: bytes | None = b"k") -> tuple[list[tuple[Any, ...]], list[object]]:
        settled = []
        for outcome in outcomes:
            held = record(self.offset, key=key)
            settled.append(Settled(held, chunked(held, outcome) if isinstance(outcome, int) else outcome))
            self.offset += 1
        prefix = Prefix(P0, 1, tuple(settled), self.offset, {})
        (rendered,), messages = self.outlets.render([prefix])
        if self.known is not None:
            self.known.released(P0, 1, rendered.changes, self.offset)
        sent = [(one.topic, one.key, one.value, one.partition) for one in messages if one.topic != "dead"]
        return sent, [row for _, row in rendered.rows[0]]


def each(*numbers: int, value: bytes | None = b"") -> list[tuple[Any, ...]]:
    return [("each", b"k#%d" % n, None if value is None else b"id#%d" % n, 0) for n in numbers]


def together(*numbers: int) -> list[tuple[Any, ...]]:
    return [("together", b"k", b" ".join(b"id#%d" % n for n in numbers), None)]


def test_an_update_replaces_all_chunks_and_a_delete_deletes_one_key() -> None:
    world = World(state=True)
    assert world.write(3) == ([*each(0, 1, 2), *together(0, 1, 2)], [(b"k", 3)])
    assert world.write(1) == ([*each(0), *each(1, 2, value=None), *together(0)], [(b"k", 1)])
    assert world.write(1) == ([], []), "nothing has changed"
    assert world.write(2, 4)[0] == [*each(0, 1), *together(0, 1), *each(0, 1, 2, 3), *together(0, 1, 2, 3)]
    gone = [*each(0, 1, 2, 3, value=None), ("together", b"k", None, None)]
    assert world.write(Tombstone()) == (gone, [(b"k", "gone")])
    assert world.write(2)[0] == [*each(0, 1), *together(0, 1)]


@pytest.mark.parametrize("state", [True, False])
def test_a_refused_update_takes_the_older_vectors_where_it_should(state: bool) -> None:
    refused = DeadLetter("text", "empty", "no")
    world = World(state=state, tombstone=True)
    world.write(2)
    sent, rows = world.write(refused)
    of_each = each(0, 1, value=None) if state else [("each", b"k", None, None)]
    assert sent == [*of_each, ("together", b"k", None, None)] and rows == [(b"k", "gone")]
    assert World(state=state).write(refused) == ([], [])


def test_without_a_state_and_without_a_key() -> None:
    world = World(state=False)
    assert world.write(2)[0][2:] == together(0, 1)
    assert world.write(Tombstone())[0][-1] == ("together", b"k", None, None)
    sent, rows = world.write(2, key=None)
    assert sent[-1] == ("together", None, b"id#0 id#1", 0) and rows == [(None, 2)], "it stays where its record was"


def test_an_output_that_cannot_take_all_takes_none() -> None:
    refuses = {"together": "too_large"}
    world = World(state=True)
    world.outlets._refuses = lambda message: refuses.get(message.topic) if message.value is not None else None
    assert world.write(2) == ([], [])


# ---- settings


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (
            {"outputs": [{"topic": "v", "chunks": "together"}]},
            "outputs.0.chunks says how chunks are written, and model.overflow",
        ),
        (
            {"outputs": [{"topic": "v", "chunks": "together", "format": "qdrant", "collection": "c"}], **CHUNKED},
            "a point of Qdrant's has one",
        ),
        ({"outputs": [{"topic": "v", "chunks": "together", "include": ["chunks"]}], **CHUNKED}, "include names chunks"),
        (
            {
                "outputs": [{"kind": "parquet", "uri": "file:///v", "chunks": "together", "include": ["chunks"]}],
                **CHUNKED,
            },
            "include names chunks",
        ),
        ({"outputs": [{"topic": "v", "chunks": "all"}], **CHUNKED}, "'each' or 'together'"),
    ],
)
def test_settings_that_contradict_each_other(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        Settings(**given)
    assert says in str(caught.value)


def test_no_state_is_needed_where_no_chunk_has_a_key() -> None:
    whole, one = {"topic": "v", "chunks": "together", "include": ["chunk", "chunk_text"]}, {"topic": "w"}
    source = {"topics": ["a"]}
    Settings(source=source, outputs=[whole], **CHUNKED).require_stream()
    for outputs in ([one], [whole, one]):
        with pytest.raises(SettingsError, match=r"needs state\.topic"):
            Settings(source=source, outputs=outputs, **CHUNKED).require_stream()
    lake = {"kind": "parquet", "uri": "file:///v"}
    Settings(source=source, outputs=[{**lake, "chunks": "together"}], **CHUNKED).require_batch()
    with pytest.raises(SettingsError, match="set chunks: together in each output"):
        Settings(source=source, outputs=[lake], **CHUNKED).require_batch()


def test_check_asks_for_partitions_only_where_chunks_have_keys_and_says_how_many_fit() -> None:
    topics = {name: Topic(name, count, 1 << 20, False, 0, 0) for name, count in {"a": 4, "v": 3, "w": 3}.items()}
    outputs = [{"topic": "v", "chunks": "together"}, {"topic": "w"}]
    given = Settings(source={"topics": ["a"]}, outputs=outputs, **CHUNKED)
    assert [finding.wrong[:7] for finding in examine_chunks(given, ["a"], topics) if finding.wrong] == ["topic w"]
    model = Model.open(Settings(outputs=outputs[:1], **CHUNKED))
    (output,) = model.settings.outputs
    assert isinstance(output, KafkaOutput)
    sizes = [record_size(model, output, chunks=count) for count in (1, 2, 3)]
    assert sizes[2] - sizes[1] == sizes[1] - sizes[0] > 384 * 8


def test_the_state_of_outputs_that_say_nothing_of_it_stands() -> None:
    one, whole = KafkaOutput(topic="v"), KafkaOutput(topic="v", chunks="together")
    assert "chunks" not in json.loads(one.model_dump_json(exclude=_unwritten(one)))
    assert json.loads(whole.model_dump_json(exclude=_unwritten(whole)))["chunks"] == "together"


def test_a_schema_of_its_own_has_a_name_of_its_own() -> None:
    one, whole = (KafkaOutput(topic="v", format="avro", chunks=chunks) for chunks in ("each", "together"))
    assert subject_of(one, "topic_name") == subject_of(whole, "topic_name") == "v-value"
    assert subject_of(whole, "record_name") == "stream_embedder.ChunkedEmbedding" != subject_of(one, "record_name")
    made = whole_for(whole, dim=2, model="m", fingerprint="f" * 16)
    assert isinstance(made, AvroTogether)
    definition = json.loads(made.schema.text)
    assert definition["name"] == "stream_embedder.ChunkedEmbedding" and definition["fingerprint"] == "f" * 16
    assert [field["name"] for field in definition["fields"]] == [
        *("id", "chunks", "dim", "precision", "model", "fingerprint", "tokens", "truncated")
    ]


# ---- batch


def test_batch_writes_a_row_for_each_document(tmp_path: Path) -> None:
    output = {"kind": "parquet", "uri": f"file://{tmp_path}/vectors", "chunk_text": True, "chunks": "together"}
    job = Job(tmp_path, outputs=[output], **CHUNKED)
    job.tokenizer = FakeChunker(10)
    job.texts("a.jsonl", [{"id": "a", "text": "0123456789abcdefghijABCDE"}, {"id": "b", "text": "short"}])
    _, made, reasons = job.run()
    assert (made.rows, made.tokens, reasons) == (2, 30, {})
    rows = job.rows()
    assert [(row["id"], row["tokens"], [chunk["text"] for chunk in row["chunks"]]) for row in rows] == [
        ("a", 25, ["0123456789", "abcdefghij", "ABCDE"]),
        ("b", 5, ["short"]),
    ]
    for chunk in (chunk for row in rows for chunk in row["chunks"]):
        assert chunk["embedding"] == pytest.approx(vector_of(chunk["text"]), abs=1e-6)
