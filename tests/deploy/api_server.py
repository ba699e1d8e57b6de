"""A real kube-apiserver on loopback, over a real etcd: it takes objects as a cluster's would, and nobody acts on them.

``with ApiServer(folder) as server`` starts one. Its namespace enforces the profile ``restricted``, and it knows the custom
resources of KubeRay and the Prometheus operator.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from pipelines.loopback import end, end_with_us, free_port
from tests.deploy import tools
from tests.deploy.schemas import custom_definitions

READY_S = 120


class NotTaken(Exception):
    """The server refuses an object, and says why."""


class ApiServer:
    """One server with an empty store."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port = free_port()
        self._token = secrets.token_hex(16)
        self._running: list[tuple[subprocess.Popen[bytes], Any]] = []
        self._trust = ssl._create_unverified_context()  # it signs its own certificate, and is on loopback
        self._resources: dict[tuple[str, str], tuple[str, bool]] = {}

    def __enter__(self) -> ApiServer:
        key, tokens = self._folder / "accounts.key", self._folder / "tokens.csv"
        subprocess.run(["openssl", "genrsa", "-out", key, "2048"], check=True, capture_output=True)
        tokens.write_text(f'{self._token},admin,admin,"system:masters"\n')
        store, peers = free_port(), free_port()
        try:
            self._start(
                tools.etcd(),
                f"--data-dir={self._folder / 'etcd'}",
                f"--listen-client-urls=http://127.0.0.1:{store}",
                f"--advertise-client-urls=http://127.0.0.1:{store}",
                f"--listen-peer-urls=http://127.0.0.1:{peers}",
                f"--initial-advertise-peer-urls=http://127.0.0.1:{peers}",
                f"--initial-cluster=default=http://127.0.0.1:{peers}",
                "--unsafe-no-fsync",
            )
            self._start(
                tools.api_server(),
                f"--etcd-servers=http://127.0.0.1:{store}",
                f"--secure-port={self._port}",
                "--bind-address=127.0.0.1",
                "--advertise-address=127.0.0.1",
                f"--cert-dir={self._folder / 'certificates'}",
                f"--token-auth-file={tokens}",
                f"--service-account-key-file={key}",
                f"--service-account-signing-key-file={key}",
                "--service-account-issuer=https://kubernetes.default.svc",
                "--service-cluster-ip-range=10.96.0.0/16",
                "--authorization-mode=RBAC",
                "--endpoint-reconciler-type=none",
            )
            self._wait()
            for definition in custom_definitions():
                self.create(definition)
            self._await_custom()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        while self._running:
            end(*self._running.pop())

    def _start(self, program: Path, *arguments: str) -> None:
        with (self._folder / f"{program.name}.log").open("wb") as log:
            process = subprocess.Popen(
                [program, *arguments], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self._running.append((process, end_with_us(process.pid)))

    def _wait(self) -> None:
        deadline = time.monotonic() + READY_S
        while True:
            try:
                self._ask("GET", "/readyz", parse=False)
                return
            except (OSError, NotTaken) as error:
                if time.monotonic() > deadline or any(process.poll() is not None for process, _ in self._running):
                    said = "\n".join(path.read_text(errors="replace")[-1000:] for path in self._folder.glob("*.log"))
                    raise RuntimeError(f"the API server did not start: {error}\n{said}") from None
                time.sleep(0.3)

    def _await_custom(self) -> None:
        """Custom resources are served a moment after their definitions are taken."""
        deadline = time.monotonic() + READY_S
        for spec in (definition["spec"] for definition in custom_definitions()):
            for version in (f"{spec['group']}/{version['name']}" for version in spec["versions"] if version["served"]):
                while self._resource(version, spec["names"]["kind"]) is None:
                    assert time.monotonic() < deadline, f"{version} {spec['names']['kind']} is not served"
                    time.sleep(0.1)

    def _ask(self, method: str, path: str, body: object = None, *, parse: bool = True) -> Any:
        request = urllib.request.Request(
            f"https://127.0.0.1:{self._port}{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=30, context=self._trust) as answer:
                text = answer.read()
        except urllib.error.HTTPError as error:
            text = error.read().decode(errors="replace")
            with contextlib.suppress(ValueError, KeyError, TypeError):
                text = json.loads(text)["message"]
            raise NotTaken(f"{error.code}: {text}") from None
        return json.loads(text) if parse else None

    def _resource(self, version: str, kind: str) -> tuple[str, bool] | None:
        """The plural of a kind, and whether it lies in namespaces."""
        key = version, kind
        if key not in self._resources:
            try:
                listed = self._ask("GET", _root(version))["resources"]
            except NotTaken:
                return None
            for found in listed:
                if "/" not in found["name"]:
                    self._resources[version, found["kind"]] = found["name"], found["namespaced"]
        return self._resources.get(key)

    def create(self, made: dict[str, Any], namespace: str = "default", *, dry_run: bool = False) -> None:
        """Create an object, strictly: no field that the server does not know. ``dry_run``: all but storing it.

        Raises:
            NotTaken: the server refuses it.
        """
        options = "fieldValidation=Strict" + ("&dryRun=All" if dry_run else "")
        self._ask("POST", f"{self._path(made['apiVersion'], made['kind'], namespace)}?{options}", made)

    def all(self, version: str, kind: str, namespace: str) -> list[dict[str, Any]]:
        """The objects of a kind."""
        return list(self._ask("GET", self._path(version, kind, namespace))["items"])

    def kubeconfig(self) -> Path:
        """A file for kubectl and helm."""
        server = {"server": f"https://127.0.0.1:{self._port}", "insecure-skip-tls-verify": True}
        made = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "it", "cluster": server}],
            "users": [{"name": "admin", "user": {"token": self._token}}],
            "contexts": [{"name": "it", "context": {"cluster": "it", "user": "admin"}}],
            "current-context": "it",
        }
        path = self._folder / "kubeconfig"
        path.touch(0o600)
        path.write_text(json.dumps(made))
        return path

    def _path(self, version: str, kind: str, namespace: str) -> str:
        found = self._resource(version, kind)
        if found is None:
            raise NotTaken(f"404: no {kind} of {version}")
        plural, namespaced = found
        where = f"/namespaces/{namespace}" if namespaced else ""
        return f"{_root(version)}{where}/{plural}"

    def add_namespace(self, name: str) -> None:
        """A namespace that enforces ``restricted``."""
        labels = {"pod-security.kubernetes.io/enforce": "restricted"}
        self.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})


def _root(version: str) -> str:
    return f"/api/{version}" if "/" not in version else f"/apis/{version}"
