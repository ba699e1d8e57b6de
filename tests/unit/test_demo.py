"""The demo's own parts: its settings as a file, its counting, its search."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines import demo_outcomes
from pipelines.configure import load
from pipelines.demo_outcomes import Outcomes
from pipelines.demo_search import nearest
from pipelines.demo_settings import Names, demo_settings, pipeline_yaml, shown_yaml
from workers.errors import EnvironmentFault
from workers.settings import KafkaSettings, Settings

NAMES = Names("in", "out", "dead", "group")


def vector(id: str, tokens: int = 5) -> SimpleNamespace:
    value = {"id": id, "title": f"title of {id}", "embedding": [1.0, 0.0], "tokens": tokens}
    return SimpleNamespace(topic="out", key=id.encode(), value=json.dumps(value).encode())


def dead_letter(id: str) -> SimpleNamespace:
    return SimpleNamespace(topic="dead", key=id.encode(), value=b"anything")


# ---- settings


def test_the_file_says_what_the_settings_say(tmp_path: Path):
    given_ = Settings(model={"max_tokens": 64}, pool={"max_batch_tokens": 512}, delivery={"drain_timeout_s": 3})
    kafka = KafkaSettings(
        bootstrap_servers="broker:1",
        security_protocol="SASL_SSL",
        sasl_mechanism="PLAIN",
        sasl_username="me",
        sasl_password="sécret: #1",
        ssl_cafile=Path("/ca.pem"),
    )
    mine = demo_settings(given_, kafka, NAMES)
    path = tmp_path / "pipeline.yaml"
    path.write_text(pipeline_yaml(mine), encoding="utf-8")
    read = load(path, [], {}).settings
    assert read == mine
    assert read.kafka.sasl_password.get_secret_value() == "sécret: #1"
    assert (read.model.max_tokens, read.source.topics, read.outputs[0].topic) == (64, ("in",), "out")
    read.require_stream()


def test_what_is_shown_has_no_secret():
    kafka = KafkaSettings(
        security_protocol="SASL_SSL", sasl_mechanism="PLAIN", sasl_username="me", sasl_password="hunter2"
    )
    shown = shown_yaml(demo_settings(Settings(), kafka, NAMES))
    assert "hunter2" not in shown
    assert "topic: out" in shown


def test_names_are_new_each_time():
    first, second = Names.new(), Names.new()
    assert len({*first.topics, *second.topics, first.group, second.group}) == 8


# ---- counting


def test_outcomes_are_counted_by_document_and_by_record():
    outcomes = Outcomes()
    outcomes.add([vector("a"), dead_letter("b")], "dead", now=1.0)
    outcomes.add([vector("c", tokens=7)], "dead", now=2.0)
    assert (outcomes.documents, outcomes.records, outcomes.tokens, outcomes.dead) == (3, 3, 12, {"b"})
    demo_outcomes.require_once(outcomes, 3)
    outcomes.add([vector("a")], "dead", now=3.0)
    with pytest.raises(EnvironmentFault, match="3 documents went in, and 4 outcomes of 3 documents came out"):
        demo_outcomes.require_once(outcomes, 3)


def test_the_rate_leaves_out_the_start_where_it_can():
    outcomes = Outcomes()
    outcomes.add([vector("a")], "dead", now=10.0)
    assert outcomes.rate(started=5.0) == pytest.approx(1 / 5)
    outcomes.add([vector(str(n)) for n in range(20)], "dead", now=12.0)
    assert outcomes.rate(started=5.0) == pytest.approx(10)


def test_a_pipeline_that_ends_by_itself_is_said_with_its_exit_code():
    process = subprocess.Popen(["false"])
    process.wait()
    nothing = SimpleNamespace(poll=lambda _: {})
    with pytest.raises(EnvironmentFault, match="exit code 1 after 0 of 3 documents"):
        demo_outcomes.await_outcomes(process, nothing, NAMES, 3)


# ---- search


def test_nearest_is_by_cosine_best_first():
    vectors = np.array([[0, 1], [2, 0], [1, 1], [-1, 0], [0, 0]], np.float32)
    found = nearest(vectors, np.array([3, 0], np.float32), 3)
    assert [row for row, _ in found] == [1, 2, 0]
    assert [score for _, score in found] == pytest.approx([1, 0.5**0.5, 0])


@given(st.integers(1, 6), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_nearest_finds_each_vector_by_itself(rows: int, k: int, seed: int):
    vectors = np.random.default_rng(seed).normal(size=(rows, 8)).astype(np.float32)
    for row in range(rows):
        found = nearest(vectors, vectors[row], k)
        assert len(found) == min(k, rows)
        assert found[0][1] == pytest.approx(1, abs=1e-5)
        assert [score for _, score in found] == sorted((score for _, score in found), reverse=True)
        assert found[0][0] == row
