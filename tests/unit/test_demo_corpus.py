"""The demo's texts: enough of them, in an order that samples fairly, and without importing what they describe."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pipelines.demo import DEFAULT_ROWS
from pipelines.demo_corpus import SHORTEST, Doc, documents


@pytest.fixture(scope="module")
def everything() -> list[Doc]:
    return list(documents())


def test_there_are_thousands_of_real_texts(everything: list[Doc]):
    assert len(everything) > 3000
    by_id = {doc.id: doc for doc in everything}
    assert by_id["textwrap.dedent"].title == "function textwrap.dedent"
    assert by_id["textwrap.dedent"].body.startswith("Remove any common leading whitespace")
    assert by_id["collections.OrderedDict.move_to_end"].title == "method collections.OrderedDict.move_to_end"
    assert by_id["str.splitlines"].body.startswith("Return a list of the lines")
    assert "help.lambda" in by_id


def test_no_id_and_no_body_comes_twice_and_none_is_short(everything: list[Doc]):
    assert len({doc.id for doc in everything}) == len(everything)
    assert len({doc.body for doc in everything}) == len(everything)
    assert all(len(doc.body) >= SHORTEST and doc.body == doc.body.strip() for doc in everything)


def test_a_few_rows_are_a_sample_of_all(everything: list[Doc]):
    few = list(documents(300))
    assert few == everything[:300]
    assert len({doc.id.split(".")[0] for doc in few}) > 60


def test_every_text_can_be_sent(everything: list[Doc]):
    for doc in everything:
        assert (doc.id + doc.title + doc.body).encode()


def test_nothing_is_imported_to_be_read():
    code = (
        "import sys; from pipelines.demo_corpus import documents; list(documents());"
        "print({'antigravity', 'this', 'tkinter', 'turtle', 'webbrowser'} & set(sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"


def test_the_demos_own_questions_have_their_answers_in_the_sample(everything: list[Doc]):
    sample = {doc.id for doc in everything[:DEFAULT_ROWS]}
    assert {"collections.Counter.most_common", "subprocess.getstatusoutput", "datetime.datetime.isoformat"} <= sample
