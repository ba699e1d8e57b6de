"""Templates of Jinja's: what they make, what they refuse when they are compiled, and that none can hang."""

from __future__ import annotations

import datetime
import re
import uuid
from collections.abc import Mapping
from decimal import Decimal
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.codecs.jinja_filters import FILTERS, TESTS
from workers.codecs.jinja_template import MOST_CHARACTERS, MOST_ITEMS, JinjaTemplate
from workers.codecs.plain import UNAVAILABLE
from workers.codecs.template import parse_template, parse_text
from workers.errors import PoisonError

VALUES: dict[str, Any] = {
    "title": "Tides",
    "body": "The moon pulls.",
    "null": None,
    "empty": "",
    "count": 3,
    "share": 1.5,
    "yes": True,
    "price": Decimal("12.50"),
    "day": datetime.date(2026, 5, 1),
    "tags": ["b", "a", "b"],
    "people": [{"name": "Ada", "year": 1815}, {"name": "Alan", "year": 1912, "of": None}],
    "doc": {"items": "not a method", "deep": {"er": "innermost"}, "0": "zero"},
    "product-name": "hyphen",
    "loop": "a field",
    "kind": "query",
}


def render(source: str, values: Mapping[str, object] = VALUES) -> str:
    return parse_text(source).render(values)


def refused(source: str, values: Mapping[str, object] = VALUES) -> PoisonError:
    with pytest.raises(PoisonError) as caught:
        render(source, values)
    assert caught.value.stage in ("text", "decode")
    return caught.value


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{{ title }}: {{ body }}", "Tides: The moon pulls."),
        ("{% if title %}title: {{ title }} | {% endif %}{{ body }}", "title: Tides | The moon pulls."),
        ("{% if gone %}x{% elif null %}y{% elif empty %}z{% else %}none{% endif %}", "none"),
        ("{{ gone | default('none') }} {{ null | d('none') }} {{ empty | d('none') }}|", "none none |"),
        ("{{ empty | default('none', true) }} {{ empty or null or gone or title }}", "none Tides"),
        ("{{ gone.of.it | default('none') }}", "none"),
        (
            "{{ 'task: search | query: ' if kind == 'query' else 'passage: ' }}{{ title }}",
            "task: search | query: Tides",
        ),
        ("{{ 'a title: ' if gone }}{{ title }}", "Tides"),
        ("{{ count }} {{ share }} {{ yes }} {{ price }} {{ day }}", "3 1.5 true 12.50 2026-05-01"),
        ("{{ doc.items }} {{ doc.deep.er }} {{ doc['0'] }}", "not a method innermost zero"),
        ("{{ fields['product-name'] }} {{ fields.loop }} {{ loop }}", "hyphen a field a field"),
        ("{{ tags | join(', ') }}", "b, a, b"),
        ("{{ tags | unique | sort | join('-') | upper }}", "A-B"),
        ("{{ people | map(attribute='name') | join(' and ') }}", "Ada and Alan"),
        ("{{ people | sort(attribute='year', reverse=true) | map(attribute='name') | first }}", "Alan"),
        (
            "{% for each in people %}{{ loop.index }} {{ each.name }}{{ ', ' if not loop.last }}{% endfor %}",
            "1 Ada, 2 Alan",
        ),
        ("{% for each in people if each.year > 1900 %}{{ each.name }}{% else %}nobody{% endfor %}", "Alan"),
        ("{% for each in gone or [] %}x{% else %}nobody{% endfor %}", "nobody"),
        ("{% for name, value in doc.deep | items %}{{ name }}={{ value }}{% endfor %}", "er=innermost"),
        (
            "{{ doc.deep | tojson }} {{ people | length }} {{ tags | last }} {{ tags | reverse | first }}",
            '{"er":"innermost"} 2 b b',
        ),
        ("{{ title[:2] }} {{ tags[0] }} {{ tags[1:] | join }}", "Ti b ab"),
        ("{{ title | lower | replace('t', '') | capitalize | trim }}", "Ides"),
        ("{{ body | truncate(9) }} {{ body | truncate(6, true, '') }} {{ 'a tale' | title }}", "The... The mo A Tale"),
        ("{{ 'yes' if count is number and title is string and doc is mapping and yes is boolean }}", "yes"),
        ("{{ 'yes' if gone is not defined and null is none and gone is undefined and title is defined }}", "yes"),
        ("{{ 'yes' if 'b' in tags and 'x' not in tags and -1 < count <= 3 and not null }}", "yes"),
        ("{{ [none, '', 'x'] | select | join }}", "x"),
        ("{{ title }}{% if empty %}x{% endif %}\n{{ body }}\n", "Tides\nThe moon pulls.\n"),
        ("{% if title -%}\n  {{ title }}\n{%- endif %}\n{{ body }}", "Tides\nThe moon pulls."),
        ("{# nobody sees this #}{{ '{title}' }}", "{title}"),
        ("a line\n", "a line\n"),
    ],
)
def test_renders(source: str, expected: str):
    assert render(source) == expected
    assert render(source, MappingProxyType(VALUES)) == expected


@pytest.mark.parametrize(
    ("source", "reason", "says"),
    [
        ("{{ gone }}", "missing_field", "field gone is missing or null"),
        ("{{ null }}", "missing_field", "field null is missing or null"),
        ("{{ doc.deep.no }}", "missing_field", "field doc.deep.no is missing"),
        ("{{ title.no }}", "missing_field", "field title.no is missing"),
        ("{{ title.__class__ }}", "missing_field", "field title.__class__ is missing"),
        ("{{ gone | upper }}", "missing_field", "field gone is missing"),
        ("{{ null | join }}", "missing_field", "field null is missing"),
        ("{% for each in gone %}{% endfor %}", "missing_field", "field gone is missing"),
        (
            "{% for each in people %}{{ each.of }}{% endfor %}",
            "missing_field",
            "an expression of the template is missing",
        ),
        ("{{ tags[9] }}", "missing_field", "an expression of the template is missing"),
        ("{{ gone < 3 }}", "missing_field", "needs a value that is missing"),
        ("{{ doc }}", "wrong_type", "field doc is an object"),
        ("{{ tags }}", "wrong_type", "field tags is a list"),
        ("{% for each in title %}{% endfor %}", "wrong_type", "field title is a string"),
        ("{{ title | join }}", "wrong_type", "takes lists, and the value is a string"),
        ("{{ tags | upper }}", "wrong_type", "takes texts and numbers, and the value is a list"),
        ("{{ people | map(attribute='of') | join }}", "wrong_type", "the value is missing or null"),
        ("{{ people | join }}", "wrong_type", "the value is an object"),
        ("{{ count | length }}", "wrong_type", "takes texts, lists and objects, and the value is a whole number"),
        ("{{ title < 3 }}", "template_failed", "TypeError"),
        ("{{ people | unique | length }}", "template_failed", "TypeError"),
        ("{{ body | truncate(1) }}", "template_failed", "AssertionError"),
    ],
)
def test_what_a_record_does_not_have_makes_it_a_dead_letter(source: str, reason: str, says: str):
    error = refused(source)
    assert error.reason == reason
    assert says in error.message


def test_no_part_of_a_record_is_in_a_message():
    for values in ({"a": ["SENTINEL"]}, {"a": {"SENTINEL": 1}}, {"a": "SENTINEL"}):
        for source in (
            "{{ a }}",
            "{{ a.b }}",
            "{{ a | join }}",
            "{{ a < 1 }}",
            "{{ a | sort | first | upper }}",
            "{{ a[0].b }}",
        ):
            try:
                render(source, values)
            except PoisonError as error:
                assert "SENTINEL" not in error.message


def test_bytes_are_no_text_and_a_column_that_did_not_travel_is_said():
    assert refused("{{ raw }}", {"raw": b"x"}).reason == "wrong_type"
    for source in (
        "{{ a }}",
        "{{ 'x' if a }}",
        "{{ d.a }}",
        "{{ a | default('x') }}",
        "{{ fields.a }}",
        "{{ fields | tojson }}",
    ):
        assert refused(source, {"a": UNAVAILABLE, "d": {"a": UNAVAILABLE}}).reason == "unavailable_value"
    assert render("{{ b }}", {"a": UNAVAILABLE, "b": "x"}) == "x"


def test_an_id_has_one_way_to_be_written():
    known = uuid.UUID(int=7)
    template = parse_template("{% if tenant %}{{ tenant }}-{% endif %}{{ n }}")
    assert template.render_id({"tenant": "a", "n": 10**30}) == f"a-{10**30}"
    assert template.render_id({"n": known}) == str(known)
    for value, expected in ((1.0, "wrong_type"), (True, "wrong_type"), (None, "missing_id")):
        with pytest.raises(PoisonError) as caught:
            template.render_id({"n": value})
        assert caught.value.reason == expected


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("{{ title", "line 1 of the template: unexpected end of template"),
        ("a\n{% if title %}", "line 2 of the template: Unexpected end of template"),
        ("{{ title }} {body}", "{{ body }} and not {body}"),
        ("{% if a %}{{ a }}{% endif %}{b|none}", "{{ b }} and not {b}"),
        ("{{ title | uper }}", "there is no filter uper: did you mean upper?"),
        ("{{ title | xyzzy }}", "there is no filter xyzzy: there are capitalize, count"),
        ("{{ title is texty }}", "there is no test texty: there are boolean, defined"),
        ("{{ title | truncate(1, 2, 3, 4) }}", "filter truncate does not take these arguments"),
        ("{{ tags | map('upper') | join }}", "filter map does not take these arguments"),
        ("{{ title | lower(x=1) }}", "filter lower does not take these arguments"),
        ("{{ title is defined(3) }}", "test defined does not take these arguments"),
        ("{{ title | join(*tags) }}", "takes its arguments one by one"),
        ("{{ title.upper() }}", "a template calls nothing"),
        ("{{ range(10) }}", "a template calls nothing"),
        ("{{ lipsum() }}", "a template calls nothing"),
        ("{{ 'x' * 1000000000 }}", "does not calculate"),
        ("{{ count ** count }}", "does not calculate"),
        ("{{ '%1000000000d' % count }}", "does not calculate"),
        ("{{ title ~ body }}", "does not calculate"),
        ("{{ product-name }}", "fields['product-name']"),
        ("{% set a = title %}{{ a }}", "{% set %} is not taken here"),
        ("{% set a %}{{ title }}{% endset %}", "{% set %} is not taken here"),
        ("{% macro m() %}{% endmacro %}", "{% macro %} is not taken here"),
        ("{% include 'x' %}", "{% include %} is not taken here"),
        ("{% import 'x' as y %}", "{% import %} is not taken here"),
        ("{% from 'x' import y %}", "{% import %} is not taken here"),
        ("{% extends 'x' %}", "{% extends %} is not taken here"),
        ("{% block b %}{% endblock %}", "{% block %} is not taken here"),
        ("{% filter upper %}{{ title }}{% endfilter %}", "{% filterblock %} is not taken here"),
        ("{% with a = 1 %}{% endwith %}", "{% with %} is not taken here"),
        ("{% call title() %}{% endcall %}", "{% call %} is not taken here"),
        ("{% for a in tags recursive %}{% endfor %}", "may not be recursive"),
        ("{{ {'a': 1} }}", "dict is not taken here"),
        ("{{ self }}", "write fields.self"),
        ("{{ caller.x }}", "write fields.caller"),
        ("{% for a in b %}" * 30 + "{% endfor %}" * 30, "nested too deeply"),
        ("{{ " + "(" * 5000 + "a" + ")" * 5000 + " }}", "nested too deeply"),
        ("{{ 1 }}", "names no field"),
    ],
)
def test_what_is_not_taken_is_said_when_it_is_compiled(source: str, says: str):
    with pytest.raises(ValueError, match=re.escape(says)) as caught:
        parse_template(source)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in many %}{% for b in many %}x{% endfor %}{% endfor %}",
        "{% for a in many %}{{ many | join }}{% endfor %}",
        "{% for a in many %}{{ long }}{% endfor %}",
        "{% for a in many %}{{ 'x' if long | upper == a }}{% endfor %}",
        "{{ long | replace('a', long) }}",
        "{{ many | join(long) }}",
        "{% for a in many %}{{ many | sort | length }}{% endfor %}",
        "{% for a in many %}{{ many | tojson | length }}{% endfor %}",
        "{% for a in many %}{% if a in known %}x{% endif %}{% endfor %}",
        "{% for a in many if a not in known %}x{% endfor %}",
        "{% for a in many %}{% if 'b' in long %}x{% endif %}{% endfor %}",
        "{% for a in many %}{% if known == same %}x{% endif %}{% endfor %}",
        "{% for a in many %}{% if long < alike %}x{% endif %}{% endfor %}",
        "{% for a in many %}{% if doc == other %}x{% endif %}{% endfor %}",
        "{% for a in many %}{% if long[1:] %}x{% endif %}{% endfor %}",
        "{% for a in many %}{% if known[1:] %}x{% endif %}{% endfor %}",
        "{% for a in many %}{{ [long, alike] | sort | length }}{% endfor %}",
        "{% for a in many %}{{ [long, alike] | unique | length }}{% endfor %}",
        "{{ many | sort(attribute=long) | length }}",
    ],
)
def test_what_blows_up_is_a_dead_letter_before_it_does(source: str):
    values = {"many": ["a"] * (MOST_ITEMS // 2), "long": "a" * 100_000, "alike": "a" * 100_001}
    values |= {"known": list(map(str, range(10_000))), "same": list(map(str, range(10_000)))}
    values |= {"doc": {"a": {"b": values["known"]}}, "other": {"a": {"b": values["same"]}}}
    error = refused(source, values)
    assert error.reason == "too_much"
    assert f"{MOST_ITEMS:,} items, or {MOST_CHARACTERS:,} characters" in error.message
    assert render("{% for a in many %}{{ a }}{% endfor %}{{ long }}", values) == "a" * (100_000 + MOST_ITEMS // 2), (
        "and no less"
    )


def test_what_is_compared_in_a_text_of_use_is_not_too_much():
    """A thousand tags, each looked for among a thousand."""
    values = {
        "tags": list(map(str, range(1_000))),
        "known": list(map(str, range(0, 2_000, 2))),
        "a": {"b": "x" * 1_000_000},
    }
    source = (
        "{% for tag in tags if tag in known %}{{ tag }}{% endfor %}{% if 'b' in a and a.b[:1] == 'x' %}!{% endif %}"
    )
    assert render(source, values) == "".join(map(str, range(0, 1_000, 2))) + "!"


def test_what_is_no_name_is_not_written_down_to_find_nothing():
    class Shown(list[str]):
        def __repr__(self) -> str:
            raise AssertionError

    values = {"m": {"a": "b"}, "list": ["x"], "known": Shown(["a"])}
    assert render("{{ m[known] | default('none') }}{{ list[known] | default('none') }}", values) == "nonenone"


def test_it_knows_its_fields_and_which_of_them_are_needed():
    source = (
        "{% if title is defined %}{{ title }}{% endif %}{{ a.b | default('x') }}{{ c or d['e-f'] }}{{ list[0].g }}"
        "{% for h in people if h.year %}{{ h.name }}{{ loop.index }}{% endfor %}{{ fields['i-j'] }}{{ k | join(l) }}"
    )
    template = parse_template(source)
    assert template.fields == ("title", "a.b", "c", "d.e-f", "list", "people", "i-j", "k", "l")
    assert template.needed == (("title",), ("c",), ("d", "e-f"), ("list",), ("people",), ("i-j",), ("k",), ("l",))
    assert not template.has_defaults
    assert parse_text("{{ a | default('x') }}{% if b %}{{ b }}{% endif %}").has_defaults
    assert parse_text("{{ '{' }}").fields == ()
    assert parse_template("{{ fields | tojson }}").fields == ("fields",)


FRAGMENTS = st.sampled_from(
    [
        "{{ ",
        " }}",
        "{% ",
        " %}",
        "{",
        "}",
        "if ",
        "for ",
        "a",
        " in ",
        "else",
        "endif",
        "endfor",
        ".",
        "[",
        "]",
        "(",
        ")",
        "|",
        "'",
    ]
    + [
        "b",
        "'x'",
        "1",
        " is ",
        " not ",
        ",",
        "=",
        "==",
        "-",
        "{#",
        "#}",
        "\n",
        "fields",
        "loop",
        "raw",
        "endraw",
        ":",
        " and ",
    ]
    + [f" {name} " for name in (*FILTERS, *TESTS)]
)


@given(
    st.lists(FRAGMENTS, max_size=12).map("".join),
    st.dictionaries(
        st.sampled_from("ab"),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=3),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
            max_leaves=6,
        ),
    ),
)
def test_any_setting_is_a_template_or_a_sentence_and_any_record_a_text_or_a_dead_letter(
    source: str, values: dict[str, Any]
):
    try:
        template = JinjaTemplate.parse(source)
    except ValueError as error:
        assert len(str(error).splitlines()) == 1
        return
    for made in (template.render, template.render_id):
        try:
            assert isinstance(made(values), str)
        except PoisonError as error:
            assert error.stage in ("text", "decode")
