"""Lines that commands are given: read as the stream reads the values of their topic."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pipelines.of_topic import UNSAID, OfTopic
from pipelines.reading import Reading
from pipelines.texts import Text, texts_of
from workers.codecs import decoder_for
from workers.errors import SettingsError
from workers.records import Document, Origin, Record
from workers.settings import Settings

PROMPTS = {"query": "q: ", "document": "d: "}
SOURCE: dict[str, Any] = {
    "topics": ["books", "tickets", "plain", "rows"],
    "text": "{title}: {body|}",
    "mappings": [
        {"topics": ["tickets"], "text": "{% if urgent %}urgent: {% endif %}{{ subject }}", "prompt": "query"},
        {"topics": ["plain"], "format": "text", "prompt_text": "note {title|none}: "},
        {"topics": ["rows"], "text": "note", "envelope": "debezium", "empty": "embed", "prompt": "{kind|document}"},
    ],
}
SETTINGS = Settings(model={"prompt_text": "title: {title|none} | "}, source=SOURCE)
VALUES: dict[str, list[Any]] = {
    "books": [{"title": "Tides", "body": "pull"}, {"title": "Alone"}],
    "tickets": [{"subject": "Help", "urgent": True}, {"subject": "Thanks", "title": "no title of ours"}],
    "plain": [{"text": "just a text"}, {"text": "one more", "title": "which values of this topic do not have"}],
    "rows": [{"op": "c", "after": {"note": " "}}, {"op": "u", "before": {}, "after": {"note": "n", "kind": "query"}}],
}


def read(
    *lines: Any, of: OfTopic = UNSAID, settings: Settings = SETTINGS, prompts: dict[str, str] = PROMPTS
) -> list[Text]:
    raw = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    return list(texts_of((), raw, Reading(settings, prompts, of)))


def streamed(topic: str, value: Any) -> tuple[str, str | None]:
    raw = value["text"] if topic == "plain" else json.dumps(value)
    document = decoder_for(SETTINGS, prompts=PROMPTS).decode(Record(Origin(topic, 0, 0, 0), b"k", raw.encode(), 0))
    assert isinstance(document, Document)
    return document.text, document.prompt


@pytest.mark.parametrize("topic", VALUES)
def test_text_and_prompt_of_a_line_are_those_of_the_streams_record(topic: str) -> None:
    wanted = [streamed(topic, value) for value in VALUES[topic]]
    assert [text[1:3] for text in read(*VALUES[topic], of=OfTopic(topic))] == wanted
    named = [{**value, "from": {"topic": topic}} for value in VALUES[topic]]
    assert [text[1:3] for text in read(*named, of=OfTopic(field="from.topic"))] == wanted


def test_each_line_may_name_its_own_topic() -> None:
    lines = [{**VALUES[topic][0], "topic": topic, "id": topic} for topic in VALUES]
    found = read(*lines, {"topic": "others", "title": "x"}, {"title": "SENTINEL"}, b"[1]", of=OfTopic(field="topic"))
    assert [text[1:3] for text in found[:4]] == [streamed(topic, values[0]) for topic, values in VALUES.items()]
    assert [text.id for text in found[:3]] == ["books", "tickets", "plain"]
    unread, unnamed, no_object = (text.refused for text in found[4:])
    assert unread is not None and unnamed is not None and no_object is not None
    assert unread.message == "field topic names a topic that the source does not read"
    assert unnamed.message == no_object.message == "field topic, which names the topic, is no text"


def test_a_line_without_its_envelope_is_the_row_and_a_deletion_has_no_text() -> None:
    row, flat, deleted, heartbeat = read(
        {"note": "n", "id": 7},
        {"note": "n", "__deleted": "false"},
        {"op": "d", "before": {"note": "SENTINEL"}, "after": None},
        {"ts_ms": 1},
        of=OfTopic("rows"),
    )
    assert row == Text("7", "n", "d: ")
    assert flat == Text("2", "n", "d: ")
    assert deleted.refused is not None and deleted.refused.message == "the line deletes a row, and has no text"
    assert heartbeat.refused is not None and heartbeat.refused.reason == "heartbeat"


def test_lines_of_which_nothing_is_said_are_of_topics_without_a_mapping() -> None:
    assert [text[1:3] for text in read(*VALUES["books"])] == [streamed("books", value) for value in VALUES["books"]]
    every = Settings(source={**SOURCE, "topics": ["tickets", "plain", "rows"]})
    with pytest.raises(SettingsError, match="every topic of the source has a mapping of its own: say which"):
        read({"text": "x"}, settings=every)
    assert read({"text": "x"}, settings=every, of=OfTopic("plain"))[0][1:3] == ("x", "note none: ")


def test_words_are_the_text_behind_their_topics_prompt() -> None:
    for topic, prompt in (("books", "title: none | "), ("tickets", "q: "), ("plain", "note none: "), ("rows", "d: ")):
        assert list(texts_of(["a"], None, Reading(SETTINGS, PROMPTS, OfTopic(topic)))) == [Text("1", "a", prompt)]


@pytest.mark.parametrize(
    ("of", "says"),
    [
        (OfTopic("tickts"), "--topic tickts is none that the source reads"),
        (OfTopic("tickets", "topic"), "--topic says which topic all lines are of"),
    ],
)
def test_what_cannot_be_meant_is_said(of: OfTopic, says: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Reading(SETTINGS, PROMPTS, of)
    assert says in str(caught.value)


def test_fields_are_those_that_lines_are_looked_at_for() -> None:
    assert Reading(SETTINGS, PROMPTS).fields == {"title", "body"}
    assert Reading(SETTINGS, PROMPTS, OfTopic("tickets")).fields == {"urgent", "subject"}
    every = Reading(SETTINGS, PROMPTS, OfTopic(field="of.topic"))
    assert every.fields == {"of", "title", "body", "urgent", "subject", "text", "note", "kind"}
    assert Reading(Settings(source={"text": "{a.b}{c}"}), {}).text_fields == ("a.b", "c")


def test_any_topic_will_do_where_the_source_names_none() -> None:
    given = Settings(source={"text": "t", "mappings": [{"pattern": "x.*", "text": "x"}]})
    assert read({"x": "of x", "t": "of all"}, settings=given, of=OfTopic("xs"))[0].text == "of x"
    assert read({"x": "of x", "t": "of all"}, settings=given, of=OfTopic("other"))[0].text == "of all"
