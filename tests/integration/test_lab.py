"""One plan of the fault lab, chosen so that the worst of each part falls in it; ``make soak`` runs the drawn ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lab.plan import Plan, Step
from tests.lab.stage import stage
from tests.lab.trial import trial
from tests.s3 import S3Server

pytestmark = pytest.mark.timeout(500)

PLAN = Plan(
    seed=0,
    sinks="topic and files",
    partitions=4,
    readers=2,
    conditions=frozenset({"poison text"}),
    topic={"format": "binary", "dim": 64},
    files={"precision": "float16", "dim": 16, "rotate": {"rows": 300, "seconds": 1}},
    steps=(
        Step(("reader killed", "S3 answers 500, but stores"), 0.5),
        Step(("broker killed",), 0.5),
        Step(("encoder killed", "S3 killed"), 0.5),
    ),
)


@pytest.mark.soak
def test_readers_encoders_broker_and_store_die_and_each_record_comes_once(s3: S3Server, tmp_path: Path) -> None:
    """``s3`` says why there is no S3 server, where there is none; the lab starts one of its own."""
    with stage(tmp_path) as servers:
        result = trial(PLAN, servers, 5_000)
    assert result.sound, "\n".join([*result.findings.examples, result.trouble])
