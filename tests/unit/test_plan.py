"""``plan`` on files: totals that hold what they say, by the code of the real thing; words, and mistakes."""

from __future__ import annotations

import csv
import gzip
import json
import math
import random
from collections.abc import Callable
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from pipelines.batch.inputs import find
from pipelines.batch.object_file import ObjectFile
from pipelines.batch.pieces import plan as cut
from pipelines.cli import main
from pipelines.model import Model
from pipelines.plan import command, files, words
from pipelines.plan.blocks import Block, Sampled
from pipelines.plan.estimate import Estimate, Stratum, quantile, together
from pipelines.plan.figures import Source, cost_of, figures
from pipelines.plan.outcomes import Profile
from pipelines.plan.rate import Rate
from tests.batch_job import Job
from tests.tiny_model import make_tiny_bert
from workers.settings import Settings

# ------------------------------------------------------------------ estimates


def test_a_total_holds_the_truth_about_as_often_as_it_says():
    """Blocks of records that are alike within a place: a formula for single records would be wrong most of the time."""
    draw = random.Random(1)
    whole = []
    for _ in range(500):
        level = draw.uniform(10, 100)
        records = draw.randrange(5, 40)
        whole.append((records, [draw.gauss(level, 3) for _ in range(records)]))
    truth = sum(sum(values) for _, values in whole)
    held, naive = 0, 0
    for seed in range(300):
        sample = random.Random(seed).sample(whole, 60)
        stratum = Stratum(500 * 10.0, (10.0,) * 60, whole=False)
        found = stratum.total([sum(values) for _, values in sample])
        assert found.error is not None
        held += abs(found.value - truth) <= found.error
        every = [value for _, values in sample for value in values]
        naive += abs(found.value - truth) <= 1.96 * float(np.std(every)) * math.sqrt(len(every)) * 500 / 60
    assert held >= 0.92 * 300
    assert naive < 0.75 * 300, "premise: blocks matter"


def test_what_was_looked_at_wholly_has_no_error_and_one_block_tells_nothing_of_its_own():
    assert Stratum(30.0, (10.0, 20.0), whole=True).total([1, 2]) == Estimate(3.0, 0.0)
    assert Stratum(30.0, (10.0,), whole=False).total([2]) == Estimate(6.0, None)
    assert Stratum(30.0, (), whole=False).total([]) == Estimate(0.0, None)
    # All but exactly proportional to the size: rows of Parquet are known without looking.
    assert Stratum(1000.0, (40.0, 40.0, 12.0), whole=False).total([40, 40, 12]) == Estimate(1000.0, 0.0)


def test_estimates_add_up_and_the_unknown_stays_unknown():
    assert together([Estimate(1, 3), Estimate(2, 4)]) == Estimate(3, 5)
    assert together([Estimate(1, 3), Estimate(2, None)]) == Estimate(3, None)
    assert Estimate(2, 1) * 10 == Estimate(20, 10)


def test_quantiles_go_by_weight():
    assert quantile([(1, 1), (2, 1), (3, 1), (4, 1)], 0.5) == 2
    assert quantile([(1, 1), (100, 9)], 0.5) == 100
    assert quantile([(5, 1)], 0.99) == 5
    assert quantile([], 0.5) == 0


# ------------------------------------------------------------------ samples of files

COUNT = 6_000


def texts() -> list[dict[str, str]]:
    draw = random.Random(5)
    return [{"id": f"r{n}", "text": f"{n} " + "x" * draw.randrange(10, 400)} for n in range(COUNT)]


def write_jsonl(folder: Path) -> None:
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts()))


def write_parquet(folder: Path) -> None:
    pq.write_table(pa.Table.from_pylist(texts()), folder / "a.parquet", row_group_size=700)


def write_small(folder: Path) -> None:
    """Many files of a line: every one of them is shorter than a block."""
    for row in texts()[:600]:
        (folder / f"{row['id']}.jsonl").write_text(json.dumps(row))


def write_csv(folder: Path) -> None:
    with (folder / "a.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["id", "text"], *(list(row.values()) for row in texts())])


def write_packed(folder: Path) -> None:
    draw = random.Random(6)
    letters = "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    with gzip.open(folder / "a.jsonl.gz", "wt") as file:
        file.writelines(
            json.dumps({"text": "".join(draw.choices(letters, k=draw.randrange(50, 500)))}) + "\n" for _ in range(COUNT)
        )


def sampled(folder: Path, wanted: int = 500) -> tuple[list[Sampled], Estimate]:
    """The sample, and how many records it makes of the whole."""
    settings = Settings(source={"text": "text"}, batch={"inputs": [str(folder)]})
    pieces = cut(find(settings.batch.inputs, "auto", []), settings).pieces
    found = files.sample_files(pieces, settings, wanted)
    return found, together(each.stratum.total([len(block.records) for block in each.blocks]) for each in found)


@pytest.mark.parametrize(
    ("write", "count", "exact"),
    [
        (write_jsonl, COUNT, False),
        (write_parquet, COUNT, True),
        (write_small, 600, False),
        (write_csv, COUNT, False),
        (write_packed, COUNT, False),
    ],
)
def test_the_records_of_every_format_are_estimated(
    tmp_path: Path, write: Callable[[Path], None], count: int, exact: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(files, "_FRONT_BYTES", 200_000)
    write(tmp_path)
    (found,), records = sampled(tmp_path)
    assert not found.whole and found.records < count
    assert records.error is not None and abs(records.value - count) <= 1.5 * records.error + 1e-6
    assert (records.error == 0) == exact and records.error < 0.15 * count
    origins = [(record.origin.topic, record.origin.offset) for block in found.blocks for record in block.records]
    assert len(set(origins)) == len(origins)
    assert found.from_the_front == (write in (write_csv, write_packed))


def test_rows_come_from_everywhere_of_a_file(tmp_path: Path):
    write_parquet(tmp_path)
    (found,), _ = sampled(tmp_path)
    offsets = np.array([record.origin.offset for block in found.blocks for record in block.records])
    assert 0.35 * COUNT < offsets.mean() < 0.65 * COUNT and offsets.max() > 0.9 * COUNT
    row = found.blocks[0].records[0]
    assert row.fields["text"] == texts()[row.origin.offset]["text"]  # type: ignore[attr-defined]


def test_a_table_is_read_once_whatever_the_number_of_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    draw = random.Random(7)
    rows = [{"text": f"{n} {draw.randbytes(100).hex()}"} for n in range(COUNT)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=COUNT // 2)
    asked = 0

    def readinto(self: ObjectFile, buffer: Any, original: Any = ObjectFile.readinto) -> int:
        nonlocal asked
        found: int = original(self, buffer)
        asked += found
        return found

    monkeypatch.setattr(ObjectFile, "readinto", readinto)
    (found,), _ = sampled(tmp_path)
    # Of a footer, 64 KiB are asked for; when the file is cut, too.
    assert len(found.blocks) >= 25 and asked < (128 << 10) + 1.05 * (tmp_path / "a.parquet").stat().st_size
    for record in (record for block in found.blocks for record in block.records):
        assert record.fields["text"] == rows[record.origin.offset]["text"]  # type: ignore[attr-defined]
    assert all(len(block.records) == block.size for block in found.blocks)


def test_what_is_small_is_read_whole(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n\n{"text": "b"}\n{"text": "c"}')
    (tmp_path / "b.csv").write_text('text\n"a\nb"\nlast')
    (tmp_path / "c.txt.gz").write_bytes(gzip.compress(b"one\n") + gzip.compress(b"two\nthree"))
    pq.write_table(pa.table({"text": ["x", "y"]}), tmp_path / "d.parquet")
    found, records = sampled(tmp_path)
    assert records == Estimate(10.0, 0.0)
    assert all(each.whole and not each.from_the_front for each in found)


def test_a_packed_file_that_is_broken_is_said(tmp_path: Path):
    (tmp_path / "a.jsonl.gz").write_bytes(b"no gzip")
    with pytest.raises(Exception, match=r"a\.jsonl\.gz: it is not packed by gzip"):
        sampled(tmp_path)


# ------------------------------------------------------------------ the command


@pytest.fixture
def plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """``plan(*words, **sections)`` → exit code, what it printed, and what it complained of; on the files in ``in``."""
    (tmp_path / "in").mkdir()

    def run(*arguments: str, **sections: Any) -> tuple[int, str, str]:
        whole = {
            "source": {"text": "{title|}{text}", "id": "id"},
            "batch": {"inputs": [str(tmp_path / "in")]},
            "outputs": [{"kind": "parquet", "uri": f"file://{tmp_path}/vectors", "include": ["title"]}],
            **sections,
        }
        (tmp_path / "job.yaml").write_text(yaml.safe_dump(whole))
        code = main(["plan", "-c", str(tmp_path / "job.yaml"), *arguments])
        return code, *capsys.readouterr()

    return run


def test_a_plan_counts_what_the_job_would(tmp_path: Path, plan: Callable[..., tuple[int, str, str]]):
    rows = [{"id": f"r{n}", "title": "t", "text": f"number {n} " * (3 * n + 1)} for n in range(90)]
    bad = ['{"id": "e", "text": ""}', "{broken", '{"text": "no id"}', '{"id": "s", "text": "t", "title": "\\ud800"}']
    lines = [*map(json.dumps, rows), json.dumps(rows[3]), *bad]
    (tmp_path / "in/a.jsonl").write_text("\n".join(lines))
    outputs = [
        {"kind": "parquet", "uri": f"file://{tmp_path}/whole", "include": ["title"]},
        {"kind": "parquet", "uri": f"file://{tmp_path}/half", "precision": "float16"},
        {"kind": "parquet", "uri": f"file://{tmp_path}/bits", "dim": 64, "precision": "ubinary"},
    ]
    code, out, _ = plan("--json", "--tokens-per-s", "1000", "--price-per-hour", "2", outputs=outputs, pool={"max": 4})
    said = json.loads(out)
    tokenizer = Model.open(Settings()).tokenizer()
    expected = [
        len(found.ids) for found in tokenizer.encode([f"t{row['text']}" for row in [*rows, rows[3]]], [None] * 91)
    ]  # type: ignore[union-attr]
    assert (code, said["job"], said["sample"]["whole"]) == (0, "batch", True)
    assert said["records"] == {"value": 95, "error": 0} and said["embedded"]["value"] == 91
    assert said["refused"]["value"] == 4 and said["sample"]["refused"] == {
        "text/empty": 1,
        "decode/invalid_json": 1,
        "text/missing_id": 1,
        "text/lone_surrogate": 1,
    }
    assert said["tokens"] == {"value": sum(expected), "error": 0}
    assert said["tokens_of_a_text"]["p99"] == max(expected) == 256
    assert said["truncated_share"] > 0.2 and said["sample"]["equal_texts"] >= 1
    assert said["bytes"] == {"value": (tmp_path / "in/a.jsonl").stat().st_size, "error": 0}
    whole, half, bits = (output["bytes_each"] for output in said["outputs"])
    # The vector's bytes, less what zstd gains (next to nothing on vectors), and the other columns.
    assert 0.9 * 1536 < whole < 1536 + 60 and 0.85 * 768 < half < 768 + 60 and 8 < bits < 8 + 60
    assert said["encoders"]["replica_hours"]["value"] == pytest.approx(sum(expected) / 1000 / 3600, abs=1e-6)
    assert said["encoders"]["hours"]["value"] == pytest.approx(sum(expected) / 4000 / 3600, abs=1e-6)
    assert said["encoders"]["price"]["value"] == pytest.approx(2 * sum(expected) / 1000 / 3600, abs=1e-6)
    assert not (tmp_path / "whole").exists(), "a plan writes nothing"
    batch = {"inputs": [str(tmp_path / "in")], "price_per_hour": 2}
    known = json.loads(plan("--json", "--tokens-per-s", "1000", batch=batch, outputs=outputs, pool={"max": 4})[1])
    assert known["encoders"] == said["encoders"]


def test_made_up_vectors_take_the_room_of_those_that_a_job_writes(
    tmp_path: Path, plan: Callable[..., tuple[int, str, str]]
):
    outputs = [
        {"kind": "parquet", "uri": f"file://{tmp_path}/int8", "dim": 256, "precision": "int8"},
        {"kind": "parquet", "uri": f"file://{tmp_path}/floats", "dim": 128, "compression": "snappy"},
    ]
    sections = {"source": {"text": "text", "id": "id"}, "outputs": outputs}
    job = Job(tmp_path, **sections, batch={"inputs": [str(tmp_path / "in")], "rows": 1000})
    job.texts("a.jsonl", [*texts()[:600]])
    said = json.loads(plan("--json", **sections)[1])
    job.run()
    for name, output in zip(("int8", "floats"), said["outputs"], strict=True):
        (written,) = (tmp_path / name).rglob("*.parquet")
        assert output["bytes_each"] == pytest.approx(written.stat().st_size / 600, rel=0.03)


def test_people_get_a_table_and_are_told_how_to_find_the_rate(
    tmp_path: Path, plan: Callable[..., tuple[int, str, str]]
):
    (tmp_path / "in/a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts()))
    (tmp_path / "in/broken.parquet").write_bytes(b"no")
    code, out, _ = plan("--records", "300")
    assert code == 0 and "--tokens-per-s N" in out and "--measure" in out
    assert "records were read, in" in out and "holds 95 times of 100" in out
    assert "Cannot be read, and is left out: file://" in out and "broken.parquet" in out
    assert not any("xxxx" in each for each in out.splitlines()), "no text of the input"
    code, out, _ = plan("--records", "300", "--tokens-per-s", "5e3", pool={"max": 8, "gpus_per_replica": 0.5})
    assert "time with 8 replicas (pool.max)" in out and "GPU-hours" in out


def test_the_rate_is_measured_here(
    tmp_path: Path, plan: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(command, "MEASURE_S", 0.05)
    model = {"name": str(make_tiny_bert(tmp_path / "model")), "dtype": "float32"}
    (tmp_path / "in/a.jsonl").write_text("".join(f'{{"id": "{n}", "text": "text {n}"}}\n' for n in range(50)))
    code, out, _ = plan("--measure", "--json", model=model)
    encoders = json.loads(out)["encoders"]
    assert code == 0 and encoders["tokens_per_second"] > 0
    assert encoders["rate_from"].startswith("measured here for ") and "cpu in float32" in encoders["rate_from"]
    (tmp_path / "in/a.jsonl").write_text('{"id": "1", "text": ""}\n')
    code, _, err = plan("--measure", model=model)
    assert code == 1 and "nothing to measure with" in err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--price-per-hour", "2"], "--price-per-hour needs a rate"),
        (["--measure", "--tokens-per-s", "3"], "name two rates"),
        (["--tokens-per-s", "0"], "a number above 0 is needed"),
        (["--for", "run"], "source.topics or source.pattern is needed"),
        (["--for", "demo"], "invalid choice"),
    ],
)
def test_mistakes_are_sentences(
    tmp_path: Path, plan: Callable[..., tuple[int, str, str]], arguments: list[str], says: str
):
    (tmp_path / "in/a.jsonl").write_text('{"id": "a", "text": "t"}\n')
    code, _, err = plan(*arguments)
    assert code == 2 and says in err


# ------------------------------------------------------------------ figures


def test_gpu_hours_need_a_gpu():
    rate = Rate(1000.0, "given")
    cost = cost_of(Settings(pool={"max": 2, "gpus_per_replica": 0.25}), Estimate(7.2e6, 3.6e6), rate, None)
    assert astuple(cost.replica_hours) == pytest.approx((2.0, 1.0)) and astuple(cost.hours) == pytest.approx((1.0, 0.5))
    assert cost.gpu_hours is not None and astuple(cost.gpu_hours) == pytest.approx((0.5, 0.25)) and cost.price is None
    assert cost_of(Settings(), Estimate(1.0), rate, None).gpu_hours is None
    measured = cost_of(Settings(), Estimate(3.6e6), Rate(1000.0, "measured", cuda=True), 3.0)
    assert measured.gpu_hours is not None and astuple(measured.gpu_hours) == pytest.approx((1.0, 0.0))
    assert measured.price is not None and measured.price.value == pytest.approx(3.0)


def test_a_topic_whose_group_has_read_everything_waits_for_nothing():
    found = Profile(counts=[[]])
    made = figures(
        Settings(),
        job="run",
        model="m",
        sources=[Source("documents", 3, 0, "offsets", compacted=True)],
        broken=[],
        waiting=False,
        sampled=[Sampled(100.0, (Block([], 10.0), Block([], 10.0)), whole=False)],
        found=found,
        rate=None,
        price=None,
    )
    assert made.records == made.tokens == Estimate(0.0)
    said = words.text(made)
    assert "Nothing waits" in said and "compacted" in said and "documents" in said


@pytest.mark.parametrize(
    ("value", "said"), [(12.0, "12 B"), (2_345.0, "2.35 kB"), (9.99e8, "999 MB"), (1.5e12, "1.5 TB")]
)
def test_bytes_are_spoken(value: float, said: str):
    assert words.spoken_bytes(value) == said
