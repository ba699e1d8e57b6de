"""``stream-embedder calibrate`` with real weights: the ranges of a sample, and whose they are."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.calibrate import run_calibrate
from pipelines.cli import main
from pipelines.encode import run_encode
from pipelines.model import Model
from pipelines.of_topic import UNSAID, OfTopic
from tests.tiny_model import documents, make_tiny_bert
from workers.encoder.quantize import Projection
from workers.encoder.ranges import Ranges
from workers.errors import EnvironmentFault, SettingsError
from workers.settings import KafkaOutput, Settings

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_bert(tmp_path_factory.mktemp("models") / "bert")


@pytest.fixture
def calibrate(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[Path, str, str]]:
    """``calibrate(*texts, lines=None, dim=None, **sections)`` → the file, standard output, standard error."""

    def run(
        *texts: str,
        lines: bytes | None = None,
        dim: int | None = None,
        of: OfTopic = UNSAID,
        **sections: dict[str, Any],
    ):
        path = tmp_path / "ranges.npz"
        source = None if lines is None else io.BytesIO(lines)
        assert run_calibrate(settings(tiny, **sections), dim=dim, path=path, texts=texts, lines=source, of=of) == 0
        assert [entry.name for entry in tmp_path.iterdir() if entry.name.startswith(".")] == []
        return path, *capsys.readouterr()

    return run


def settings(tiny: Path, model: dict[str, Any] | None = None, **sections: dict[str, Any]) -> Settings:
    return Settings(model={"name": str(tiny), **(model or {})}, **sections)


def encode(
    given: Settings, texts: list[str], precision: str = "float32", dim: int | None = None, ranges: Path | None = None
) -> list[dict[str, Any]]:
    out = io.BytesIO()
    run_encode(given, dim=dim, precision=precision, ranges=ranges, texts=texts, lines=None, out=out)
    return [json.loads(line) for line in out.getvalue().splitlines()]


def vectors(records: list[dict[str, Any]]) -> np.ndarray:
    return np.array([record["embedding"] for record in records], np.float32)


def test_the_ranges_are_those_of_the_vectors_that_an_output_would_have(tiny: Path, calibrate):
    """Cut, and made unit vectors again: the ranges of a mere slice would be narrower."""
    texts = documents(300)  # more than a window holds
    path, told, _ = calibrate(*texts, dim=8)
    ranges = Ranges.read(path)
    expected = vectors(encode(settings(tiny), texts, dim=8))
    assert np.abs(ranges.low - expected.min(axis=0)).max() < 1e-6
    assert np.abs(ranges.high - expected.max(axis=0)).max() < 1e-6
    assert (ranges.model, ranges.texts) == ("bert", 300)
    assert (
        told
        == f"{path}: ranges of 8 dimensions, from 300 texts; about 0.66 % of the values of other texts lie outside them\n"
    )


def test_an_output_quantises_by_them(tiny: Path, calibrate):
    texts = documents(100)
    path, *_ = calibrate(*texts)
    found = encode(settings(tiny), texts, precision="int8_ranges", ranges=path)
    low, high = np.load(path)["ranges"]
    back = low + (vectors(found) + 128.5) * (high - low) / 255
    assert back == pytest.approx(vectors(encode(settings(tiny), texts)), abs=float((high - low).max()) / 255)
    assert {-128, 127} <= set(vectors(found).ravel().tolist()), "the extremes of the sample use all the codes"


def test_ranges_change_the_fingerprint(tiny: Path, calibrate):
    given = settings(tiny)
    model = Model.open(given)

    def fingerprint(path: Path) -> str:
        output = KafkaOutput(topic="v", precision="int8_ranges", ranges=path)
        return model.fingerprint_of(model.projection(output))

    path, *_ = calibrate(*documents(20))
    first = fingerprint(path)
    assert first == fingerprint(path)
    calibrate(*documents(21))
    assert fingerprint(path) != first
    assert model.fingerprint_of(Projection(32, "int8")) == model.fingerprint(32, "int8"), "without ranges as ever"


def test_lines_are_read_as_the_stream_reads_records(tiny: Path, calibrate):
    sections = {"source": {"text": "{title}: {body|}"}}
    lines = b'{"title": "a", "body": "cat"}\n\n{"title": "mat", "text": "ignored"}\n'
    path, *_ = calibrate(lines=lines, **sections)
    expected = vectors(encode(settings(tiny), ["a: cat", "mat: "]))
    ranges = Ranges.read(path)
    assert ranges.texts == 2
    assert np.abs(ranges.low - expected.min(axis=0)).max() < 1e-6


def test_lines_of_several_topics_are_read_as_their_mappings_say(tiny: Path, calibrate):
    mappings = [{"topics": ["tickets"], "text": "subject", "prompt_text": "ticket: "}]
    sections = {"source": {"topics": ["books", "tickets"], "text": "title", "mappings": mappings}}
    lines = b'{"of": "tickets", "subject": "cat"}\n{"of": "books", "title": "mat", "subject": "ignored"}\n'
    path, *_ = calibrate(lines=lines, of=OfTopic(field="of"), **sections)
    expected = vectors(encode(settings(tiny), ["ticket: cat", "mat"]))
    ranges = Ranges.read(path)
    assert np.abs(ranges.low - expected.min(axis=0)).max() < 1e-6
    model = Model.open(settings(tiny, **sections))
    model.projection(KafkaOutput(topic="v", precision="int8_ranges", ranges=path))  # they are this pipeline's


def test_what_is_refused_is_left_out_and_told(calibrate):
    lines = b'{"text": "a SENTINEL"}\n{"text": " "}\nSENTINEL\n{"txt": "SENTINEL"}\n{"text": "another"}\n'
    path, told, warned = calibrate(lines=lines)
    assert Ranges.read(path).texts == 2
    few, refused = warned.splitlines()
    assert few.startswith("stream-embedder: warning: the ranges are of 2 texts only: about 67 % of the values")
    assert refused.startswith("stream-embedder: warning: 3 of 5 texts were left out; the first: the text is empty")
    assert "SENTINEL" not in told + warned


def test_a_sample_that_is_large_enough_is_no_reason_for_a_warning(calibrate):
    _, told, warned = calibrate(
        lines=b"".join(b'{"text": "text number %d"}\n' % number for number in range(1000)), dim=8
    )
    assert warned == ""
    assert "from 1,000 texts; about 0.2 % of the values" in told


def test_about_as_many_values_lie_outside_as_it_says(tiny: Path, calibrate):
    """2 / (n + 1), whatever the model: a new text is as likely as each of the sample's to be a dimension's extreme."""
    texts = list(dict.fromkeys(documents(2000)))
    inside = texts[::4]
    path, *_ = calibrate(*inside, dim=32)
    found = vectors(encode(settings(tiny), sorted(set(texts) - set(inside))))
    ranges = Ranges.read(path)
    outside = ((found < ranges.low) | (found > ranges.high)).mean()
    expected = 2 / (len(inside) + 1)
    assert expected / 3 < outside < expected * 3


@pytest.mark.parametrize(
    "sections",
    [
        {"model": {"prompt_text": "query: "}},
        {"model": {"max_tokens": 64}},
        {"model": {"overflow": "reject"}},
        {"source": {"text": "body"}},
    ],
)
def test_ranges_of_other_vectors_are_refused(tiny: Path, calibrate, sections: dict[str, dict[str, Any]]):
    path, *_ = calibrate("a", "b")
    output = KafkaOutput(topic="v", precision="uint8_ranges", ranges=path)
    Model.open(settings(tiny)).projection(output)
    with pytest.raises(SettingsError, match="belongs to other vectors"):
        Model.open(settings(tiny, **sections)).projection(output)


def test_ranges_of_another_model_or_dim_are_refused(tiny: Path, tmp_path: Path, calibrate):
    path, *_ = calibrate("a", "b", dim=16)
    other = make_tiny_bert(tmp_path / "other", seed=1)
    with pytest.raises(SettingsError, match=r"model bert, fingerprint \w+\) than these settings make \(model other"):
        encode(settings(other), ["a"], precision="int8_ranges", dim=16, ranges=path)
    with pytest.raises(SettingsError, match=r"has 16 dimensions, and the output has 32: .*--dim 32"):
        encode(settings(tiny), ["a"], precision="int8_ranges", ranges=path)


@pytest.mark.parametrize(
    ("texts", "lines", "says"),
    [
        ([], b"", "there is no text to calibrate with"),
        ([], b"\n{}\n[]\n", "all 2 were refused, the first because field text is missing"),
        (["a"], None, "ranges need different texts"),
        (["a", "a"], None, r"the vectors of these \(2\) hardly differ"),
    ],
)
def test_a_sample_that_gives_no_ranges(tiny: Path, tmp_path: Path, texts: list[str], lines: bytes | None, says: str):
    path = tmp_path / "ranges.npz"
    path.write_bytes(b"as it was")
    source = None if lines is None else io.BytesIO(lines)
    with pytest.raises(EnvironmentFault, match=says):
        run_calibrate(settings(tiny), dim=None, path=path, texts=texts, lines=source)
    assert path.read_bytes() == b"as it was"
    assert [entry.name for entry in tmp_path.iterdir()] == ["ranges.npz"], "nothing is left behind"


@pytest.mark.parametrize(("out", "says"), [("absent/r.npz", "No such file"), ("folder.npz", "Is a directory")])
def test_a_file_that_cannot_be_written_is_told_before_the_work(tiny: Path, tmp_path: Path, out: str, says: str):
    (tmp_path / "folder.npz").mkdir()
    lines = io.BytesIO(b'{"text": "a"}\n')
    with pytest.raises(EnvironmentFault, match=f"--out .*{out} cannot be written: {says}"):
        run_calibrate(settings(tiny), dim=None, path=tmp_path / out, texts=[], lines=lines)
    assert lines.tell() == 0


def test_as_a_shell_sees_it(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """The settings name a ranges file that is not there yet: this makes it, and then they hold."""
    path, config = tmp_path / "ranges.npz", tmp_path / "pipeline.yaml"
    output = f"{{topic: v, dim: 16, precision: uint8_ranges, ranges: {path}}}"
    config.write_text(f"model: {{name: {tiny}}}\noutputs: [{output}]\n")
    sample = b"".join(json.dumps({"text": text}).encode() + b"\n" for text in documents(50))
    command = [sys.executable, "-m", "pipelines", "calibrate", "-c", str(config), "--dim", "16", "--out", str(path)]
    done = subprocess.run(command, input=sample, cwd=ROOT, capture_output=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode().startswith(f"{path}: ranges of 16 dimensions, from 50 texts")
    (line,) = done.stderr.decode().splitlines()
    assert line.startswith("stream-embedder: warning: the ranges are of 50 texts only")

    def encode(*flags: str) -> tuple[int, str, str]:
        known = ["encode", "--model.name", str(tiny), "--precision", "uint8_ranges", "--ranges", str(path)]
        code = main([*known, *flags, "a text"])
        said = capsys.readouterr()
        return code, said.out, said.err

    code, told, warned = encode("--dim", "16")
    assert (code, warned) == (0, "")
    assert all(0 <= number <= 255 for number in json.loads(told)["embedding"])
    code, told, warned = encode("--dim", "8")
    assert (code, told) == (2, "")
    assert warned == (
        f"stream-embedder: ranges file {path} has 16 dimensions, and the output has 8: make one with stream-embedder "
        "calibrate --dim 8\n"
    )
    path.write_bytes(b"something else")
    code, told, warned = encode("--dim", "16")
    assert (code, told) == (1, "")
    assert warned.startswith(f"stream-embedder: ranges file {path} is no .npz with ranges, and no .npy: make one with")
