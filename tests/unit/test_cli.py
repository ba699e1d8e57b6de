"""The command as a shell sees it: exit codes, standard output, standard error, and what it imports."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from pipelines import cli
from pipelines.arguments import COMMANDS, parse
from workers.errors import SettingsError

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "ray", "kafka", "transformers", "tokenizers", "numpy", "huggingface_hub")
SECRET = "31415926"


def stream_embedder(*arguments: str, environ: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    ours = {name: value for name, value in os.environ.items() if not name.startswith("STREAM_EMBEDDER_")}
    return subprocess.run(
        [sys.executable, "-m", "pipelines", *arguments],
        env={**ours, **(environ or {})},
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def sentences(result: subprocess.CompletedProcess[str], code: int) -> str:
    """Standard error of a command that failed as it should: our sentences and nothing else."""
    assert result.returncode == code, result.stderr
    lines = result.stderr.splitlines()
    assert lines and all(line.startswith("stream-embedder: ") for line in lines), result.stderr
    return result.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["config"]])
def test_quick_answers_need_no_heavy_library(arguments: list[str]):
    code = (
        "import sys\nfrom pipelines.cli import main\n"
        f"code = main({arguments!r})\n"
        f"loaded = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "sys.exit(f'loaded {loaded}' if loaded else code)"
    )
    started = time.monotonic()
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    print(f"{' '.join(arguments)}: {time.monotonic() - started:.2f} s")
    assert result.returncode == 0, result.stderr
    assert result.stdout


def test_help_names_every_command():
    result = stream_embedder("--help")
    assert result.returncode == 0
    assert all(f"\n  {name} " in result.stdout for name in COMMANDS)


@pytest.mark.parametrize("name", list(COMMANDS))
def test_each_command_has_help_with_an_example(name: str, capsys: pytest.CaptureFixture[str]):
    assert cli.main([*name.split(), "--help"]) == 0
    text = capsys.readouterr().out
    assert COMMANDS[name].example in text
    assert "--pool.max 4" in text


def test_version(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("stream-embedder")


def test_config_shows_what_is_in_force_and_whence(tmp_path: Path):
    file = tmp_path / "pipeline.yaml"
    file.write_text("pool: {max: 3, min: 2}\n")
    environ = {"STREAM_EMBEDDER_KAFKA__SASL_PASSWORD": SECRET, "STREAM_EMBEDDER_POOL__IN_FLIGHT": "5"}
    result = stream_embedder("config", "-c", str(file), "--pool.max=9", environ=environ)
    assert result.returncode == 0, result.stderr
    lines = {line.split(":")[0].strip(): line.split() for line in result.stdout.splitlines()}
    assert lines["max"] == ["max:", "9", "#", "--pool.max"]
    assert lines["min"] == ["min:", "2", "#", str(file)]
    assert lines["in_flight"][-1] == "STREAM_EMBEDDER_POOL__IN_FLIGHT"
    assert lines["sasl_password"][1] == "'**********'"
    assert SECRET not in result.stdout + result.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "a command is needed"),
        (["walk"], "there is no command 'walk'"),
        (["config", "-c", "/absent.yaml"], "/absent.yaml cannot be read"),
        (["config", "--pool.maxx", "3"], "did you mean pool.max?"),
        (["config", "--verbose"], "unknown flag --verbose"),
        (["encode", "--precison", "float16", "text"], "did you mean --precision?"),
        (["encode", "--precision", "int3", "text"], "invalid choice"),
        (["encode", "--dim", "0", "text"], "a whole number from 1 up is needed"),
        (["encode", "--precision", "int8_ranges", "text"], "precision int8_ranges needs ranges"),
        (["encode", "--ranges", "r.npz", "text"], "not float32; leave it out"),
        (["encode", "--precision", "binary", "--dim", "9", "text"], "dim (9) is not a multiple of 8"),
        (["topics"], "topics needs one of create"),
        (["offsets", "walk"], "offsets needs one of show, reset"),
        (["offsets", "reset"], "required: --to"),
        (["topics", "create", "--partitions", "0"], "a whole number from 1 up is needed"),
        (["status"], "source.topics or source.pattern is needed"),
        (["status", "--wait", "0"], "a number of seconds above 0 is needed, not '0'"),
        (["status", "documents"], "status takes no argument such as 'documents'"),
        (["offsets", "show"], "source.topics or source.pattern is needed"),
        (["dead-letters"], "dead-letters needs one of list, show, replay"),
        (["dead-letters", "walk"], "dead-letters needs one of list, show, replay"),
        (["dead-letters", "list", "0/1"], "dead-letters list takes no argument such as '0/1'"),
        (["dead-letters", "list", "--since", "yesterday"], "--since yesterday: write a timestamp"),
        (["dead-letters", "list", "--since", "999999999w"], "--since 999999999w: write a timestamp"),
        (["dead-letters", "list", "--stage", "text", "--stage", "tex"], "invalid choice"),
        (["dead-letters", "list", "--last", "-1"], "a whole number from 0 up is needed"),
        (["dead-letters", "show"], "show needs a place"),
        (["dead-letters", "show", "0-12"], "'0-12' is no place of a dead letter"),
        (["dead-letters", "replay", "0/1/2/3"], "is no place of a dead letter"),
        (["dead-letters", "replay", "--limit", "0"], "a whole number from 1 up is needed"),
        (["dead-letters", "replay"], "replay needs source.topics or source.pattern"),
        (["dead-letters", "replay", "--to", "documents.dead"], "is dead_letter.topic itself"),
        (["dead-letters", "replay", "--to", "v", "--outputs.0.topic", "v"], "texts do not belong among vectors"),
        (["calibrate", "text"], "required: --out"),
        (["calibrate", "--out", "ranges.txt", "text"], "--out ranges.txt: the file is an .npz"),
        (["calibrate", "--out", "/tmp/r.npz", "--dim", "385", "text"], "--dim (385) is larger than the 384 dimensions"),
        (["calibrate", "--out", "/tmp/r.npz", "--source.text", "{a", "text"], "source.text: "),
        (["search", "--in", "vectors"], "search needs a question"),
        (["search", "question"], "search needs a place, and the settings have no output"),
        (["search", "--in", "a", "--topic", "b", "question"], "search looks at one"),
        (["search", "--in", "ftp://host/a", "question"], "a URI starts with"),
        (["report", "--min-recall", "1.5", "a.jsonl"], "a number above 0, at most 1, is needed"),
        (["report", "--dims", "64,x", "a.jsonl"], "a whole number from 1 up is needed, not 'x'"),
        (["report", "--dims", "64,385", "a.jsonl"], "--dims 385: all-MiniLM-L6-v2 has 384 dimensions"),
        (["report", "texts.csv"], "texts.csv: texts are read from JSON lines"),
        (["demo", "--rows", "-5"], "a whole number from 1 up is needed"),
        (["config", "--pool.max"], "--pool.max needs a value"),
        (["config", "--pool.max", "--pool.min", "1"], "--pool.max needs a value"),
        (["config", "stray"], "takes no argument such as 'stray'"),
        (["config", "--kafka.sasl_pasword", SECRET], "did you mean kafka.sasl_password?"),
        (["config", "--kafka.sasl_password", SECRET], "put it into STREAM_EMBEDDER_KAFKA__SASL_PASSWORD"),
        (
            ["config", "--kafka", f"{{oauth: {{client_secret: {SECRET}}}}}"],
            "STREAM_EMBEDDER_KAFKA__OAUTH__CLIENT_SECRET",
        ),
        (["run"], "source.topics or source.pattern is needed"),
        (["check", "--source.topics", "a"], "outputs is empty"),
        (["config", "--outputs.0.topic", "v", "--outputs.0.dim", "385"], "larger than the 384 dimensions"),
        (["run", "--source.topics", "a", "--outputs.0.topic", "v", "--model.max_tokens", "257"], "the 256 tokens"),
        (["check", "--source.topics", "a", "--outputs.0.topic", "v", "--model.prompt", "query"], "no prompts"),
        (["config", "--pool.max_batch_tokens", "255"], "smaller than the longest text"),
    ],
)
def test_wrong_settings_are_a_sentence_and_exit_2(arguments: list[str], says: str):
    told = sentences(stream_embedder(*arguments), 2)
    assert says in told
    assert SECRET not in told


def test_config_does_not_need_the_model(tmp_path: Path):
    (tmp_path / "config.json").write_text("{}")
    for name in ("someone/never-downloaded", "./absent", str(tmp_path)):
        assert stream_embedder("config", "--model.name", name).returncode == 0


def test_a_bug_is_one_sentence_unless_asked(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def broken(*_: object) -> int:
        raise ZeroDivisionError(SECRET)

    monkeypatch.setattr(cli, "_command", broken)
    monkeypatch.delenv("STREAM_EMBEDDER_DEBUG", raising=False)
    assert cli.main(["config"]) == 1
    told = capsys.readouterr().err
    assert told == "stream-embedder: unexpected ZeroDivisionError; set STREAM_EMBEDDER_DEBUG=1 for the traceback\n"
    monkeypatch.setenv("STREAM_EMBEDDER_DEBUG", "1")
    assert cli.main(["config"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_an_interrupt_is_silent(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def interrupted(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_command", interrupted)
    assert cli.main(["run"]) == 130
    assert capsys.readouterr().err == ""


def test_a_reader_that_leaves_is_no_error():
    command = f"{sys.executable} -m pipelines config | true; exit ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.stderr == ""
    assert result.returncode in (0, 141)


def test_texts_and_flags_mix():
    arguments = parse("encode", ["one", "--model.max_tokens", "9", "--dim=64", "two", "--", "--three", "-4"], ["pool"])
    assert arguments.words == ["one", "two", "--three", "-4"]
    assert arguments.flags == [("model.max_tokens", "9")]
    assert arguments.options.dim == 64


def test_a_value_may_look_like_anything_after_an_equals_sign():
    arguments = parse(
        "config", ["--model.prompt_text=--x = y\n", "--pool", "{max: 2}", "--kafka.ssl-cafile", "a"], ["pool"]
    )
    assert arguments.flags == [("model.prompt_text", "--x = y\n"), ("pool", "{max: 2}"), ("kafka.ssl_cafile", "a")]


def test_help_after_two_dashes_is_a_text():
    arguments = parse("encode", ["--", "--help"], [])
    assert arguments.words == ["--help"]
    with pytest.raises(SettingsError, match="unknown flag -x"):
        parse("encode", ["-x"], [])
