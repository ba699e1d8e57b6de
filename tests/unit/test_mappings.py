"""Topics with mappings of their own: what contradicts itself, and what becomes of each topic's records."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from pipelines.configure import load
from pipelines.fit import against_model
from pipelines.model import Model
from pipelines.settings_text import render
from workers.codecs import decoder_for
from workers.codecs.base import Decoder
from workers.encoder.layout import Layout
from workers.errors import PoisonError, SettingsError
from workers.records import Document, Origin, Record, Tombstone
from workers.settings import Settings

PIPELINE = """
model: {prompt_text: "title: {title|none} | text: "}
source:
  topics: [books, tickets, notes, plain]
  text: "{title}: {body}"
  id: "{id}"
  include: {author: by.name}
  mappings:
    - topics: [tickets]
      text: "{% if urgent %}urgent: {% endif %}{{ subject }}"
      id: number
      prompt_text: "title: {{ subject }} | text: "
      include: {title: subject, author: null}
    - topics: plain
      format: text
      prompt_text: "query: "
    - {topics: [notes], empty: embed, text: note, envelope: debezium}
outputs:
  - {topic: out, include: [title, author]}
"""


PROMPTS = {"query": "q: ", "document": "title: none | text: ", "odd": "{odd} "}
LAYOUT = Layout(Path(), Path(), "bert", 64, 8, 8, prompts=PROMPTS)


def settings(tmp_path: Path, text: str = PIPELINE, **environ: str) -> Settings:
    file = tmp_path / "pipeline.yaml"
    file.write_text(text)
    return load(file, [], environ).settings


def decode(decoder: Decoder, topic: str, value: object) -> Document | Tombstone:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return decoder.decode(Record(Origin(topic, 0, 7, 1), b"key", raw, 0))


def test_each_topic_is_read_by_its_own_mapping(tmp_path: Path) -> None:
    decoder = decoder_for(settings(tmp_path))
    book = {"id": 1, "title": "Tides", "body": "pull", "by": {"name": "Ada"}}
    assert decode(decoder, "books", book) == Document(
        "1", "Tides: pull", {"title": "Tides", "author": "Ada"}, "title: Tides | text: "
    )
    ticket = {"number": 9, "subject": "Help", "urgent": True, "title": "no title of ours", "by": {"name": "Ada"}}
    assert decode(decoder, "tickets", ticket) == Document(
        "9", "urgent: Help", {"title": "Help", "author": None}, "title: Help | text: "
    )
    assert decode(decoder, "plain", b"just a text") == Document("key", "just a text", {}, "query: ")
    event = {"op": "c", "before": None, "after": {"id": 3, "note": " ", "title": "T"}}
    assert decode(decoder, "notes", event) == Document("3", " ", {"title": "T", "author": None}, "title: T | text: ")
    assert decode(decoder, "notes", {"op": "d", "before": {}, "after": None}) == Tombstone()
    with pytest.raises(PoisonError, match="field body is missing"):
        decode(decoder, "books", {"id": 1, "title": "T"})


def test_the_first_pattern_that_fits_counts_and_new_topics_come_as_they_are_made() -> None:
    mappings = [{"pattern": "docs-x-.*", "text": "x"}, {"pattern": "docs-[xy].*", "text": "y"}]
    decoder = decoder_for(Settings(source={"pattern": "docs-.*", "text": "other", "mappings": mappings}))
    fields = {"x": "of x", "y": "of y", "other": "of all"}
    for topic, text in (("docs-x-1", "of x"), ("docs-x2", "of y"), ("docs-y", "of y"), ("docs-z", "of all")):
        for _ in range(2):
            assert decode(decoder, topic, fields) == Document("key", text)


def test_a_format_of_its_own_brings_nothing_of_the_sources() -> None:
    given: dict[str, Any] = {"topics": ["a", "b"], "format": "avro", "schema_file": "a.avsc", "text": "t", "id": "i"}
    source = Settings(source={**given, "mappings": [{"topics": ["b"], "format": "text"}]}).of(0).source
    assert (source.format, source.schema_file, source.text, source.id) == ("text", None, "{text}", None)
    source = Settings(source={**given, "mappings": [{"topics": ["b"], "format": "json"}]}).of(0).source
    assert (source.format, source.schema_file, source.text, source.id) == ("json", None, "t", "i")
    source = Settings(source={**given, "mappings": [{"topics": ["b"], "format": "avro", "text": "x"}]}).of(0).source
    assert (str(source.schema_file), source.text, source.id) == ("a.avsc", "x", "i")


@pytest.mark.parametrize(
    ("mappings", "says"),
    [
        ([{"text": "x"}], "mappings.0 is for no topics"),
        ([{"topics": ["a"], "pattern": "a"}], "mappings.0 is for no topics"),
        ([{"topics": ["c"]}], "mappings.0 is for topic c, which is not read: the source's topics do not name c"),
        (
            [{"topics": ["a"]}, {"topics": ["b", "a"]}],
            "mappings.1 is for topic a, which another mapping is for already",
        ),
        ([{"pattern": "("}], "not a regular expression"),
        ([{"pattern": "c.*"}], "mappings.0 is for topics like c.*, and none of those that are read is one"),
        ([{"topics": ["a"], "format": "text", "text": "{x}"}], "source.mappings.0.text names fields"),
        ([{"topics": ["a"], "format": "text", "id": "{x}"}], "source.mappings.0.id names fields"),
        ([{"topics": ["a"], "format": "text", "envelope": "connect"}], "mappings.0: envelope connect needs fields"),
        ([{"topics": ["a"], "format": "avro"}], "source.mappings.0.format avro needs registry.url"),
        ([{"topics": ["a"], "schema_file": "x.avsc"}], "mappings.0: schema_file is for format avro"),
        ([{"topics": ["a"], "prompt": "query", "prompt_text": "q: "}], "give prompt (a name from the model's table)"),
        ([{"topics": ["a"], "include": {"titel": "x"}}], "source.mappings.0.include says where titel comes from"),
    ],
)
def test_what_contradicts_itself_is_said(mappings: list[dict[str, Any]], says: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Settings(source={"topics": ["a", "b"], "mappings": mappings}, outputs=[{"topic": "o", "include": ["title"]}])
    assert says in str(caught.value)


def test_a_mapping_outside_the_pattern_is_said() -> None:
    with pytest.raises(ValidationError, match="the source's pattern does not match a"):
        Settings(source={"pattern": "b.*", "mappings": [{"topics": ["a"]}]})


def test_every_template_that_is_none_is_said_with_its_mapping() -> None:
    mappings = [{"topics": ["a"], "text": "{a"}, {"topics": ["b"], "prompt_text": "{{ x | uper }}"}]
    with pytest.raises(SettingsError) as caught:
        decoder_for(Settings(source={"topics": ["a", "b"], "mappings": mappings}))
    first, second = str(caught.value).splitlines()
    assert first.startswith("source.mappings.0: source.text: '{a' has an opening brace")
    assert second.startswith("source.mappings.1: model.prompt_text: line 1 of the template: there is no filter uper")


def test_fields_are_looked_for_in_the_schema_of_their_mapping(tmp_path: Path) -> None:
    for name in ("a", "b"):
        schema = {"type": "record", "name": "R", "fields": [{"name": f"text_{name}", "type": "string"}]}
        (tmp_path / f"{name}.avsc").write_text(json.dumps(schema))

    def wanted(**own: object) -> Settings:
        given = {"topics": ["a", "b"], "format": "avro", "schema_file": tmp_path / "a.avsc", "text": "text_a"}
        mapping = {"topics": ["b"], "schema_file": tmp_path / "b.avsc", "text": "text_b", **own}
        return Settings(source={**given, "mappings": [mapping]}, outputs=[{"topic": "o", "include": ["text_a"]}])

    decoder_for(wanted(include={"text_a": "text_b"}))
    decoder_for(wanted(include={"text_a": None}))
    for own, says in (
        ({}, "source.mappings.0: outputs.0.include names text_a, which "),
        ({"include": {"text_a": "titel"}}, "source.mappings.0: source.include.text_a names titel"),
        ({"include": {"text_a": None}, "text": "{% if titel %}{{ text_b }}{% endif %}"}, "source.text names titel"),
    ):
        with pytest.raises(SettingsError) as caught:
            decoder_for(wanted(**own))
        assert says in str(caught.value)
    decoder_for(wanted(include={"text_a": None}, text="{{ titel | default(text_b) }}"))


def test_the_source_need_say_nothing_where_every_topic_has_a_mapping(tmp_path: Path) -> None:
    schema = {"type": "record", "name": "R", "fields": [{"name": "body", "type": "string"}]}
    (tmp_path / "a.avsc").write_text(json.dumps(schema))
    given = {"topics": ["a"], "format": "avro", "schema_file": tmp_path / "a.avsc"}
    decoder_for(Settings(source={**given, "mappings": [{"topics": ["a"], "text": "body"}]}))
    with pytest.raises(SettingsError, match=r"^source\.text names text"):
        decoder_for(Settings(source={**given, "topics": ["a", "b"], "mappings": [{"topics": ["a"], "text": "body"}]}))


def test_mappings_come_from_all_places_and_are_printed(tmp_path: Path) -> None:
    file = tmp_path / "pipeline.yaml"
    file.write_text(PIPELINE)
    flags = [("source.mappings.0.text", "{subject}"), ("source.mappings.0.include", '{"title": "subject"}')]
    configured = load(file, flags, {"STREAM_EMBEDDER_SOURCE__MAPPINGS__2__ID": "own"})
    first, _, last = configured.settings.source.mappings
    assert (first.text, first.include, last.id) == ("{subject}", {"title": "subject"}, "own")
    text = render(configured)
    assert "include: {title: subject}" in text and "# --source.mappings.0.include" in text
    file.write_text(text)
    assert load(file, [], {}).settings == configured.settings
    for flag, says in (
        (("source.mappings.0.txt", "x"), "did you mean source.mappings.0.text?"),
        (
            ("source.mappings.0.include", "title"),
            "source.mappings.0.include (--source.mappings.0.include) should be a mapping",
        ),
        (
            ("source.mappings.0.format", "xml"),
            "source.mappings.0.format (--source.mappings.0.format) should be 'json', 'text'",
        ),
    ):
        with pytest.raises(SettingsError) as caught:
            load(file, [flag], {})
        assert says in str(caught.value)


def test_templates_and_prompts_of_mappings_are_part_of_the_fingerprint_and_topics_are_not() -> None:
    def found(*mappings: dict[str, Any]) -> str:
        source = {"pattern": "[ab]", "text": "t", "mappings": list(mappings)}
        model = Model(Settings(model={"max_tokens": 8}, source=source), layout=LAYOUT)
        model.__dict__["digest"] = "weights"  # what a folder would say
        return model.fingerprint(8, "float32")

    alone = found()
    assert found({"topics": ["a"]}) == found({"topics": ["a"], "id": "i", "text": "t"}) == alone
    first, second = ({"topics": [name], "text": "x"} for name in "ab")
    one = found(first)
    assert one == found({**first, "topics": ["a", "b"]}) == found(first, second)
    two = found(first, {"topics": ["b"], "prompt_text": "q: "})
    assert two == found({"topics": ["b"], "prompt_text": "q: "}, first)
    plain, prompted = found({"topics": ["a"], "format": "text"}), found({"topics": ["a"], "prompt_text": ""})
    assert len({alone, one, two, plain, prompted}) == 5


def test_topics_and_records_name_prompts_of_the_models_own() -> None:
    mappings = [
        {"topics": ["asked"], "prompt": "query"},
        {"topics": ["lines"], "prompt": "odd", "format": "text"},
        {"topics": ["mixed"], "prompt": "{% if asks %}query{% else %}document{% endif %}"},
    ]
    topics = ["asked", "lines", "mixed", "others"]
    given = Settings(model={"prompt": "{kind|document}"}, source={"topics": topics, "mappings": mappings})
    decoder = decoder_for(given, prompts=PROMPTS)

    def prompt(topic: str, value: object) -> str | None:
        found = decode(decoder, topic, value)
        assert isinstance(found, Document)
        return found.prompt

    assert prompt("asked", {"text": "a", "kind": "document"}) == "q: "
    assert prompt("lines", b"a text") == "{odd} "  # as the table has it: a brace in it stands for itself
    assert prompt("mixed", {"text": "a", "asks": True}) == "q: "
    assert prompt("mixed", {"text": "a"}) == prompt("others", {"text": "a"}) == PROMPTS["document"]
    assert prompt("others", {"text": "a", "kind": "query"}) == "q: "
    for kind in ("secret", "", "Query"):
        with pytest.raises(PoisonError, match="it has document, odd, query") as caught:
            prompt("others", {"text": "a", "kind": kind})
        assert (caught.value.stage, caught.value.reason) == ("text", "unknown_prompt")
        assert "secret" not in caught.value.message
    with pytest.raises(PoisonError) as caught:
        prompt("others", {"text": "a", "kind": ["query"]})
    assert caught.value.reason == "wrong_type"


@pytest.mark.parametrize(
    ("model", "mapping", "says"),
    [
        (
            {},
            {"prompt": "qery"},
            "source.mappings.0.prompt is 'qery'; the model knows document, odd, query; did you mean",
        ),
        (
            {"prompt": "{kind|qery}"},
            {},
            "model.prompt is '{kind|qery}', and without the record's fields that names none",
        ),
        ({}, {"prompt": "{{ kind | default('x') }}"}, "source.mappings.0.prompt is "),
        ({"prompt": "{kind"}, {}, "model.prompt: '{kind' has an opening brace"),
        (
            {"prompt": "{kind}"},
            {"format": "text"},
            "model.prompt has the field kind, and source.format text has no fields",
        ),
    ],
)
def test_a_prompt_that_the_model_does_not_have_is_said_at_the_start(
    model: dict[str, Any], mapping: dict[str, Any], says: str
) -> None:
    given = Settings(model=model, source={"topics": ["a", "b"], "mappings": [{"topics": ["b"], **mapping}]})
    with pytest.raises(SettingsError) as caught:
        against_model(given, LAYOUT)
        decoder_for(given, prompts=PROMPTS)
    assert says in str(caught.value)
    with pytest.raises(SettingsError, match="has no prompts"):
        against_model(Settings(model={"prompt": "{kind|query}"}), replace(LAYOUT, prompts={}))


def test_a_prompt_by_name_has_one_length_where_the_pooling_leaves_it_out() -> None:
    layout = replace(LAYOUT, include_prompt=False)
    against_model(Settings(model={"prompt": "query"}), layout)
    with pytest.raises(SettingsError, match=r"^model\.prompt has fields"):
        against_model(Settings(model={"prompt": "{kind|query}"}), layout)
    mapped = {"topics": ["a"], "mappings": [{"topics": ["a"], "prompt": "query"}]}
    with pytest.raises(SettingsError, match=r"^source\.mappings\.0\.prompt is another prompt"):
        against_model(Settings(source=mapped), layout)


def test_prompts_by_name_are_part_of_the_fingerprint_as_what_they_stand_for() -> None:
    def found(prompts: dict[str, str] = PROMPTS, mapping: dict[str, Any] | None = None, **model: Any) -> str:
        source = {"topics": ["a", "b"], "mappings": [] if mapping is None else [{"topics": ["b"], **mapping}]}
        made = Model(Settings(model={"max_tokens": 8, **model}, source=source), layout=replace(LAYOUT, prompts=prompts))
        made.__dict__["digest"] = "weights"
        return made.fingerprint(8, "float32")

    other = {**PROMPTS, "query": "Q: "}
    assert (
        found(mapping={"prompt": "query"})
        == found(mapping={"prompt_text": "q: "})
        == found(mapping={"prompt": "query"})
    )
    different = [
        found(),
        found(prompt="query"),
        found(prompt="{kind|query}"),
        found(prompt="{kind|document}"),
        found(other, prompt="{kind|query}"),
        found(prompt_text="{kind|query}"),
        found(mapping={"prompt": "query"}),
        found(other, mapping={"prompt": "query"}),
        found(mapping={"prompt": "document"}),
        found(mapping={"prompt": "odd"}),
        found(mapping={"prompt_text": "{odd} "}),
        found(mapping={"prompt": "{kind|query}"}),
    ]
    assert len(set(different)) == len(different)
