"""A batch job that is killed at half, driver and Ray and all, and run again: each row once, and no finished part made anew.

``python -m tests.batch_kill --rows 100000`` shows it on this machine, with the packaged model and texts of a dozen tokens, and says
how far off the forecast was that the second run gave after its first tenth.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from tests.integration.pipeline import Pipeline, wait_until

WORDS = (
    *("moon", "tide", "river", "stone", "paper", "letter", "market", "garden"),
    *("winter", "signal", "engine", "harbor", "copper", "violet", "music", "answer"),
)


def write_rows(folder: Path, count: int) -> None:
    """Half of them JSON lines, half Parquet; ids ``r0`` and so on."""
    draw = random.Random(7)
    rows = [{"id": f"r{n}", "text": f"{n}: {' '.join(draw.choices(WORDS, k=8))}"} for n in range(count)]
    folder.mkdir()
    with (folder / "a.jsonl").open("w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows[: count // 2])
    pq.write_table(pa.Table.from_pylist(rows[count // 2 :]), folder / "b.parquet", row_group_size=5000)


def parts(folder: Path) -> dict[str, int]:
    """The parts that an output has, with when each was written."""
    return {path.name: path.stat().st_mtime_ns for path in folder.rglob("batch-*/*.parquet")}


def _folders(settings: dict[str, Any]) -> list[Path]:
    return [Path(output["uri"].removeprefix("file://")) for output in settings["outputs"]]


def killed_and_run_again(folder: Path, settings: dict[str, Any], at: int, *, terminate: bool = False) -> dict[str, Any]:
    """Run a job, kill all of it once an output has ``at`` parts, run it again; the second run's summary, checked.

    ``terminate``: between the two, run it until it has a few parts more, and end it by SIGTERM.
    """
    vectors = Path(settings["outputs"][0]["uri"].removeprefix("file://"))
    with Pipeline(folder, settings, "pipelines batch --json") as job:
        wait_until(lambda: len(parts(vectors)) >= at, 900, job.tail)
        job.kill_everything()
        if terminate:
            before = len(parts(vectors))
            job.start()
            wait_until(lambda: len(parts(vectors)) >= before + 5, 120, job.tail)
            assert job.terminate(120) == 130, job.tail()
            assert json.loads(job.tail(1))["complete"] is False
        before = parts(vectors)
        # Found is what every output has: the kill may have come between the files of one part.
        whole = set.intersection(*(set(parts(folder)) for folder in _folders(settings)))
        started = time.monotonic()
        job.start()
        assert job.process is not None
        assert job.process.wait(900) == 0, job.tail()
        said: dict[str, Any] = json.loads(job.tail(1)) | {"again_seconds": round(time.monotonic() - started, 1)}
    assert before.items() <= parts(vectors).items(), "a part that was there was written again"
    assert said["complete"] and said["found"]["parts"] == len(whole) and said["made"]["parts"] > 0, (said, len(whole))
    assert said["parts"] == len(parts(vectors)) == said["found"]["parts"] + said["made"]["parts"]
    assert said["rows"] == said["found"]["rows"] + said["made"]["rows"]
    return said


def require_each_once(folder: Path, count: int) -> None:
    """Every id of :func:`write_rows` is there once."""
    found = pl.read_parquet(folder / "**/*.parquet", columns=["id"])["id"]
    assert len(found) == count, f"{len(found)} rows of {count}"
    assert set(found) == {f"r{n}" for n in range(count)}


def main() -> None:
    """Show it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--model", default="all-MiniLM-L6-v2")
    parser.add_argument("--replicas", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_rows(folder / "in", options.rows)
        settings = {
            "model": {"name": options.model},
            "source": {"id": "id"},
            "batch": {"inputs": [str(folder / "in")], "rows": 2000},
            "outputs": [{"kind": "parquet", "uri": f"file://{folder}/vectors"}],
            "pool": {"max": options.replicas},
        }
        said = killed_and_run_again(folder, settings, at=options.rows // 2000 // 2)
        require_each_once(folder / "vectors", options.rows)
    print(json.dumps(said, indent=2))
    found, made = said["found"], said["made"]
    print(
        f"\n{found['rows']:,} rows in {found['parts']} parts were there after the kill, and stayed; the second run made "
        f"{made['rows']:,} in {made['parts']}, each row of {said['rows']:,} once, in {said['working_seconds']:.0f} s at work "
        f"({said['rows_per_second']:,.0f} rows/s, the encoder busy for {said['encoders_busy']:.0%}); its forecast after the first "
        f"tenth was off by {said['eta_error_after_first_tenth']:+.1%}"
    )


if __name__ == "__main__":
    main()
