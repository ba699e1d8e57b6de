"""``stream-embedder search`` with the packaged model, over files, an object store and a topic; and whose vectors it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import obstore
import pytest

from pipelines.calibrate import run_calibrate
from pipelines.cutover.places import held
from pipelines.demo_corpus import Doc, documents
from pipelines.embedder import Embedder
from pipelines.model import Model
from pipelines.search.command import run_search
from pipelines.search.places import TopicRecords
from pipelines.search.questions import for_questions
from pipelines.texts import Text
from tests.conftest import RunningBroker
from tests.s3 import S3Server
from tests.tiny_model import make_tiny_bert, make_tiny_gemma
from workers import kafka_client
from workers.codecs import renderer_for, rows_for
from workers.errors import EnvironmentFault, SettingsError
from workers.records import Document, Embedding, Origin, Record
from workers.settings import KafkaOutput, ParquetOutput, Settings

ROOT = Path(__file__).parents[2]
QUESTION = "Which elements of a list occur most often?"
ANSWER = "collections.Counter.most_common"


def settings(**sections: Any) -> Settings:
    given = {"model": {"max_tokens": 48, "dtype": "float32"}, "source": {"text": "{title}: {body}"}, **sections}
    return Settings(**given)


@pytest.fixture(scope="module")
def corpus() -> list[Doc]:
    found = list(documents(700))
    return [doc for number, doc in enumerate(found) if doc.id == ANSWER or number % 15 == 0]


@pytest.fixture(scope="module")
def embeddings(corpus: list[Doc]) -> list[Embedding]:
    model = Model.open(settings())
    outcomes = Embedder(model).embed([Text(doc.id, f"{doc.title}: {doc.body}") for doc in corpus], model.layout.dim)
    return [
        Embedding(Document(doc.id, "", {"title": doc.title}), outcome.vector, outcome.tokens, outcome.truncated)
        for doc, outcome in zip(corpus, outcomes, strict=True)
        if isinstance(outcome, Embedding)
    ]


def record(embedding: Embedding, offset: int = 0) -> Record:
    return Record(Origin("documents", 0, offset, 0), embedding.document.id.encode(), b"{}", 1_700_000_000_000)


def files(given: Settings, embeddings: Sequence[Embedding], uri: str = "file:///x", **output: Any) -> bytes:
    """What an output of files writes of these."""
    model = Model.open(given)
    wanted = ParquetOutput(kind="parquet", uri=uri, include=("title",), **output)
    projection = model.projection(wanted)
    renderer = rows_for(wanted, dim=projection.dim, model=model.name, fingerprint=model.fingerprint_of(projection))
    rows = [
        renderer.row(record(each, offset), each, *next(projection(each.vector[None]).rows()))
        for offset, each in enumerate(embeddings)
    ]
    return renderer.file([renderer.batch(rows)], {})


@pytest.fixture
def lake(tmp_path: Path, embeddings: list[Embedding]) -> Callable[..., Path]:
    """``lake(settings, **output)`` → a folder with one output's files."""

    def make(given: Settings | None = None, **output: Any) -> Path:
        folder = tmp_path / "vectors"
        path = folder / "topic-documents" / "id-0" / "partition-0" / f"{0:020d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(files(given or settings(), embeddings, **output))
        return folder

    return make


@pytest.fixture
def search(capsys: pytest.CaptureFixture[str]) -> Callable[..., list[dict[str, Any]]]:
    def run(given: Settings, *questions: str, **options: Any) -> list[dict[str, Any]]:
        capsys.readouterr()
        assert run_search(given, questions or [QUESTION], as_json=True, **options) == 0
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    return run


def test_from_a_shell_it_answers_and_says_that_it_looked_at_all(lake, corpus: list[Doc]):
    command = [sys.executable, "-m", "pipelines", "search", "--in", str(lake()), QUESTION, "--top", "2"]
    command += ["--model.max_tokens", "48", "--source.text", "{title}: {body}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    blank, asked, first, second, _, last = done.stdout.splitlines()
    assert (blank, asked) == ("", QUESTION)
    score, id, *title = first.split()
    assert id == ANSWER and " ".join(title) == f"method {ANSWER}"
    assert 0.9 > float(score) > float(second.split()[0])
    assert last.startswith(
        f"by cosine, over each of {len(corpus):,} vectors (384 dims in float32): exact, and for trying"
    )


@pytest.mark.parametrize("precision", ["int8", "ubinary"])
def test_what_was_quantised_is_searched(lake, search, precision: str):
    exact = search(settings(), where=str(lake()))
    found = search(settings(), where=str(lake(precision=precision)))
    assert found[0]["id"] == ANSWER
    if precision == "int8":
        assert [hit["id"] for hit in found] == [hit["id"] for hit in exact]
        assert [hit["score"] for hit in found] == pytest.approx([hit["score"] for hit in exact], abs=0.01)


def test_vectors_that_were_cut(lake, search):
    found = search(settings(), QUESTION, "threads that run", where=str(lake(dim=128)), top=3)
    assert [(hit["question"], hit["place"]) for hit in found] == [
        *((QUESTION, place) for place in (1, 2, 3)),
        *(("threads that run", place) for place in (1, 2, 3)),
    ]
    assert found[0]["id"] == ANSWER and found[0]["fields"] == {"title": f"method {ANSWER}"}


def test_precisions_with_ranges_need_them(lake, search, corpus: list[Doc], tmp_path: Path):
    ranges = tmp_path / "ranges.npz"
    run_calibrate(settings(), dim=None, path=ranges, texts=[f"{doc.title}: {doc.body}" for doc in corpus], lines=None)
    folder = str(lake(precision="int8_ranges", ranges=ranges))
    with pytest.raises(SettingsError, match="--ranges FILE"):
        search(settings(), where=folder)
    named = settings(
        outputs=[{"kind": "parquet", "uri": Path(folder).as_uri(), "precision": "int8_ranges", "ranges": str(ranges)}]
    )
    for found in (
        search(settings(), where=folder, ranges=ranges),
        search(named, where=folder),
        search(named),
    ):
        assert found[0]["id"] == ANSWER


def test_another_models_vectors_are_refused_in_one_sentence(lake, search, tmp_path: Path):
    tiny = make_tiny_bert(tmp_path / "bert")
    folder = str(lake())
    with pytest.raises(
        SettingsError, match=r"of another model \(model all-MiniLM-L6-v2, fingerprint \w+, 384 dims, float32\)"
    ) as told:
        search(settings(model={"name": str(tiny)}), where=folder)
    assert "the settings name bert: set model.name" in str(told.value) and "\n" not in str(told.value)
    with pytest.raises(SettingsError, match="of another model"):
        search(settings(model={"name": str(tiny)}), where=folder, any_fingerprint=True)


def test_vectors_that_were_made_otherwise_are_refused_unless_that_is_wanted(lake, search):
    folder = str(lake())
    other = settings(source={"text": "{body}"})
    with pytest.raises(SettingsError, match=r"of another fingerprint .* give those that made them") as told:
        search(other, where=folder)
    assert Model.open(other).fingerprint(384, "float32") in str(told.value)
    assert search(other, where=folder, any_fingerprint=True)[0]["id"] == ANSWER


def test_some_that_do_not_fit_are_counted(lake, search, embeddings: list[Embedding]):
    folder = lake()
    later = folder / "topic-documents" / "id-0" / "partition-0" / f"{1000:020d}.parquet"
    later.write_bytes(files(settings(source={"text": "{body}"}), embeddings[:2]))
    with pytest.raises(SettingsError, match=rf"holds 2 of {len(embeddings)} vectors of another fingerprint"):
        search(settings(), where=str(folder))


def test_on_an_object_store(s3: S3Server, bucket: str, search, embeddings: list[Embedding]):
    obstore.put(s3.store(bucket), "lake/p/00.parquet", files(settings(), embeddings))
    obstore.put(s3.store(bucket), "lake/p/_tmp.parquet", b"not yet")
    assert search(settings(), where=f"s3://{bucket}/lake")[0]["id"] == ANSWER
    assert search(settings(), where=f"s3://{bucket}/lake/p/00.parquet")[0]["id"] == ANSWER
    with pytest.raises(EnvironmentFault, match="holds no vectors"):
        search(settings(), where=f"s3://{bucket}/nothing")
    with pytest.raises(EnvironmentFault, match="holds no vectors"):
        search(settings(), where=f"s3://{bucket}/nothing.parquet")
    with pytest.raises(EnvironmentFault, match="there is no such bucket"):
        search(settings(), where="s3://no-such-bucket-here/lake")


@pytest.mark.parametrize("format", ["json", "binary"])
def test_a_topic(
    broker: RunningBroker, make_topic, embeddings: list[Embedding], capsys: pytest.CaptureFixture[str], format: str
):
    """Of a key the latest record counts, a deletion ends it, and what is none of ours is passed over, and counted.

    ``cutover`` reads it by the same way, which says whether the broker has dated the records.
    """
    dated = format == "json"
    topic = make_topic(2, message_timestamp_type="LogAppendTime" if dated else "CreateTime")
    given = settings(
        kafka={"bootstrap_servers": broker.bootstrap_servers}, outputs=[{"topic": topic, "format": format}]
    )
    model, (output,) = Model.open(given), given.outputs
    assert isinstance(output, KafkaOutput)
    projection = model.projection(output)
    renderer = renderer_for(output, dim=384, model=model.name, fingerprint=model.fingerprint_of(projection))
    deleted = next(each for each in embeddings if each.document.id != ANSWER)
    producer = kafka_client.bare_producer(broker.settings, acks="all")
    try:
        for each in embeddings:
            message = renderer.render(record(each), each, *next(projection(each.vector[None]).rows()))
            producer.send(topic, key=message.key, value=message.value, headers=list(message.headers))
        producer.send(topic, key=deleted.document.id.encode(), value=None)
        producer.send(topic, key=b"plain", value=b"no vector")
        producer.flush(timeout=30)
    finally:
        producer.close(timeout=5)
    assert run_search(given, [QUESTION], top=len(embeddings), as_json=True) == 0
    out, told = capsys.readouterr()
    found = [json.loads(line) for line in out.splitlines()]
    assert found[0]["id"] == ANSWER
    assert len(found) == len(embeddings) - 1 and deleted.document.id not in {hit["id"] for hit in found}
    assert f"1 of the records of topic {topic} is no embedding of ours" in told
    marked = held(given, TopicRecords(given, topic)).documents()
    assert sum(each.live for each in marked.values()) == len(found)
    assert {each.version.appended for each in marked.values()} == {dated}
    with pytest.raises(EnvironmentFault, match="does not exist"):
        run_search(given, [QUESTION], topic="no-such-topic-here")


def test_a_place_is_needed_and_one_only(search, tmp_path: Path):
    with pytest.raises(SettingsError, match="the settings have no output: --in FOLDER"):
        search(settings())
    with pytest.raises(SettingsError, match="several outputs"):
        search(settings(outputs=[{"topic": "a"}, {"topic": "b"}]))
    with pytest.raises(SettingsError, match="two places"):
        search(settings(), where="a", topic="b")
    with pytest.raises(SettingsError, match="needs a question"):
        search(settings(), " ", where="a")
    with pytest.raises(EnvironmentFault, match="holds no vectors"):
        search(settings(), where=str(tmp_path))


def test_a_question_has_the_models_prompt_for_queries_or_one_of_its_own(tmp_path: Path):
    given = Settings(model={"name": str(make_tiny_gemma(tmp_path / "gemma")), "prompt": "document"})
    prompts = Model.open(given).layout.prompts
    assert Model.open(for_questions(given)).prompt == prompts["query"] != Model.open(given).prompt
    assert Model.open(for_questions(given, "ask: ")).prompt == "ask: "
    with pytest.raises(SettingsError, match="has the field title, and a question has none"):
        for_questions(given, "{title|none}: ")
    plain = settings()
    assert for_questions(plain) is plain, "MiniLM has none"
