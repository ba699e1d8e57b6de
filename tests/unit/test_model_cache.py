"""A model out of a store that is a folder (``file://``): what is downloaded, once, whole, and what is refused."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from workers.encoder import cache
from workers.encoder.hub import location_of, resolve, short_name
from workers.errors import EnvironmentFault, SettingsError

ROOT = Path(__file__).parents[2]
SMALL = {
    "modules.json": b"[]",
    "config.json": b"{}",
    "model.safetensors": b"weights",
    "vocab.txt": b"word\n",
    "chat_template.jinja": b"",
    "sentencepiece.model": b"",
    "1_Pooling/config.json": b"{}",
}
LEFT = {
    "modeling.py": b"raise SystemExit",
    "pytorch_model.bin": b"pickle",
    "onnx/model.onnx": b"graph",
    "README.md": b"read",
    "config.json.bak": b"{}",
}


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this test's models go."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "stream-embedder" / "models"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A model in a store."""
    return put(tmp_path / "store" / "tiny", SMALL)


def put(folder: Path, files: dict[str, bytes]) -> Path:
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    return folder


def uri(folder: Path) -> str:
    return f"file://{folder}"


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def downloads(caplog: pytest.LogCaptureFixture) -> int:
    return sum(record.message.startswith("model downloaded ") for record in caplog.records)


@pytest.fixture(autouse=True)
def logged(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("stream_embedder"), "propagate", True)  # a test before may have configured it
    caplog.set_level(logging.INFO, "stream_embedder")


# ------------------------------------------------------------------ what is downloaded, and when


def test_a_model_is_downloaded_once_and_nothing_else_of_it(store: Path, models: Path, caplog):
    put(store, LEFT)
    folder = resolve(uri(store))
    assert files(folder) == SMALL
    assert folder.parent == models and folder.name.startswith("tiny-")
    (line,) = [record.message for record in caplog.records if record.message.startswith("model downloaded ")]
    size = sum(map(len, SMALL.values()))
    assert f"uri={uri(store)} bytes={size} seconds=0." in line and line.endswith(f"folder={folder}")
    before = folder.stat()
    assert resolve(uri(store) + "/") == folder
    assert downloads(caplog) == 1 and folder.stat() == before
    assert {path.name for path in models.iterdir()} == {folder.name, f"{folder.name}.lock"}


def test_it_is_on_the_disk_before_it_is_seen_and_appears_at_once(store: Path, models: Path, monkeypatch):
    """A rename is all or nothing, and what is renamed has been synced, every file and folder of it."""
    synced: dict[str, int] = {}
    real = cache._sync

    def sync(path: Path) -> None:
        synced[path.relative_to(models).as_posix()] = path.stat().st_ino
        real(path)

    monkeypatch.setattr(cache, "_sync", sync)
    folder = resolve(uri(store))
    partial = f"{folder.name}.partial"
    assert synced.keys() == {*(f"{partial}/{path}" for path in [*SMALL, "1_Pooling"]), partial, "."}
    assert list(synced)[-2:] == [partial, "."]
    assert synced[partial] == folder.stat().st_ino


def test_a_file_of_many_parts(store: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cache, "_PART_BYTES", 1000)
    content = os.urandom(25_500)
    put(store, {"model.safetensors": content, "exact.txt": content[:3000]})
    folder = resolve(uri(store))
    assert files(folder) == {**SMALL, "model.safetensors": content, "exact.txt": content[:3000]}


def test_a_model_that_changed_is_another_folder(store: Path, tmp_path: Path):
    first = resolve(uri(store))
    put(store, {"model.safetensors": b"WEIGHTS"})
    second = resolve(uri(store))
    assert second != first
    assert (files(second)["model.safetensors"], files(first)) == (b"WEIGHTS", SMALL), "who runs on it keeps it"
    put(store, {"README.md": b"no part of the model"})
    assert resolve(uri(store)) == second
    other = put(tmp_path / "elsewhere" / "tiny", SMALL)
    assert resolve(uri(other)) not in (first, second)


def test_a_folder_that_lost_a_file_is_made_whole(store: Path, caplog):
    folder = resolve(uri(store))
    (folder / "1_Pooling" / "config.json").unlink()
    assert resolve(uri(store)) == folder and files(folder) == SMALL
    (folder / "model.safetensors").write_bytes(b"")
    assert resolve(uri(store)) == folder and files(folder) == SMALL
    assert downloads(caplog) == 3


def test_threads_that_start_at_once_download_once(store: Path, monkeypatch: pytest.MonkeyPatch, caplog):
    monkeypatch.setattr(cache, "_LOOK_S", 0.01)
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(resolve, [uri(store)] * 8))
    assert len(found) == 1 and files(found.pop()) == SMALL
    assert downloads(caplog) == 1


# ------------------------------------------------------------------ what a death leaves


def test_what_killed_downloads_left_goes(store: Path, models: Path):
    name = resolve(uri(store)).name
    # This model's own, as if killed before the rename; and another's, which nobody will ask for again.
    (models / name).rename(models / f"{name}.partial")
    put(models / f"{name}.partial", {"stray.json": b"older"})
    put(models / "other-1.partial", SMALL)
    put(models / "running-1.partial", SMALL)
    with (models / "running-1.lock").open("wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)  # a download under way, elsewhere
        folder = resolve(uri(store))
    assert files(folder) == SMALL
    assert [path.name for path in models.glob("*.partial")] == ["running-1.partial"]
    assert files(models / "running-1.partial") == SMALL


def test_a_download_that_fails_leaves_nothing(store: Path, models: Path, monkeypatch: pytest.MonkeyPatch):
    real = cache.ObjectStore.read

    def read(self: cache.ObjectStore, wanted: cache.StoredObject, start: int, end: int) -> memoryview:
        if wanted.path == "vocab.txt":
            raise EnvironmentFault("the line is cut")
        return real(self, wanted, start, end)

    with monkeypatch.context() as patched:
        patched.setattr(cache.ObjectStore, "read", read)
        with pytest.raises(EnvironmentFault, match="the line is cut"):
            resolve(uri(store))
    assert [path.suffix for path in models.iterdir()] == [".lock"]
    assert files(resolve(uri(store))) == SMALL


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({}, "nothing lies under it; is the prefix right?"),
        ({"readme.md": b""}, "is no model: it has neither modules.json nor config.json"),
        ({"v2/modules.json": b"", "v2/model.safetensors": b""}, r"did you mean file:///.*/place/v2\?"),
        ({"config.json": b"", "pytorch_model.bin": b""}, r"has no \*\.safetensors; pickled weights can run code"),
        ({"config.json": b"", "model.safetensors": b"", "a\\b.json": b""}, "leads out of the folder"),
        ({"config.json": b"", "model.safetensors": b"", "a\nb.json": b""}, "no plain path"),
        ({f"{number}.json": b"" for number in range(12)}, "more than 10 objects lie under it"),
    ],
)
def test_what_is_no_model(tmp_path: Path, models: Path, monkeypatch, content: dict[str, bytes], says: str):
    monkeypatch.setattr(cache, "_MOST_OBJECTS", 10)
    place = tmp_path / "place"
    place.mkdir()
    put(place, content)
    with pytest.raises(EnvironmentFault, match=says):
        resolve(uri(place))
    assert not models.exists(), "found out before anything was downloaded"


@pytest.mark.parametrize(
    "path", ["../evil.json", "a/../../evil.json", "/evil.json", "a//b.json", "./a.json", "a\0.json"]
)
def test_paths_that_lead_out_are_refused(store: Path, models: Path, monkeypatch: pytest.MonkeyPatch, path: str):
    """The client refuses most of these by itself; should it not any more, we do."""
    real = cache.ObjectStore.listing

    def listing(self: cache.ObjectStore, most: int) -> list[cache.StoredObject]:
        first, *rest = real(self, most)
        return [cache.StoredObject(path, 1, "", first.modified), first, *rest]

    monkeypatch.setattr(cache.ObjectStore, "listing", listing)
    with pytest.raises(EnvironmentFault, match="leads out of the folder; it is refused"):
        resolve(uri(store))
    assert not models.exists()


def test_a_relative_cache_is_ignored(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "some/where")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    assert resolve(uri(store)).is_relative_to(tmp_path / "home/.cache/stream-embedder/models")
    assert not (tmp_path / "some").exists()


def test_a_cache_that_cannot_be_used(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(EnvironmentFault, match=r"cannot be used \(Not a directory\): set XDG_CACHE_HOME"):
        resolve(uri(store))


def test_a_full_disk(store: Path, models: Path, monkeypatch: pytest.MonkeyPatch):
    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(cache, "_sync", full)
        with pytest.raises(EnvironmentFault, match=rf"{models} is full \(No space left on device\): make room"):
            resolve(uri(store))
    assert [path.suffix for path in models.iterdir()] == [".lock"]
    room = shutil.disk_usage(models)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: room._replace(free=17))
    with pytest.raises(EnvironmentFault, match=r"takes 18 bytes and .*/models has 17 free: make room"):
        resolve(uri(store))


# ------------------------------------------------------------------ names


@pytest.mark.parametrize("place", ["s3://bucket/model", "file:///model", "az://box/m"])
def test_a_revision_of_a_uri_is_wrong_settings(place: str):
    with pytest.raises(SettingsError, match=r"model\.revision is for hub models"):
        resolve(place, "main")
    with pytest.raises(SettingsError, match=r"model\.revision is for hub models"):
        location_of(place, "main")


def test_a_uri_of_nothing_we_know_is_wrong_settings():
    with pytest.raises(SettingsError, match=r"model\.name: a URI starts with s3://, gs://"):
        resolve("https://huggingface.co/google/embeddinggemma-300m")


def test_names_on_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = put(tmp_path / "some" / "model", {"config.json": b""})
    assert short_name("s3://bucket/team/all-MiniLM-L6-v2/") == "all-MiniLM-L6-v2"
    assert short_name("gs://bucket") == "bucket"
    assert short_name(str(folder)) == "model"
    assert short_name("google/embeddinggemma-300m") == "google/embeddinggemma-300m"
    monkeypatch.chdir(folder)
    assert (short_name("."), short_name("..")) == ("model", "some")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert short_name("~/some/model") == "model"


def test_settings_are_shown_and_checked_without_a_download(models: Path):
    """``config`` says what is in force; it neither asks the store nor waits for it."""

    def config(*flags: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pipelines", "config", *flags]
        environ = {**os.environ, "AWS_ENDPOINT_URL": "http://127.0.0.1:9"}
        return subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=60, check=False)

    shown = config("--model.name", "s3://bucket/model")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "name: 's3://bucket/model'" in shown.stdout
    assert config("--model.name", "s3://bucket/model", "--model.revision", "main").returncode == 2
    assert not models.exists()


def test_check_finds_out_whether_the_model_is_there_and_sound(tmp_path: Path):
    from pipelines.check import examine
    from workers.settings import Settings

    folder = tmp_path / "tiny"
    shutil.copytree(resolve("all-MiniLM-L6-v2"), folder, ignore=shutil.ignore_patterns("*.safetensors"))
    put(folder, {"model.safetensors": b"not looked into before an encoder starts"})

    def found(name: str):
        return next(iter(examine(Settings(model={"name": name}, source={"topics": ["t"]}, outputs=[{"topic": "v"}]))))

    sound = found(uri(folder))
    assert sound.wrong is None and sound.subject.startswith("model tiny: 384 dimensions, 256 tokens, in ")
    (folder / "1_Pooling" / "config.json").unlink()
    assert "1_Pooling/config.json is missing" in str(found(uri(folder)).wrong)
    assert "there is no such folder" in str(found(uri(tmp_path / "absent")).wrong)
