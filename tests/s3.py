"""A real S3 server on loopback for tests: versitygw over a folder, built once with Go and kept in the user's cache.

``with S3Server(folder) as server`` starts one; the fixtures ``s3`` and ``bucket`` share one among all tests.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.loopback import HOST, end, end_with_us, free_port

VERSION = "v1.8.0"
PACKAGE = f"github.com/versity/versitygw/cmd/versitygw@{VERSION}"
REGION = "us-east-1"
BUILD_S = 900  # 80 s on a free machine


# Where it is kept; taken at import, before a test changes the environment.
PROGRAM = Path(
    os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "stream-embedder", f"versitygw-{VERSION}", "versitygw"
)


class NoServer(Exception):
    """There is no server to be had on this machine, for this reason."""


def gateway() -> Path:
    """The server's program: out of the cache, else built, which needs Go and its module proxy.

    Raises:
        NoServer: Go is missing, or cannot build it here.
    """
    if not PROGRAM.is_file():
        go = shutil.which("go")
        if go is None:
            raise NoServer("the S3 server for tests (versitygw) is built with Go, and go is not on the PATH")
        PROGRAM.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=PROGRAM.parent, prefix="building-") as work:
            environ = {**os.environ, "GOBIN": work}
            done = subprocess.run(
                [go, "install", PACKAGE], env=environ, capture_output=True, text=True, timeout=BUILD_S, check=False
            )
            if done.returncode != 0:
                raise NoServer(f"go install {PACKAGE}: {(done.stderr.strip() or '?').splitlines()[-1]}")
            Path(work, PROGRAM.name).replace(PROGRAM)
    return PROGRAM


@dataclass(frozen=True, slots=True)
class Request:
    """A line of the server's access log: ``operation`` such as ``GetObject``, and the HTTP status."""

    operation: str
    key: str
    status: int


class S3Server:
    """One server process, at ``host``. Its root user may do everything; :meth:`add_user` makes one that may do nothing."""

    def __init__(self, folder: Path, host: str = HOST) -> None:
        self.folder = folder
        self.host = host
        self.access_key, self.secret_key = f"root{secrets.token_hex(6)}", secrets.token_hex(20)
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._watchdog: subprocess.Popen[bytes] | None = None

    @property
    def port(self) -> int:
        return self._port

    @property
    def endpoint(self) -> str:
        return f"http://{self.host}:{self._port}"

    @property
    def data(self) -> Path:
        """The folder whose folders are the buckets. A file put into one is an object without an ETag."""
        return self.folder / "data"

    @property
    def environ(self) -> dict[str, str]:
        """What a client's environment holds to reach this server as its root user."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_REGION": REGION,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
        }

    def start(self) -> None:
        """Start the server and wait until it listens."""
        program = gateway()
        for name in ("data", "metadata", "users"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        command = [str(program), "--port", f"{self.host}:{self._port}", "--region", REGION, "--quiet"]
        command += ["--iam-dir", str(self.folder / "users"), "--access-log", str(self.folder / "access.log")]
        # Metadata in a folder beside: not every file system has extended attributes.
        command += ["posix", "--sidecar", str(self.folder / "metadata"), str(self.data)]
        output = self.folder / "server.log"
        with output.open("ab") as file:
            self._process = subprocess.Popen(
                command, env=self._root(), stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
            )
        self._watchdog = end_with_us(self._process.pid)
        deadline = time.monotonic() + 30
        while not self._listens():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError(f"versitygw did not start: {output.read_text(errors='replace')[-500:]}")
            time.sleep(0.05)

    def stop(self) -> None:
        end(self._process, self._watchdog)
        self._process = self._watchdog = None

    def __enter__(self) -> S3Server:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def add_bucket(self, stem: str = "bucket") -> str:
        """A new bucket's name, in S3's letters: ``stem`` and some random ones."""
        name = f"{re.sub(r'[^a-z0-9-]+', '-', stem.lower())[:40].strip('-')}-{uuid.uuid4().hex[:8]}"
        (self.data / name).mkdir()
        return name

    def store(self, bucket: str) -> Any:
        """An obstore store of a bucket, as the root user."""
        from obstore.store import S3Store

        return S3Store(
            bucket,
            endpoint=self.endpoint,
            region=REGION,
            access_key_id=self.access_key,
            secret_access_key=self.secret_key,
            client_options={"allow_http": True},
        )

    def upload(self, folder: Path, bucket: str, prefix: str) -> None:
        """Put all files of a folder under a prefix."""
        import obstore

        store = self.store(bucket)
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                obstore.put(store, f"{prefix}/{path.relative_to(folder).as_posix()}", path)

    def add_user(self) -> dict[str, str]:
        """A new user who owns nothing and may read nothing, as AWS variables."""
        access, secret = f"user{secrets.token_hex(6)}", secrets.token_hex(20)
        command = [str(gateway()), "admin", "--access", self.access_key, "--secret", self.secret_key]
        command += ["--endpoint-url", self.endpoint, "create-user", "--access", access, "--secret", secret]
        subprocess.run([*command, "--role", "user"], check=True, capture_output=True, timeout=30)
        return {**self.environ, "AWS_ACCESS_KEY_ID": access, "AWS_SECRET_ACCESS_KEY": secret}

    def requests(self, bucket: str) -> list[Request]:
        """What was asked of a bucket, in order."""
        found = []
        for line in (self.folder / "access.log").read_text(encoding="utf-8", errors="replace").splitlines():
            match = re.match(rf"\S+ {re.escape(bucket)} \[.*?\] .*? s3_(\w+) (.*?) /\S* (\d{{3}}) ", line)
            if match is not None:
                found.append(Request(match[1], match[2], int(match[3])))
        return found

    def _root(self) -> dict[str, str]:
        return {**os.environ, "ROOT_ACCESS_KEY": self.access_key, "ROOT_SECRET_KEY": self.secret_key}

    def _listens(self) -> bool:
        try:
            with socket.create_connection((self.host, self._port), timeout=1):
                return True
        except OSError:
            return False
