"""``run`` on several topics that differ: each by its own mapping, into one topic and into typed files, equal texts encoded once."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from pipelines.cli import main
from pipelines.embedder import Embedder
from pipelines.model import Model
from pipelines.texts import Text
from tests.conftest import RunningBroker
from tests.integration.pipeline import Pipeline, reading, value_of, wait_until
from tests.integration.test_records import EXAMPLES, letters, produce
from tests.tiny_model import make_tiny_bert
from workers.records import Embedding
from workers.settings import Settings

pytestmark = pytest.mark.timeout(400)

DIM = 16
REPEATED = 300


def test_each_topic_by_its_own_mapping(
    broker: RunningBroker,
    make_topic: Callable[..., str],
    unique_name: Callable[[], str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = {"books": make_topic(2), "tickets": make_topic(1), "notes": make_topic(1)}
    out, dead = make_topic(2), make_topic(1, max_message_bytes=2_000_000)
    model = make_tiny_bert(tmp_path / "model")
    wanted: dict[str, Any] = yaml.safe_load((EXAMPLES / "topics.yaml").read_text())
    wanted["model"]["name"] = str(model)
    wanted["source"] |= {"topics": [names[each] for each in wanted["source"]["topics"]], "group": unique_name()}
    for mapping in wanted["source"]["mappings"]:
        mapping["topics"] = [names[each] for each in mapping["topics"]]
    wanted["outputs"][0] |= {"topic": out, "dim": DIM}
    wanted["outputs"][1] |= {"uri": f"file://{tmp_path}/lake", "dim": DIM, "rotate": {"seconds": 2}}
    wanted["dead_letter"] = {"topic": dead}
    wanted["kafka"] = {"bootstrap_servers": broker.bootstrap_servers}
    wanted |= {"readers": {"cpus": 0.25}, "pool": {"cpus_per_replica": 0.5, "gpus_per_replica": 0}}
    wanted["delivery"] = {"commit_interval_s": 0.3}

    def put(topic: str, *values: object, partition: int = 0) -> None:
        raw = [value if isinstance(value, bytes) else json.dumps(value).encode() for value in values]
        produce(
            broker.settings, names[topic], *((b"%d" % n, value) for n, value in enumerate(raw)), partition=partition
        )

    book = {
        "isbn": "b-1",
        "title": "Tides",
        "subtitle": "a moon",
        "summary": None,
        "price": "12.50",
        "tags": ["sea", "sky"],
    }
    put(
        "books",
        book,
        {"isbn": "b-2", "title": "Alone", "price": 3},
        {"isbn": "b-3", "title": "No price", "price": "three"},
        {"isbn": "b-4", "subtitle": "no title"},
        {"isbn": "b-5", "title": "Many tags", "tags": ["x"] * 20_000},
    )
    put("books", *({**book, "isbn": f"r-{n}"} for n in range(REPEATED)), partition=1)
    put(
        "tickets",
        {"number": 7, "subject": "Help", "urgent": True, "title": "not this"},
        {"number": 8, "subject": "Later"},
    )
    put("notes", b"a note, as it is")

    pipeline = Pipeline(tmp_path, wanted)
    assert main(["check", "-c", str(pipeline.config)]) == 0, capsys.readouterr().err
    good = 5 + REPEATED
    with reading(broker.settings, out) as vectors, reading(broker.settings, dead) as refused, pipeline:
        wait_until(lambda: vectors.poll() >= good and refused.poll() >= 3, 180, pipeline.tail)
        wait_until(lambda: pipeline.scrape().get("tokens_shared_total", 0) > 0, 60, pipeline.tail)
        counted = pipeline.scrape()
        assert pipeline.terminate() == 0, pipeline.tail()
    found = {value["id"]: value for value in map(value_of, vectors.records)}
    assert len(found) == len(vectors.records) == good
    assert Counter(letters(refused)) == {
        ("output", "wrong_type"): 1,
        ("text", "missing_field"): 1,
        ("text", "too_much"): 1,
    }

    # Titles and prices come from where each topic has them.
    assert {id: (found[id]["title"], found[id]["price"]) for id in ("b-1", "b-2", "7", "8", "0")} == {
        "b-1": ("Tides", "12.50"),
        "b-2": ("Alone", 3),
        "7": ("Help", None),
        "8": ("Later", None),
        "0": (None, None),
    }
    # Vectors are those of the text and the prompt that the mapping makes.
    texts = {
        "b-1": ("Tides: a moon\n\n #sea #sky", "title: Tides | text: "),
        "b-2": ("Alone\n\n", "title: Alone | text: "),
        "7": ("urgent: Help", "title: Help | text: "),
        "8": ("Later", "title: Later | text: "),
        "0": ("a note, as it is", ""),
    }
    embedder = Embedder(Model.open(Settings(model={"name": str(model)})))
    alone = embedder.embed([Text(id, text, prompt) for id, (text, prompt) in texts.items()], DIM)
    before = embedder._encoder.stats.tokens
    embedder.embed([Text(str(n), "alike") for n in range(50)] + [Text("x", "another text")], DIM)
    assert embedder._encoder.stats.tokens - before < 40, "equal texts are encoded once by the commands too"
    for id, one in zip(texts, alone, strict=True):
        assert isinstance(one, Embedding)
        assert np.dot(found[id]["embedding"], one.vector) > 0.999, id
    # Equal texts: one vector, to the last digit where they shared it; and most of their tokens were never encoded.
    cosines = [np.dot(found["b-1"]["embedding"], found[f"r-{n}"]["embedding"]) for n in range(REPEATED)]
    assert min(cosines) > 0.999
    assert counted["tokens_shared_total"] > counted["tokens_encoded_total"]

    table = pq.read_table(tmp_path / "lake").to_pylist()
    rows = {row["id"]: row for row in table}
    assert len(table) == len(rows) == good
    assert (rows["b-1"]["price"], rows["b-2"]["price"], rows["7"]["price"]) == (Decimal("12.50"), Decimal("3.00"), None)
    assert (rows["b-1"]["tags"], rows["b-2"]["tags"], rows["0"]["title"]) == (["sea", "sky"], None, None)

    # A field that no latest schema knows, a topic that is not read: said before anything starts.
    for flag, code, says in (
        (["--source.mappings.0.topics", "elsewhere"], 2, "mappings.0 is for topic elsewhere, which is not read"),
        (
            ["--source.mappings.0.text", "{{ subject | uper }}"],
            2,
            "source.mappings.0: source.text: line 1 of the template",
        ),
        (["--outputs.1.types", "{price: money}"], 2, "types.price: money is no type"),
    ):
        assert main(["check", "-c", str(pipeline.config), *flag]) == code
        assert says in capsys.readouterr().err
