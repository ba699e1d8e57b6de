"""The benchmark with real processes: engines in children, environments of their own, the whole command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipelines.bench import environments, process
from pipelines.bench.command import _encoder_options, _parser
from pipelines.bench.encoder import _entrants
from pipelines.bench.engines import OURS, PEERS, SENTENCE_TRANSFORMERS, Contender, Engine
from pipelines.bench.environments import Environments, default_folder
from pipelines.bench.job import Job
from pipelines.bench.options import EncoderOptions
from pipelines.bench.process import Process
from pipelines.bench.race import Entrant, Race
from tests.tiny_model import documents
from workers.encoder.layout import Layout, resolve
from workers.errors import EnvironmentFault

ROOT = Path(__file__).parents[2]
ABSENT = ("ray", "kafka", "pydantic", "pydantic_settings", "orjson", "rich", "matplotlib")
BLOCK = f"import sys; sys.modules.update(dict.fromkeys({ABSENT!r})); "  # an import of any of them fails


@pytest.mark.soak
def test_the_command_runs_where_neither_ray_nor_kafka_nor_the_settings_are(tmp_path: Path):
    words = ["encoder", "--texts", "16", "--rounds", "1", "--peers", "sentence-transformers", "--dtype", "float32"]
    words += ["--no-sweep", "--peak", "1", "--out", str(tmp_path / "out"), "--venvs", str(tmp_path / "venvs")]
    # The children lack them too.
    child = tmp_path / "child.py"
    child.write_text(f"{BLOCK}import runpy; runpy.run_path({str(process.CHILD)!r}, run_name='__main__')")
    code = (
        f"{BLOCK}import pathlib, runpy; from pipelines.bench import process; process.CHILD = pathlib.Path({str(child)!r}); "
        f"sys.argv[1:] = {words!r}; runpy.run_module('pipelines.bench', run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert "matplotlib is not installed" in done.stderr
    assert not (tmp_path / "venvs").exists()  # what is here is not installed again
    found = json.loads((tmp_path / "out/encoder.json").read_text())
    assert [entry["name"] for entry in sorted(found["results"], key=lambda entry: -entry["ours"])] == [
        "stream-embedder float32, 4,096 tokens",
        "sentence-transformers float32, batch 32",
    ]
    assert found["baseline"] == "sentence-transformers float32, batch 32"
    assert found["reference"] == "sentence-transformers float32"
    assert found["command"].startswith("stream-embedder bench encoder --texts 16")
    assert found["texts"] == 16 and found["threads"] == 1 and found["left_out"] == {}
    for entry in found["results"]:
        assert entry["ranked"] and entry["cosine"]["minimum"] > 0.999999
        assert len(entry["rounds"]) == 1 and entry["cpu_s"] > 0 and entry["rounds"][0]["rss_bytes"] > 50 * 2**20
        assert entry["versions"]["torch"]
        assert entry["mfu"] == pytest.approx(found["flops"] / entry["wall_s"] / 1e12)
    (ours,) = (entry for entry in found["results"] if entry["ours"])
    assert ours["rounds"][0]["tokens"] == found["tokens"] > 500
    assert ours["padding_share"] is not None
    table = (tmp_path / "out/encoder.md").read_text()
    assert "| sentence" not in table and "sentence-transformers float32, batch 32 |" in table
    assert all(line in done.stdout for line in ("× CPU (min–max)", "leads", str(tmp_path / "out/encoder.json")))


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """A job on the packaged model, with few texts."""
    folder = resolve("all-MiniLM-L6-v2")
    texts = documents(12)
    for name in ("texts.json", "sweep.json"):
        (tmp_path / name).write_text(json.dumps(texts))
    return Job(
        model="all-MiniLM-L6-v2",
        layout=Layout.read(folder),
        config=json.loads((folder / "config.json").read_text()),
        device="cpu",
        threads=1,
        cores=(),
        texts=tmp_path / "texts.json",
        sweep_texts=tmp_path / "sweep.json",
        digest="",
        lengths=np.array([20] * 12, np.int32),
        gate=0.999,
        work=tmp_path,
    )


# An engine for tests: it takes longer the farther its setting is from 64; some fail, each in its own way.
FAKE = """
import json, sys
import numpy as np
for line in sys.stdin:
    request = json.loads(line)
    if request["do"] == "load":
        engine, device = request["engine"], request["device"]
        if engine == "fastembed":
            print("cannot go on", file=sys.stderr)
            sys.exit(3)
        answer = {"versions": {"numpy": "1"}, "device": "NVIDIA H100" if device == "cuda" else "cpu"}
    elif engine == "infinity-emb":
        answer = {"error": "MemoryError: too much"}
    else:
        with open(request["texts"]) as file:
            vectors = np.ones((len(json.load(file)), 5 if engine == "onnxruntime" else 4), np.float32)
        if engine == "openvino":
            vectors[:, 1] = 3
        np.save(request["vectors"], vectors)
        cpu = 1.0 + abs(request["setting"] - 64)
        wall = 1.0 + abs(request["setting"] - 128)
        answer = {"wall_s": wall, "cpu_s": cpu, "rss_bytes": 1}
        if "trace" in request:
            with open(request["trace"], "w") as file:
                json.dump({"traceEvents": [{"cat": "kernel", "ts": 0, "dur": 0.75e6 * wall}]}, file)
    print(json.dumps(answer), flush=True)
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Children run ``FAKE``."""
    (tmp_path / "fake.py").write_text(FAKE)
    monkeypatch.setattr(process, "CHILD", tmp_path / "fake.py")


def entrants(*chosen: Contender) -> list[Entrant]:
    return [Entrant(contender, Path(sys.executable)) for contender in chosen]


@pytest.mark.usefixtures("fake")
def test_a_race_finds_settings_checks_vectors_and_goes_on_without_those_that_fail(job: Job):
    every = [Contender(engine, "float32") for engine in PEERS.values()]
    race = Race(job, 3, sweep=True, environ=os.environ)
    results = race.run(entrants(Contender(SENTENCE_TRANSFORMERS, "float32", 32), *every))
    assert [result.name for result in results] == [
        "sentence-transformers float32, batch 32",
        "sentence-transformers float32, batch 64 (its best)",
        "openvino float32, 64 tokens (its best)",
    ]
    assert race.left_out == {
        "infinity-emb float32": "MemoryError: too much",
        "fastembed float32": "its process ended with code 3: cannot go on",
        "onnxruntime float32, 64 tokens (its best)": "vectors of shape (12, 5), where the reference has (12, 4)",
    }
    assert results[1].tried == {16: 49.0, 32: 33.0, 64: 1.0, 128: 65.0}
    assert all(len(result.rounds) == 3 for result in results)
    assert [round(result.cosine.minimum, 4) for result in results] == [1.0, 1.0, 0.866]
    assert race.reference == "sentence-transformers float32"


@pytest.mark.usefixtures("fake")
def test_on_cuda_the_wall_decides_and_idle_time_is_measured(job: Job):
    race = Race(replace(job, device="cuda"), 2, sweep=True, environ=os.environ)
    results = race.run(entrants(Contender(OURS, "bfloat16"), Contender(SENTENCE_TRANSFORMERS, "bfloat16")))
    assert [result.label for result in results] == ["16,384 tokens", "batch 128 (its best)"]
    assert [result.gpu_idle for result in results] == [pytest.approx(0.25)] * 2
    assert race.device == "NVIDIA H100" and race.seconds(results[0].rounds[0]) == results[0].rounds[0].wall_s
    assert race.reference == "sentence-transformers float32"  # in an extra pass: bfloat16 is no reference


@pytest.mark.usefixtures("fake")
def test_without_sentence_transformers_ours_in_float32_is_the_reference(job: Job):
    race = Race(job, 1, sweep=True, environ=os.environ)
    (result,) = race.run(entrants(Contender(OURS, "bfloat16")))
    assert (result.label, race.reference, result.gpu_idle) == ("4,096 tokens", "stream-embedder float32", None)


def test_who_cannot_take_part_is_listed_with_the_reason(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def python(self: Environments, engine: Engine) -> Path:
        if engine.name == "infinity-emb":
            raise EnvironmentFault("no network")
        return Path(sys.executable)

    def exporter(self: Environments) -> Path:
        raise EnvironmentFault("no tools")

    monkeypatch.setattr(Environments, "python", python)
    monkeypatch.setattr(Environments, "exporter", exporter)
    found: dict[str, str] = {}
    chosen = _entrants(options(tmp_path), os.environ, job, found)
    assert {entrant.contender.engine.name for entrant in chosen} == {"stream-embedder", "sentence-transformers"}
    assert found == {
        "infinity-emb": "no network",
        **dict.fromkeys(("fastembed", "onnxruntime", "openvino"), "no tools"),
    }
    found.clear()
    _entrants(replace(options(tmp_path), dtypes=("bfloat16",), peers=("fastembed",)), os.environ, job, found)
    assert found == {"fastembed": "it has none of bfloat16"}
    found.clear()
    _entrants(replace(options(tmp_path), peers=("openvino",)), os.environ, replace(job, device="cuda"), found)
    assert found == {"openvino": "it runs on the CPU only here"}


def options(tmp_path: Path) -> EncoderOptions:
    """The command's defaults."""
    found = _parser({}).parse_args(["encoder", "--out", str(tmp_path / "out"), "--venvs", str(tmp_path / "venvs")])
    return _encoder_options(found)


def test_an_engine_that_answers_late_or_with_nothing_is_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "fake.py").write_text("import time\ninput()\ntime.sleep(60)")
    monkeypatch.setattr(process, "CHILD", tmp_path / "fake.py")
    with (
        Process(Path(sys.executable), os.environ, tmp_path / "log") as child,
        pytest.raises(EnvironmentFault, match=r"no answer within 0.5 s"),
    ):
        child.ask(0.5, do="load")


# ---- environments


def test_what_is_importable_here_is_not_installed(tmp_path: Path):
    found = Environments(tmp_path / "venvs", os.environ)
    assert found.python(SENTENCE_TRANSFORMERS) == Path(sys.executable)
    assert not (tmp_path / "venvs").exists()


@pytest.mark.parametrize("uv", [True, False])
def test_an_environment_is_made_once_and_a_failure_is_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uv: bool
):
    if not uv:
        monkeypatch.setattr(environments.shutil, "which", lambda name: None)
        monkeypatch.setattr(environments.os, "access", lambda *_: False)
    # No network: an environment without packages can be made, one with a package that is nowhere cannot.
    environ = {**os.environ, "UV_OFFLINE": "1", "PIP_NO_INDEX": "1"}
    found = Environments(tmp_path / "venvs", environ)
    wanting = Engine("absent", ("float32",), "batch", packages=("stream-embedder-absent==0.0.1",))
    with pytest.raises(EnvironmentFault, match=r"it cannot be installed: .*stream-embedder-absent") as raised:
        found.python(wanting)
    assert "\n" not in str(raised.value)
    assert (tmp_path / "venvs").exists()

    calls: list[object] = []
    monkeypatch.setattr(Environments, "_run", lambda self, command, log: calls.append(command) or _make(command))
    engine = Engine("present", ("float32",), "batch", packages=("numpy==2.0.0", "torch=={torch}"))
    python = found.python(engine)
    assert len(calls) == 2 and calls[1][-2] == "numpy==2.0.0" and "{" not in calls[1][-1]
    assert found.python(engine) == python and len(calls) == 2
    other = Engine("present", ("float32",), "batch", packages=("numpy==2.0.1",))
    assert found.python(other) != python and len(calls) == 4


def _make(command: list[str]) -> None:
    """What an installer leaves behind: an interpreter."""
    if "venv" in command:
        (Path(command[-1]) / "bin").mkdir(parents=True)
        (Path(command[-1]) / "bin/python").touch()


def test_environments_are_kept_where_caches_are():
    assert default_folder({"XDG_CACHE_HOME": "/cache"}) == Path("/cache/stream-embedder/bench")
    assert default_folder({}) == Path.home() / ".cache/stream-embedder/bench"
