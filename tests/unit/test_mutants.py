"""The list of mutants is not stale: what each takes away stands there once, and the tests that must notice are there."""

from __future__ import annotations

import pytest

from tests.mutants import MUTANTS, ROOT, Mutant


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_what_a_mutant_takes_away_stands_there_once(mutant: Mutant):
    assert (ROOT / mutant.file).read_text("utf-8").count(mutant.text) == 1
    for test in mutant.tests:
        file, _, name = test.partition("::")
        assert f"def {name}(" in (ROOT / file).read_text("utf-8") if name else (ROOT / file).is_file()
