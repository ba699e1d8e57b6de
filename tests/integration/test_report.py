"""``stream-embedder report`` with the packaged model, over real text; and what it says when it cannot."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipelines.demo_corpus import Doc, documents
from pipelines.report.command import run_report
from tests.tiny_model import make_tiny_bert
from workers.errors import EnvironmentFault, SettingsError
from workers.settings import Settings

ROOT = Path(__file__).parents[2]
ROWS = 160
SECRET = "zebrafish-31415926"


@pytest.fixture(scope="module")
def corpus() -> list[Doc]:
    return list(documents(ROWS))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_bert(tmp_path_factory.mktemp("models") / "bert")


@pytest.fixture
def report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[dict[str, Any], str, str]]:
    """``report(settings, files, lines=…, **options)`` → the JSON, the page, and what was printed."""

    def run(settings: Settings, files: Sequence[Path] = (), lines: bytes | None = None, **options: Any):
        source = None if lines is None else io.BytesIO(lines)
        out = tmp_path / "made" / "report"
        assert run_report(settings, files, lines=source, out=out, command="stream-embedder report", **options) == 0
        assert sorted(path.name for path in out.iterdir()) == ["report.html", "report.json"]
        page = (out / "report.html").read_text(encoding="utf-8")
        return json.loads((out / "report.json").read_text(encoding="utf-8")), page, capsys.readouterr().out

    return run


def settings(**model: object) -> Settings:
    return Settings(model={"max_tokens": 48, **model}, source={"text": "{title}: {body}"})


def lines_of(corpus: Sequence[Doc]) -> bytes:
    return b"".join(json.dumps({"title": doc.title, "body": doc.body}).encode() + b"\n" for doc in corpus)


def test_of_minilm_it_says_what_may_be_done_with_its_vectors(corpus: list[Doc], report, tmp_path: Path):
    """Quantise it, but do not cut it; from lines and from Parquet alike."""
    more = [json.dumps({"title": SECRET, "body": ""}).encode(), b'{"title": "no body"}', b"{"]
    lines = lines_of(corpus) + lines_of(corpus[:3]) + b"\n".join(more)
    values, page, told = report(settings(), lines=lines)
    recalls = {(row["dim"], row["precision"]): row["recall"] for row in values["rows"]}
    assert set(recalls) == {
        (dim, precision)
        for dim in (384, 256, 128, 64)
        for precision in ("float32", "float16", "int8", "int8_ranges", "binary")
    }
    assert recalls[384, "float32"] == 1
    assert recalls[384, "float16"] >= 0.999
    assert recalls[384, "int8"] >= 0.99
    assert values["mrl"] == "no" and values["mrl_index"] < 0.3
    assert "all-MiniLM-L6-v2 is no MRL model: its first 256, 128 and 64 dims have recall@10" in told
    assert "So a prefix is no better than random dims" in told and "So a prefix is no better than random dims" in page
    assert values["cheapest"] == {"dim": 384, "precision": "int8"}
    assert "Cheapest that keeps recall@10 at 0.95 or above: dim 384, precision int8" in told
    texts = values["texts"]
    assert (texts["read"], texts["drawn"], texts["duplicates"]) == (ROWS + 6, ROWS + 6, 3)
    assert texts["refused"] == {"missing_field": 1, "invalid_json": 1} and texts["compared"] == ROWS + 1
    assert texts["longest"] == 48 and texts["truncated"] > 20
    assert values["norms"]["least"] == pytest.approx(1, abs=1e-5) == values["norms"]["greatest"]
    assert page.count("<svg") == 3
    for written in (json.dumps(values), page, told):
        assert SECRET not in written and corpus[0].title not in written, "a text is nobody else's business"

    table = tmp_path / "corpus.parquet"
    pl.DataFrame(
        {"n": range(ROWS), "body": [doc.body for doc in corpus], "title": [doc.title for doc in corpus]}
    ).write_parquet(table)
    again, *_ = report(settings(), [table], dims=(64,), min_recall=0.5, count=100)
    assert {row["dim"] for row in again["rows"]} == {384, 64}
    assert (again["texts"]["read"], again["texts"]["compared"]) == (ROWS, 100)
    assert again["cheapest"]["dim"] == 64 or again["cheapest"]["precision"] == "binary"


def test_dims_of_the_outputs_are_among_those(tiny: Path, corpus: list[Doc], report):
    given = settings(name=str(tiny)).model_copy(
        update={"outputs": Settings(outputs=[{"topic": "v", "dim": 24}]).outputs}
    )
    values, *_ = report(given, lines=lines_of(corpus[:40]))
    assert [each["dim"] for each in values["spread"]] == [32, 24, 16, 8]


def test_values_of_parquet_that_json_does_not_have(tiny: Path, report, tmp_path: Path):
    import datetime
    from decimal import Decimal

    rows = [{"at": datetime.date(2026, 1, 1 + n % 28), "price": Decimal(f"{n}.50"), "raw": b"x"} for n in range(30)]
    pl.DataFrame(rows).write_parquet(tmp_path / "t.parquet")
    given = Settings(model={"name": str(tiny)}, source={"text": "{at} {price}"})
    values, *_ = report(given, [tmp_path / "t.parquet"])
    assert values["texts"]["compared"] == 30
    values, *_ = report(
        Settings(model={"name": str(tiny)}, source={"text": "{price} {raw}{at}"}, kafka={}), [tmp_path / "t.parquet"]
    )
    assert values["texts"]["compared"] == 30


@pytest.mark.parametrize(
    ("name", "content", "says", "error"),
    [
        ("t.csv", b"text\na\n", "texts are read from JSON lines", SettingsError),
        ("t.parquet", b"SENTINEL", "it is no Parquet file", EnvironmentFault),
        ("t.jsonl", b'{"title": "SENTINEL", "body": ""}\n' * 30, "20 different texts.* the input has 1, 29", EnvironmentFault),
        ("t.jsonl", None, "t.jsonl cannot be read: No such file", EnvironmentFault),
        ("t.parquet", None, "t.parquet cannot be read: ", EnvironmentFault),
    ],
)  # fmt: skip
def test_files_that_are_none_are_said(
    tiny: Path, report, tmp_path: Path, name: str, content: bytes | None, says: str, error: type[Exception]
):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(error, match=says) as told:
        report(settings(name=str(tiny)), [path])
    assert "SENTINEL" not in str(told.value)


def test_a_table_without_the_texts_column_says_which_it_has(tiny: Path, report, tmp_path: Path):
    pl.DataFrame({"heading": ["a"], "content": ["b"]}).write_parquet(tmp_path / "t.parquet")
    with pytest.raises(SettingsError, match=r"has the columns heading, content, and source.text names title, body"):
        report(settings(name=str(tiny)), [tmp_path / "t.parquet"])


def test_what_does_not_suit_the_model_is_said_before_anything_is_read(tiny: Path, report, tmp_path: Path):
    absent = [tmp_path / "absent.jsonl"]
    with pytest.raises(SettingsError, match=r"--dims 64: .* has 32 dimensions"):
        report(settings(name=str(tiny)), absent, dims=(64,))
    with pytest.raises(SettingsError, match="50,000 are compared at most"):
        report(settings(name=str(tiny)), absent, count=50_001)
    (tmp_path / "made").write_text("a file is in the way")
    with pytest.raises(EnvironmentFault, match="--out names another folder"):
        report(settings(name=str(tiny)), absent)


def test_from_a_shell_and_without_matplotlib(tiny: Path, corpus: list[Doc], tmp_path: Path):
    """Words on standard output, files in the folder, and the page has its tables without plots."""
    code = "import sys; sys.modules['matplotlib'] = None\nfrom importlib import util\nfound = util.find_spec\n"
    code += "util.find_spec = lambda name, *more: None if name == 'matplotlib' else found(name, *more)\n"
    code += "from pipelines.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "report", "--model.name", str(tiny), "--source.text", "{title}"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path), "--min-recall", "0.9"],
        input=lines_of(corpus[:30]),
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.decode().splitlines() == [
        "stream-embedder: warning: the page has no plots, for matplotlib is not installed: pip install 'stream-embedder[plots]'"
    ]
    assert "Cheapest that keeps recall@10 at 0.9 or above" in done.stdout.decode()
    page = (tmp_path / "report.html").read_text()
    assert "<svg" not in page and "<table>" in page
    command_line = json.loads((tmp_path / "report.json").read_text())["command"]
    assert command_line.startswith("stream-embedder report --model.name") and "--min-recall 0.9" in command_line
