"""``bench pipeline`` with real parts: a broker, Ray, processes of their own. Figures are looked at for sense, not for speed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from pipelines.bench.command import run_bench
from pipelines.bench.pipeline.plumbing import THREADS
from tests.integration.pipeline import wait_until
from workers.errors import SettingsError

ROOT = Path(__file__).parents[2]


def bench(folder: Path, *words: str) -> tuple[str, dict, str]:
    """What the command prints, its JSON and its Markdown."""
    done = subprocess.run(
        [sys.executable, "-m", "pipelines", "bench", "pipeline", *words, "--out", str(folder / "out")],
        cwd=ROOT,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((folder / "out/pipeline.json").read_text())
    return done.stdout, found, (folder / "out/pipeline.md").read_text()


@pytest.mark.soak
def test_the_way_is_measured_beside_the_client_alone_and_over_ten_times_the_records(tmp_path: Path):
    out, found, page = bench(tmp_path, "--parts", "plumbing,growth", "--records", "2000", "--rounds", "1")
    plumbing = found["parts"]["plumbing"]
    (ours,), (bare,) = plumbing["rounds"]["ours"], plumbing["rounds"]["bare"]
    assert ours["records"] == bare["records"] == 2000
    # Per core means CPU, and CPU of threads adds up to that of the process.
    assert plumbing["per_core_percent"] == [pytest.approx(100 * bare["cpu_s"] / ours["cpu_s"])]
    assert sum(ours["threads"].values()) == pytest.approx(ours["cpu_s"], rel=0.1)
    assert all(any(name.startswith(start) for name in ours["threads"]) for start in THREADS)
    assert 1536 < plumbing["bytes"] < 2200  # 384 floats, and what stands in headers
    small, large = found["parts"]["growth"]["rounds"]
    assert (small["records"], large["records"]) == (1000, 10_000)
    assert found["command"].startswith("stream-embedder bench pipeline --parts plumbing,growth")
    for text in (out, page):
        assert "kafka-python alone" in text and "Ten times the records" in text
    assert "| loop | records/s |" in page and page.startswith("```\nstream-embedder bench pipeline")


@pytest.mark.soak
def test_replicas_scale_through_serve_and_as_plain_actors(tmp_path: Path):
    words = ["--parts", "replicas", "--replicas", "2", "--seconds", "6", "--call-ms", "100"]
    _, found, page = bench(tmp_path, *words)
    replicas = found["parts"]["replicas"]
    assert replicas["replicas"] == [1, 2]
    for way in ("Ray Serve", "plain actors"):
        one, two = replicas["calls_per_s"][way]
        assert 1 < one <= 10.5 and one < two <= 21  # a call every 100 ms for each, and never more
    assert (tmp_path / "out/replicas.svg").is_file() and (tmp_path / "out/replicas.png").is_file()
    assert "Simulated GPUs, 100 ms a call" in page


@pytest.mark.soak
def test_the_whole_pipeline_and_a_hot_partition(tmp_path: Path):
    words = ["--parts", "whole,hot", "--texts", "3000", "--records", "2000", "--rounds", "1"]
    _, found, page = bench(tmp_path, *words)
    whole, hot = found["parts"]["whole"], found["parts"]["hot"]
    (share,) = whole["percent"]["1"]
    assert 0 < share < 150 and whole["tokens_per_s"]["alone"]["1"][0] > 100
    assert hot["records"] == 400
    assert all(0 < rate < 1000 for rates in hot["records_per_s"].values() for rate in rates)
    assert "90 % of the records in one" in page


@pytest.mark.soak
def test_nodes_are_lost_and_no_record_is(tmp_path: Path):
    """One that is told, one that is not, and the head, whose state is on disk: four nodes want the machine to themselves."""
    _, found, page = bench(tmp_path, "--parts", "losses", "--seconds", "6")
    losses = found["parts"]["losses"]
    assert losses["sent"] > 1000 and (losses["lost"], losses["twice"]) == (0, 0)
    told, untold, head = losses["losses"]
    assert told["failed_calls"] == 0, "a node that is told hands its work over"
    assert head["failed_calls"] == 0 and head["silence_s"] <= head["took_s"], "the head is not on the way"
    assert "a node by SIGKILL" in page and untold["silence_s"] < 60
    assert (tmp_path / "out/losses.svg").is_file()


@pytest.mark.soak
def test_a_bench_that_is_told_to_end_leaves_nothing_running(tmp_path: Path):
    words = ["--parts", "whole", "--texts", "5000", "--rounds", "1", "--out", str(tmp_path / "out")]
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines", "bench", "pipeline", *words],
        cwd=ROOT,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "TMPDIR": str(tmp_path)},
    )
    try:
        wait_until(
            lambda: any(tmp_path.glob("bench-pipeline-*/whole-0-1.log")), 200, lambda: "the pipeline did not start"
        )
        process.terminate()
        assert process.wait(150) == 128 + signal.SIGTERM
    finally:
        process.kill()
    left = [
        one.info["cmdline"] for one in psutil.process_iter(["cmdline"]) if str(tmp_path) in str(one.info["cmdline"])
    ]
    assert not left


def test_a_part_that_is_not_there_is_named():
    with pytest.raises(SettingsError, match="there is no part 'plumming': did you mean plumbing"):
        run_bench(["pipeline", "--parts", "plumming"], {})
