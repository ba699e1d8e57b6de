"""A model out of a real S3 server: the same lines as from the package, and one download whoever starts, or dies, when."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from tests.s3 import S3Server
from workers import object_store
from workers.encoder.hub import resolve
from workers.errors import EnvironmentFault
from workers.fingerprint import model_digest

ROOT = Path(__file__).parents[2]
BIG = 30 << 20
PART = 8 << 20
FETCH = """
import sys
from workers import log
from workers.encoder.hub import resolve
log.configure()
print(resolve(sys.argv[1]))
"""


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this test's models go."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "stream-embedder" / "models"


@pytest.fixture(scope="module")
def big_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What looks like a model: many small files, one of 30 MB, and what must not be taken."""
    folder = tmp_path_factory.mktemp("model")
    for number in range(60):
        (folder / f"part {number} ü").mkdir()
        (folder / f"part {number} ü" / "a%20b.json").write_text(json.dumps({"number": number}))
    for name, content in {"modules.json": b"[]", "config.json": b"{}", "empty.txt": b""}.items():
        (folder / name).write_bytes(content)
    (folder / "model.safetensors").write_bytes(os.urandom(BIG))
    (folder / "modeling.py").write_text("raise SystemExit")
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    return folder


@pytest.fixture
def place(s3: S3Server, bucket: str, big_model: Path) -> str:
    """``big_model`` in the store."""
    s3.upload(big_model, bucket, "models/my model")
    return f"s3://{bucket}/models/my model"


class Relay:
    """A way to the server on which no connection brings clients more than 1 MB before :meth:`open` is called.

    So small objects come, and large ones stay under way.
    """

    def __init__(self, port: int) -> None:
        self._server, self._open = port, threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets = [self._listener]
        self.endpoint = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def open(self) -> None:
        self._open.set()

    def close(self) -> None:
        self.open()
        for each in self._sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)  # wakes who waits for it
        for thread in self._threads:
            thread.join()
        for each in self._sockets:
            each.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._server))
            except OSError:
                return
            self._sockets += [client, server]
            for source, target, limit in ((client, server, None), (server, client, 1 << 20)):
                self._threads.append(threading.Thread(target=self._copy, args=(source, target, limit)))
                self._threads[-1].start()

    def _copy(self, source: socket.socket, target: socket.socket, limit: int | None) -> None:
        brought = 0
        with contextlib.suppress(OSError):  # a client that was killed
            while data := source.recv(1 << 16):
                brought += len(data)
                if limit is not None and brought > limit:
                    self._open.wait()
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)


@pytest.fixture
def relay(s3: S3Server) -> Iterator[Relay]:
    """A way to the server that holds back large objects."""
    made = Relay(s3.port)
    yield made
    made.close()


class Fetcher:
    """A process that resolves a model's name and prints the folder; its log is in a file."""

    def __init__(self, place: str, written: Path, **environ: str) -> None:
        self.written = written
        with written.open("wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-c", FETCH, place],
                cwd=ROOT,
                env={**os.environ, **environ},
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )

    @property
    def log(self) -> str:
        return self.written.read_text(encoding="utf-8")

    def says(self, text: str) -> bool:
        return text in self.log

    def result(self) -> Path:
        out, _ = self.process.communicate(timeout=60)
        assert self.process.returncode == 0, self.log
        return Path(out.strip())

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def fetch(place: str, tmp_path: Path) -> Iterator[Callable[..., Fetcher]]:
    """``fetch(**environ)`` → a process that fetches the model; none outlives the test."""
    made: list[Fetcher] = []

    def start(**environ: str) -> Fetcher:
        made.append(Fetcher(place, tmp_path / f"{len(made)}.log", **environ))
        return made[-1]

    yield start
    for each in made:
        each.kill()


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def taken(big_model: Path) -> dict[str, bytes]:
    """What is to be downloaded of it."""
    return {path: content for path, content in contents(big_model).items() if not path.endswith((".py", ".bin"))}


def gets(s3: S3Server, bucket: str) -> Counter[str]:
    """How often each object was asked for."""
    return Counter(request.key for request in s3.requests(bucket) if request.operation == "GetObject")


# ------------------------------------------------------------------ the whole


def test_encode_gives_the_line_of_the_packaged_model(s3: S3Server, bucket: str, models: Path):
    packaged = resolve("all-MiniLM-L6-v2")
    s3.upload(packaged, bucket, "team/MiniLM")

    # The command twice in one process, which loads torch once.
    program = "import sys; from pipelines.cli import main; sys.exit(main(['encode', *sys.argv[1:]]) or main(['encode', 'a text']))"
    command = [sys.executable, "-c", program, "--model.name", f"s3://{bucket}/team/MiniLM", "a text"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=180, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    ours, theirs = map(json.loads, done.stdout.splitlines())
    assert (ours.pop("model"), theirs.pop("model")) == ("MiniLM", "all-MiniLM-L6-v2")
    assert ours == theirs, "the vector, and the fingerprint: equal files, wherever they came from"
    (folder,) = (path for path in models.iterdir() if path.is_dir())
    assert model_digest(folder) == model_digest(packaged)


# ------------------------------------------------------------------ a download


def test_many_objects_and_a_large_one(s3: S3Server, bucket: str, place: str, big_model: Path):
    expected = taken(big_model)
    folder = resolve(place)
    assert contents(folder) == expected
    asked = gets(s3, bucket)
    assert asked == {
        f"models/my model/{path}": -(-len(content) // PART) for path, content in expected.items() if content
    }
    assert resolve(place) == folder
    assert gets(s3, bucket) == asked, "the second time it only asks which version is current"
    s3.upload(big_model, bucket, "others/my model")
    assert resolve(f"s3://{bucket}/others/my model") != folder


def test_objects_without_etags(s3: S3Server, bucket: str, big_model: Path):
    shutil.copytree(big_model, s3.data / bucket / "raw")  # past the server, which therefore knows no ETag of them
    folder = resolve(f"s3://{bucket}/raw")
    assert contents(folder) == taken(big_model)
    stored = s3.data / bucket / "raw" / "config.json"
    os.utime(stored, (0, 0))
    assert resolve(f"s3://{bucket}/raw") != folder


def under_way(models: Path) -> bool:
    """Whether a download has brought all that the relay lets through."""
    return len([path for path in models.glob("*.partial/part*/*") if path.stat().st_size]) == 60


def whole(models: Path) -> list[str]:
    """The folders that somebody may take for a model."""
    return [path.name for path in models.iterdir() if path.suffix not in (".lock", ".partial")]


def test_of_processes_that_start_at_once_one_downloads(
    s3: S3Server, bucket: str, big_model: Path, relay: Relay, models: Path, fetch: Callable[..., Fetcher]
):
    many = [fetch(AWS_ENDPOINT_URL=relay.endpoint) for _ in range(3)]
    eventually(lambda: sum(each.says("waiting for another process's download") for each in many) == 2)
    eventually(lambda: under_way(models))
    assert whole(models) == [], "nobody sees a folder before it is whole"
    relay.open()
    (folder,) = {each.result() for each in many}
    assert contents(folder) == taken(big_model)
    assert sum(each.says(" model downloaded ") for each in many) == 1
    assert gets(s3, bucket)["models/my model/model.safetensors"] == -(-BIG // PART)


def test_who_waits_for_a_download_that_is_killed_does_it_anew(
    big_model: Path, relay: Relay, models: Path, fetch: Callable[..., Fetcher]
):
    first = fetch(AWS_ENDPOINT_URL=relay.endpoint)
    eventually(lambda: under_way(models))
    waiting = fetch()
    eventually(lambda: waiting.says("waiting for another process's download"))
    first.kill()
    folder = waiting.result()
    assert waiting.says(" model downloaded ")
    assert contents(folder) == taken(big_model)
    assert {path.name for path in models.iterdir()} == {folder.name, f"{folder.name}.lock"}


def test_a_killed_download_is_nothing_to_the_next_start(
    place: str, big_model: Path, relay: Relay, models: Path, fetch: Callable[..., Fetcher]
):
    first = fetch(AWS_ENDPOINT_URL=relay.endpoint)
    eventually(lambda: under_way(models))
    first.kill()
    assert whole(models) == [] and len(list(models.glob("*.partial"))) == 1
    folder = resolve(place)
    assert contents(folder) == taken(big_model)
    assert {path.name for path in models.iterdir()} == {folder.name, f"{folder.name}.lock"}


# ------------------------------------------------------------------ what is wrong


@pytest.mark.parametrize(
    ("environ", "says"),
    [
        (
            {"AWS_SECRET_ACCESS_KEY": "SENTINEL"},
            r"the store refuses the credentials \(SignatureDoesNotMatch\): set AWS_",
        ),
        ({"AWS_ACCESS_KEY_ID": "SENTINEL"}, "the store refuses the credentials"),
        ({"AWS_REGION": "eu-west-1"}, "the bucket is in another region: set AWS_REGION to us-east-1"),
    ],
)
def test_what_is_wrong_with_the_environment(
    bucket: str, models: Path, monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], says: str
):
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(EnvironmentFault, match=f"s3://{bucket}/m: {says}") as caught:
        resolve(f"s3://{bucket}/m")
    assert "SENTINEL" not in str(caught.value)
    assert not models.exists()


def test_a_user_without_rights(s3: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch):
    for name, value in s3.add_user().items():
        monkeypatch.setenv(name, value)
    with pytest.raises(
        EnvironmentFault, match=r"these credentials may not list or read it \(AccessDenied\): grant both"
    ):
        resolve(f"s3://{bucket}/m")


def test_no_such_bucket_and_nothing_under_a_prefix(s3: S3Server, bucket: str, place: str):
    with pytest.raises(EnvironmentFault, match=rf"s3://{bucket}x/m: there is no such bucket at {s3.endpoint}"):
        resolve(f"s3://{bucket}x/m")
    with pytest.raises(EnvironmentFault, match=rf"s3://{bucket}/m: nothing lies under it; is the prefix right\?"):
        resolve(f"s3://{bucket}/m")
    # A prefix is a folder's name, not the beginning of one.
    with pytest.raises(EnvironmentFault, match="nothing lies under it"):
        resolve(place.removesuffix("l"))
    with pytest.raises(EnvironmentFault, match=re.escape(f"s3://{bucket} is no model: it has neither modules.json")):
        resolve(f"s3://{bucket}")


def test_a_store_out_of_reach_is_a_fault_even_where_a_copy_lies(
    bucket: str, place: str, models: Path, monkeypatch: pytest.MonkeyPatch
):
    """Which version is current only the store knows; an older one in its place would go unseen."""
    folder = resolve(place)
    monkeypatch.setitem(object_store._RETRY, "retry_timeout", timedelta(seconds=0.5))
    with socket.create_server(("127.0.0.1", 0)) as taken_and_closed:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{taken_and_closed.getsockname()[1]}")
    with pytest.raises(EnvironmentFault, match=r"is out of reach: nothing listens there"):
        resolve(place)
    assert resolve(str(folder)) == folder, "who wants the copy names it"
