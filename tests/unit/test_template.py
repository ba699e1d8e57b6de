"""What a template takes, what it refuses, and what it makes of fields."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.codecs.brace_template import BraceTemplate
from workers.codecs.template import parse_template, parse_text
from workers.errors import PoisonError

NAMES = st.text(st.characters(exclude_characters="{}|.%#", exclude_categories=("Cs", "Z", "C")), min_size=1).filter(
    lambda name: not name.isdecimal()
)


def render(source: str, **values: object) -> str:
    return parse_template(source).render(values)


def reason(source: str, **values: object) -> str:
    with pytest.raises(PoisonError) as caught:
        render(source, **values)
    assert caught.value.stage == "text"
    return caught.value.reason


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("body", "text"),
        ("{body}", "text"),
        ("doc.body", "inner"),
        ("{doc.deep.er}", "innermost"),
        ("{title}\n{body}", "head\ntext"),
        ("{missing|none}: {body}", "none: text"),
        ("{null|none}{body}", "nonetext"),
        ("{missing|}{body}", "text"),
        ("{title|none}{missing|a|b}", "heada|b"),
        ("{ title } {body}", "head text"),
        ("{count} {share} {yes}", "3 1.5 true"),
        ("{doc.missing|x}{body.of|y}", "xy"),
        ("{first name} {body}", "Ada text"),
    ],
)
def test_renders(source: str, expected: str):
    values = {
        "body": "text",
        "title": "head",
        "null": None,
        "count": 3,
        "share": 1.5,
        "yes": True,
        "first name": "Ada",
        "doc": {"body": "inner", "deep": {"er": "innermost"}},
    }
    assert parse_template(source).render(values) == expected


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("", "field name"),
        ("two words", "in braces"),
        ("{body", "nothing closes"),
        ("{title {body}", "nothing closes"),
        ("body}", "nothing opens"),
        ("{body}}", "nothing opens"),
        ("{}", "without a name"),
        ("{|none}", "without a name"),
        ("{a..b}", "without a name"),
        (".a", "without a name"),
        ("{0}", "counts fields"),
        ("{{body}} {body}", "{{ body }} and not {body}"),
        ("{{ '{body}' }}", "names no field"),
    ],
)
def test_refuses_what_is_no_template(source: str, says: str):
    with pytest.raises(ValueError, match=re.escape(says) if source else "without a name"):
        parse_template(source)


def test_a_text_with_fields_may_have_none():
    assert parse_text("query: ").render({}) == "query: "
    assert parse_text("").render({"a": "b"}) == ""
    assert parse_text("{{ '{literal}' }} braces").render({}) == "{literal} braces"
    assert parse_text("two words, {title|none} | ").render({"title": "T"}) == "two words, T | "
    for wrong in ("{title", "title}", "{}"):
        with pytest.raises(ValueError, match=r"brace|name"):
            parse_text(wrong)


@pytest.mark.parametrize(("source", "all_of_them"), [("q: ", True), ("{a|x}{b|}", True), ("{a|x}{b}", False)])
def test_it_knows_whether_every_field_has_a_default(source: str, all_of_them: bool):
    assert parse_text(source).has_defaults is all_of_them


def test_what_has_no_jinja_in_it_is_not_jinjas():
    for plain in ("body", "{body}", "{a|%} {b} # }".replace(" }", "")):
        assert isinstance(parse_template(plain), BraceTemplate)


def test_fields_are_named_once_in_order():
    assert parse_template("{b.c} {a|x} {b.c}").fields == ("b.c", "a")


def test_a_missing_and_a_null_field_are_named():
    assert reason("{body}") == "missing_field"
    assert reason("{body}", body=None) == "missing_field"
    with pytest.raises(PoisonError, match=r"field doc\.body is missing"):
        render("doc.body", doc="no object")


def test_one_field_alone_takes_strings_only():
    for value in (3, 1.5, True, [], {}):
        assert reason("body", body=value) == "wrong_type"


def test_a_longer_template_takes_no_lists_objects_or_infinities():
    for value in ([], {}, float("inf"), float("nan")):
        assert reason("{body}.", body=value) == "wrong_type"


def test_an_id_takes_strings_and_whole_numbers():
    template = parse_template("{tenant}-{n}")
    assert template.render_id({"tenant": "a", "n": 10**30}) == f"a-{10**30}"
    assert parse_template("n").render_id({"n": 7}) == "7"
    for value, expected in ((1.0, "wrong_type"), (True, "wrong_type"), (None, "missing_id")):
        with pytest.raises(PoisonError) as caught:
            template.render_id({"tenant": "a", "n": value})
        assert caught.value.reason == expected


@given(st.text())
def test_any_setting_is_a_template_or_a_value_error(source: str):
    try:
        template = parse_template(source)
    except ValueError as error:
        assert len(str(error).splitlines()) == 1
    else:
        assert template.fields and set(".".join(path) for path in template.needed) <= set(template.fields)


@given(st.lists(st.one_of(st.text(), NAMES.map(lambda name: (name,))), min_size=1), st.text())
def test_renders_back_literals_and_fields(parts: list[str | tuple[str]], value: str):
    """Literals and fields, joined, come back with every field's value in its place."""
    parts = [part if isinstance(part, tuple) else part.replace("{", "").replace("}", "") for part in parts]
    if not any(isinstance(part, tuple) for part in parts):
        parts = [*parts, ("name",)]
    source = "".join("{" + part[0] + "}" if isinstance(part, tuple) else part for part in parts)
    values = {part[0]: value for part in parts if isinstance(part, tuple)}
    expected = "".join(value if isinstance(part, tuple) else part for part in parts)
    assert parse_template(source).render(values) == expected
