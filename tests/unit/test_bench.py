"""The benchmark's arithmetic, its words, and what it tells whoever asks for something wrong."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from pipelines import cli
from pipelines.bench import shape, texts
from pipelines.bench.engines import EXPORTER, OURS, PEERS, baseline, contenders
from pipelines.bench.flops import busy_seconds, model_flops, pairs, peak_of
from pipelines.bench.machine import cores, pick
from pipelines.bench.options import DTYPES
from pipelines.bench.pipeline import children, pinning, turns
from pipelines.bench.race import BATCH_TOKENS_CPU, BATCH_TOKENS_CUDA
from pipelines.bench.report import Report
from pipelines.bench.score import Cosine, Result, Round, Spread, climb, cosine, ranked, spread, times, worst
from pipelines.demo_corpus import Doc
from pipelines.table import markdown, plain
from tests.integration.pipeline import wait_until
from workers.encoder.layout import Layout, resolve
from workers.errors import EnvironmentFault
from workers.settings import PoolSettings
from workers.text.tokenizer import Tokenizer

# ---- score


def rounds(*seconds: float, **more: Any) -> tuple[Round, ...]:
    return tuple(Round(wall_s=2 * cpu, cpu_s=cpu, rss_bytes=100 * 2**20, **more) for cpu in seconds)


def result(engine: str, *seconds: float, cosine_: float = 1.0, ours: bool = False, **more: Any) -> Result:
    tokens = {name: more.pop(name) for name in ("tokens", "padding", "gpu_bytes") if name in more}
    return Result(
        engine, "float32", 32, "batch 32", ours, rounds(*seconds, **tokens), Cosine(cosine_, (1 + cosine_) / 2), **more
    )


def test_ratios_are_taken_round_by_round():
    # The machine slows down in the second round, for everyone: the ratio stays what it was.
    slow, fast = result("a", 10.0, 40.0, 12.0), result("b", 5.0, 20.0, 4.0)
    assert times(slow, fast, lambda found: found.cpu_s) == Spread(2.0, 2.0, 3.0)
    assert times(slow, slow, lambda found: found.wall_s) == Spread(1.0, 1.0, 1.0)


def test_medians():
    assert spread([3.0, 1.0, 2.0, 10.0]) == Spread(2.5, 1.0, 10.0)
    assert (result("a", 1.0, 9.0, 2.0).cpu_s, result("a", 1.0, 9.0, 2.0).wall_s) == (2.0, 4.0)


def test_rounds_that_do_not_match_are_an_error():
    with pytest.raises(ValueError, match="shorter"):
        times(result("a", 1.0, 2.0), result("b", 1.0), lambda found: found.cpu_s)


def test_cosine_is_of_the_worst_text_and_of_the_mean():
    reference = np.array([[1, 0], [0, 2], [1, 1]], np.float32)
    found = cosine(reference, np.array([[5, 0], [2, 2], [1, 1]], np.float32))
    assert found.minimum == pytest.approx(0.5**0.5)
    assert found.mean == pytest.approx((2 + 0.5**0.5) / 3)
    assert worst([found, Cosine(0.9, 0.1)]) == Cosine(found.minimum, 0.1)


@pytest.mark.parametrize("broken", [np.nan, np.inf, 0.0])
def test_a_vector_that_is_none_fails_every_gate(broken: float):
    reference = np.ones((2, 3), np.float32)
    vectors = reference.copy()
    vectors[1] = broken
    assert cosine(reference, vectors).minimum == -1.0


def test_vectors_of_another_width_are_an_error():
    with pytest.raises(ValueError, match=r"\(2, 4\), where the reference has \(2, 3\)"):
        cosine(np.ones((2, 3), np.float32), np.ones((2, 4), np.float32))


def test_who_fails_the_gate_comes_last_however_fast():
    found = [result("slow", 9.0), result("wrong", 0.1, cosine_=0.9989), result("fast", 1.0, cosine_=0.999)]
    names = [entry.engine for entry in ranked(found, 0.999, lambda entry: entry.cpu_s)]
    assert names == ["fast", "slow", "wrong"]


@pytest.mark.parametrize(
    ("costs", "best", "tried"),
    [
        ({8: 4, 16: 3, 32: 2, 64: 3, 128: 9}, 32, {16, 32, 64}),
        ({8: 9, 16: 4, 32: 3, 64: 2, 128: 1}, 128, {16, 32, 64, 128}),
        ({8: 1, 16: 2, 32: 3, 64: 4, 128: 0}, 8, {8, 16, 32, 64}),  # what lies behind a rise is not looked for
        ({8: 9, 16: 2, 32: 3, 64: float("inf"), 128: 0}, 16, {8, 16, 32, 64}),
    ],
)
def test_a_sweep_climbs_both_ways_and_stops_where_it_gets_worse(costs: dict[int, float], best: int, tried: set[int]):
    found, took = climb(sorted(costs), 32, costs.__getitem__)
    assert (found, set(took)) == (best, tried)


# ---- FLOPs


GEMMA = shape._config(24, 262144)


def test_flops_of_embeddinggemma_are_those_of_the_roofline():
    for length, per_token in ((64, 207.6e6), (128, 212.3e6), (256, 221.8e6)):
        assert model_flops(GEMMA, np.array([length] * 3, np.int32)) == pytest.approx(3 * length * per_token, rel=3e-4)
    # Beyond the window each of the 20 sliding layers asks for less than all pairs; the head costs by the text.
    whole = model_flops(GEMMA | {"sliding_window": None}, np.array([2048], np.int32))
    windowed = model_flops(GEMMA, np.array([2048], np.int32))
    assert whole is not None and windowed is not None
    assert whole - windowed == 20 * 4 * 768 * (2048**2 - (2048 * 513 - 256 * 257))
    assert model_flops(GEMMA, np.array([2048], np.int32), [(768, 3072), (3072, 768)]) == windowed + 2 * 2 * 768 * 3072


def test_flops_of_minilm():
    config = json.loads((resolve("all-MiniLM-L6-v2") / "config.json").read_text())
    assert model_flops(config, np.array([90], np.int32)) == pytest.approx(90 * 22.1e6, rel=3e-3)
    assert model_flops({"model_type": "t5"}, np.array([90], np.int32)) is None


def test_pairs_in_a_window_by_counting():
    for radius in (0, 1, 3, 8):
        counted = [sum(abs(i - j) <= radius for i in range(n) for j in range(n)) for n in range(1, 20)]
        assert pairs(np.arange(1, 20), radius).tolist() == counted
    assert pairs(np.array([70_000], np.int32), None).tolist() == [70_000**2]  # above 32 bits


def test_kernels_that_overlap_count_once_and_copies_not_at_all():
    def event(start: float, length: float, kind: str = "kernel") -> dict[str, Any]:
        return {"ts": start, "dur": length, "cat": kind}

    trace = [event(5, 10), event(0, 2), event(1, 1), event(8, 3), event(20, 50, "gpu_memcpy"), {"name": "thread_name"}]
    assert busy_seconds(trace) == pytest.approx(12e-6)
    assert busy_seconds([]) == 0


@pytest.mark.parametrize(
    ("device", "peak"),
    [
        ("NVIDIA H200", 989e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A10G", 70e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L4", 121e12),
        ("cpu", None),
    ],
)
def test_peaks_go_by_the_device_name(device: str, peak: float | None):
    assert peak_of(device) == peak


# ---- who takes part


def test_everyone_takes_part_in_the_dtypes_that_it_has():
    named = [(entry.engine.name, entry.dtype, entry.setting) for entry in contenders(tuple(PEERS), DTYPES, cuda=False)]
    assert named == [
        ("stream-embedder", "float32", None),
        ("stream-embedder", "bfloat16", None),
        ("sentence-transformers", "float32", 32),
        ("sentence-transformers", "float32", None),
        ("sentence-transformers", "bfloat16", None),
        ("infinity-emb", "float32", None),
        ("infinity-emb", "bfloat16", None),
        ("fastembed", "float32", None),
        ("onnxruntime", "float32", None),
        ("openvino", "float32", None),
        ("openvino", "bfloat16", None),
    ]


def test_on_cuda_the_baseline_is_in_bfloat16_and_cpu_runtimes_stay_out():
    found = contenders(tuple(PEERS), DTYPES, cuda=True)
    assert {entry.engine.name for entry in found} == {"stream-embedder", "sentence-transformers", "infinity-emb"}
    assert baseline(DTYPES, cuda=True).name == "sentence-transformers bfloat16"
    assert [entry.engine for entry in contenders((), ("bfloat16",), cuda=True)] == [OURS]


def test_every_peer_is_pinned_and_starts_on_its_ladder():
    for engine in PEERS.values():
        assert engine.start in engine.ladder
        assert list(engine.ladder) == sorted(engine.ladder)
        assert engine.packages and all("==" in package for package in engine.packages)
    assert all("==" in package for package in EXPORTER)


def test_ours_runs_at_the_budget_of_a_pipeline():
    assert PoolSettings().batch_tokens(cuda=False) == BATCH_TOKENS_CPU
    assert PoolSettings().batch_tokens(cuda=True) == BATCH_TOKENS_CUDA


def test_cores_are_those_of_this_process():
    own = cores()
    assert pick(1, own)[0] in own
    assert pick(len(own), own) == own


# ---- texts


def test_the_corpus_begins_anew_when_it_ends(monkeypatch: pytest.MonkeyPatch):
    library = [Doc(f"id{number}", f"title {number}", f"body {number}") for number in range(3)]
    monkeypatch.setattr(texts, "documents", lambda rows: iter(library[:rows]))
    assert texts.corpus(2) == ["title 0: body 0", "title 1: body 1"]
    assert texts.corpus(7) == [f"title {number % 3}: body {number % 3}" for number in range(7)]
    assert texts.digest(texts.corpus(2)) == texts.digest(texts.corpus(2)) != texts.digest(texts.corpus(2)[::-1])


def test_made_up_texts_have_128_tokens_on_average_and_mixed_lengths():
    found = texts.random_words(4000, shape.words(500))
    lengths = np.array([len(text.split()) + 2 for text in found])
    assert 124 < lengths.mean() < 132
    assert lengths.min() < 20 and lengths.max() > 400
    assert found == texts.random_words(4000, shape.words(500))


def test_the_shape_is_a_model_that_the_encoder_reads(tmp_path: Path):
    layout = Layout.read(shape.write(tmp_path / "model", layers=7, vocabulary=100))
    assert (layout.model_type, layout.dim, layout.max_tokens, len(layout.head)) == ("gemma3_text", 768, 2048, 2)
    config = json.loads((layout.transformer / "config.json").read_text())
    assert config["layer_types"] == ["sliding_attention"] * 5 + ["full_attention", "sliding_attention"]
    (tokens,) = Tokenizer(layout.transformer, max_tokens=layout.max_tokens).encode(["w4 w99 w100"])
    assert tokens.ids.tolist() == [2, 4, 99, 3, 1]  # one token each, one that is not known, between bos and eos


# ---- report


def report(*results: Result, **more: Any) -> Report:
    values: dict[str, Any] = {
        "command": "stream-embedder bench encoder --texts 10",
        "model": "all-MiniLM-L6-v2",
        "dim": 384,
        "max_tokens": 256,
        "device": "cpu",
        "threads": 1,
        "texts": 10,
        "tokens": 1000,
        "digest": "0123",
        "gate": 0.999,
        "reference": "them float32",
        "machine": {"cpu": "Some CPU", "cpu_flags": ["avx2"], "cores": 8, "load": [0.1, 1.2]},
        "results": results,
        "baseline": results[0],
        "left_out": {"fastembed": "it cannot be installed: no network"},
        "seconds": lambda found: found.cpu_s,
        "counted": "CPU seconds",
    }
    return Report(**values | more)


def lines(found: Report) -> list[list[str]]:
    """The table's rows, cells apart."""
    whole = found.text().split("\n\n")[1].splitlines()
    return [line.split("  ") for line in whole[2:]]


def test_a_report_ranks_and_says_who_leads():
    found = report(
        result("them", 10.0, 12.0),
        result("ours", 4.0, 4.0, ours=True, tokens=950, padding=50),
        result("quick", 2.0, 2.0, cosine_=0.99),
        result("best", 5.0, 5.0),
    )
    assert [row[0].split(",")[0] for row in lines(found)] == [
        "1. ours float32",
        "2. best float32",
        "3. them float32",
        "–",
    ]
    text = found.text()
    assert "quick float32, batch 32" in text and "0.99000" in text
    assert "2.75 (2.50–3.00)" in text
    assert "5.0 %" in text
    assert "125" in text  # 1,000 tokens in 8 wall seconds
    assert (
        "ours float32, batch 32 leads: 1.25× as fast as the best peer, best float32, batch 32, by CPU seconds." in text
    )
    assert "Left out: fastembed: it cannot be installed: no network." in text
    assert "10 texts, 1,000 tokens (100 on average), on Some CPU (avx2), 1 of 8 cores; load average 0.1 before" in text


def test_a_report_says_so_when_a_peer_leads_or_there_is_none():
    ours = result("ours", 4.0, ours=True)
    assert "peer float32, batch 32 leads: 2.00× as fast as the best of ours" in report(result("peer", 2.0), ours).text()
    assert "leads" not in report(ours).text()
    assert "leads" not in report(ours, result("wrong", 1.0, cosine_=0.5)).text()


def test_mfu_is_of_the_models_own_flops_by_the_wall():
    found = report(result("them", 10.0, gpu_idle=0.25, gpu_bytes=3 * 2**30), flops=4e13, peak=8e12)
    assert found.mfu(found.results[0]) == pytest.approx(4e13 / 20 / 8e12)
    assert all(part in found.text() for part in ("MFU", "25.0 %", "GPU idle", "3,072"))
    assert found.mfu(found.results[0]) == found.values()["results"][0]["mfu"]
    unknown = report(result("them", 10.0), flops=4e13)
    assert unknown.mfu(unknown.results[0]) is None
    assert "MFU" not in unknown.text() and "GPU" not in unknown.text()


def test_values_hold_every_round():
    found = json.loads(
        json.dumps(report(result("them", 10.0, 12.0, tried={16: 1.5}), result("ours", 5.0, 4.0)).values())
    )
    assert [entry["name"] for entry in found["results"]] == ["ours float32, batch 32", "them float32, batch 32"]
    assert [entry["cpu_s"] for entry in found["results"][0]["rounds"]] == [5.0, 4.0]
    assert found["results"][0]["times_cpu"] == {"median": 2.5, "low": 2.0, "high": 3.0}
    assert found["results"][1]["tried"] == {"16": 1.5}
    assert found["left_out"] and found["machine"]["cores"] == 8 and found["baseline"] == "them float32, batch 32"


def test_tables_line_up():
    titles, rows = ["engine", "s"], [["a", "10.0"], ["longer", "1.0"]]
    assert plain(titles, rows).splitlines() == ["engine     s", "──────  ────", "a       10.0", "longer   1.0"]
    assert markdown(titles, rows).splitlines() == ["| engine | s |", "|---|---:|", "| a | 10.0 |", "| longer | 1.0 |"]


def test_markdown_carries_the_command_and_the_table():
    text = report(result("them", 10.0)).markdown()
    assert text.startswith("```\nstream-embedder bench encoder --texts 10\n```\n\nall-MiniLM-L6-v2: ")
    assert "\n| 1. them float32, batch 32 | 10.0 | 1.00 (1.00–1.00) |" in text


def test_a_plot_is_the_same_each_time(tmp_path: Path):
    pytest.importorskip("matplotlib")
    from pipelines.bench.plot import draw

    found = report(
        result("them", 10.0, 12.0), result("ours", 4.0, 5.0, ours=True), result("quick", 2.0, 2.0, cosine_=0.9)
    )
    drawn = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        png, svg = draw(found, folder)
        assert png.read_bytes().startswith(b"\x89PNG")
        drawn.append(svg.read_bytes())
    assert drawn[0] == drawn[1]


# ---- what is wrong on the command line


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "BENCHMARK"),
        (["decoder"], "invalid choice"),
        (["encoder", "--peers", "fastembd"], "there is no peer 'fastembd': did you mean fastembed?"),
        (["encoder", "--peers", "tei"], "choose from sentence-transformers, infinity-emb"),
        (["encoder", "--peers", ","], "a peer is needed"),
        (["encoder", "--dtype", "float16"], "there is no dtype 'float16'"),
        (["encoder", "--texts", "0"], "a whole number from 1 up is needed, not '0'"),
        (["encoder", "--rounds", "-1"], "a whole number from 1 up is needed, not '-1'"),
        (["encoder", "--rounds", "two"], "a whole number from 1 up is needed, not 'two'"),
        (["encoder", "--gate", "1.5"], "a number above 0, at most 1, is needed"),
        (["encoder", "--gate", "nan"], "a number above 0, at most 1, is needed"),
        (["encoder", "--peak", "fast"], "a number above 0 is needed, not 'fast'"),
        (["encoder", "--layers", "2"], "--layers and --vocabulary are for --model embeddinggemma-shape"),
        (["encoder", "--model", "embeddinggemma-shape", "--vocabulary", "3"], "--vocabulary is at least 16"),
        (["encoder", "--threads", "4096", "--out", "{tmp}/out"], "--threads 4096 is more than the"),
        (["encoder", "--verbose"], "unrecognized arguments: --verbose"),
        (["encoder", "text"], "unrecognized arguments: text"),
    ],
)
def test_wrong_options_are_a_sentence_and_exit_2(
    words: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert cli.main(["bench", *(word.format(tmp=tmp_path) for word in words)]) == 2
    told = capsys.readouterr().err
    assert says in told
    assert told.startswith("stream-embedder: ") and told.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--model", "./absent"], "model ./absent: there is no such folder"),
        (["--device", "cuda"], "torch sees no GPU here"),
        (["--out", "{tmp}/file/out"], "cannot be made"),
    ],
)
def test_a_wrong_environment_is_a_sentence_and_exit_1(
    words: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("workers.encoder.encoder.has_cuda", lambda: False)
    (tmp_path / "file").touch()
    words = [word.format(tmp=tmp_path) for word in words]
    assert cli.main(["bench", "encoder", "--out", str(tmp_path / "out"), *words]) == 1
    told = capsys.readouterr().err
    assert says in told and told.count("\n") == 1


def test_help_shows_an_example_and_every_peer(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["bench", "encoder", "--help"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in PEERS) and "example:" in text
    assert cli.main(["bench", "--help"]) == 0
    assert "encoder" in capsys.readouterr().out


# ---- pinning


CHILD = """
import os, sys, threading
threading.Thread(target=threading.Event().wait, daemon=True).start()
for _ in sys.stdin: print(sorted(set.union(*(os.sched_getaffinity(int(t)) for t in os.listdir("/proc/self/task")))), flush=True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems keep no core for a process")
def test_the_encoder_has_a_core_and_all_else_has_the_others() -> None:
    ours = os.sched_getaffinity(0)
    with subprocess.Popen([sys.executable, "-c", CHILD], stdin=-1, stdout=-1, text=True, bufsize=1) as child:
        assert child.stdin is not None and child.stdout is not None

        def where() -> list[int]:
            child.stdin.write("\n")
            return json.loads(child.stdout.readline())

        assert set(where()) == ours
        with pinning.kept_free() as core:
            if len(ours) == 1:
                assert core is None
                pinning.pin(core, [child.pid])
                assert set(where()) == ours
            else:
                assert core in ours and set(where()) == ours - {core} == os.sched_getaffinity(0)
                pinning.pin(core, [child.pid, 2**22])  # one of them has ended
                assert where() == [core]
        assert os.sched_getaffinity(0) == ours
        assert set(where()) == ours


# The first thread has computed more, before we look.
COMPUTES = """
import threading, time
while time.process_time() < 1.5: pass
def compute():
    print(threading.get_native_id(), flush=True)
    while True: sum(range(10_000))
threading.Thread(target=compute, daemon=True).start()
threading.Event().wait()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems keep no core for a thread")
def test_the_thread_that_computes_has_a_core_and_not_the_others_of_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pinning, "LOOK_S", 0.5)
    ours = os.sched_getaffinity(0)
    with subprocess.Popen([sys.executable, "-c", COMPUTES], stdout=-1, text=True) as child:
        try:
            assert child.stdout is not None
            computing = int(child.stdout.readline())
            assert pinning.pin_computing(None, [child.pid]) == []
            assert os.sched_getaffinity(computing) == ours
            found = pinning.pin_computing(max(ours), [child.pid, 2**22])
            assert found == [pinning.Thread(child.pid, computing)]
            assert os.sched_getaffinity(computing) == {max(ours)} and os.sched_getaffinity(child.pid) == ours
            process = psutil.Process(child.pid)
            whole_s = sum(process.cpu_times()[:2])
            assert 0.05 < pinning.cpu_s(found) < whole_s - 1.0  # without the first thread's
            assert pinning.cpu_s([pinning.Thread(2**22, 2**22)]) == 0
        finally:
            child.kill()


# ---- children


@pytest.mark.parametrize(
    ("child", "limit_s", "says"),
    [
        ("import time; time.sleep(60)", 0.3, "took longer than"),
        ("raise SystemExit('no such model')", 60.0, "failed: no such model"),
    ],
)
def test_an_encoder_alone_that_does_not_begin_is_ended(
    child: str, limit_s: float, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(children, "LOOPS", [sys.executable, "-c", child])
    monkeypatch.setattr(children, "LOOP_S", limit_s)
    before = psutil.Process().children()
    with pytest.raises(EnvironmentFault, match=says):
        children.Alone({"texts": ["a" * 1000] * 1000}, tmp_path)
    assert not set(psutil.Process().children()).difference(before)


# ---- turns

COUNTER = """
import os, sys
count = 0
while True:
    count += 1
    os.pwrite(1, count.to_bytes(8, "little"), 0)
"""


def test_of_two_that_take_turns_one_runs_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "TURN_S", 0.2)
    files = tmp_path / "ours", tmp_path / "theirs"

    def counts() -> list[int]:
        return [int.from_bytes(file.read_bytes(), "little") for file in files]

    with contextlib.ExitStack() as stack:
        pids = []
        for file in files:
            out = stack.enter_context(file.open("w+b"))
            process = stack.enter_context(subprocess.Popen([sys.executable, "-c", COUNTER], stdout=out))
            stack.callback(process.kill)
            pids.append(process.pid)
        wait_until(lambda: all(counts()), 30, lambda: "a process did not start")
        turns.pause(pids[1:])
        stands = psutil.Process(pids[1])
        wait_until(lambda: stands.status() == psutil.STATUS_STOPPED, 30, lambda: "it was not stopped")
        taken = turns.Turns(pids[:1], [pids[1], 2**22])  # one of them has ended
        before = counts()
        while not taken.theirs_s:
            waiting = counts()
            taken.wait()
        after = counts()
        assert waiting[1] == before[1], "theirs stood still until it was their turn"
        assert waiting[0] > before[0] and after[1] > waiting[1]
        assert taken.theirs_s >= 0.2 and taken.ours_s >= 0.2
        wait_until(lambda: stands.status() == psutil.STATUS_STOPPED, 30, lambda: "it was not stopped again")
        settled = counts()
        wait_until(lambda: counts()[0] > settled[0], 30, lambda: "ours did not go on")
        assert counts()[1] == settled[1], "theirs are stopped again"
