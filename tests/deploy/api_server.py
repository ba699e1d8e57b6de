"""A real kube-apiserver over a real etcd: it takes objects as a cluster's would, and alone nobody acts on them.

``with ApiServer(folder) as server`` starts one, on loopback. Its namespaces enforce the profile ``restricted``, and it knows the
custom resources of KubeRay and the Prometheus operator.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import ssl
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.loopback import HOST, free_port
from tests.certificates import Authority
from tests.deploy import tools
from tests.deploy.programs import Programs
from tests.deploy.schemas import custom_definitions

READY_S = 120


class NotTaken(Exception):
    """The server refuses something, and says why."""


class ApiServer:
    """One server with an empty store, at ``host``, in whose name it has a certificate."""

    def __init__(self, folder: Path, host: str = HOST) -> None:
        self.authority = folder / "ca.crt"
        self.accounts_key = folder / "accounts.key"
        self.host, self.port = host, free_port()
        self._folder = folder
        self._token = secrets.token_hex(16)
        self._programs = Programs(folder)
        self._resources: dict[tuple[str, str], tuple[str, bool]] = {}

    def __enter__(self) -> ApiServer:
        certificate, key = self._certify()
        self._trust = ssl.create_default_context(cafile=str(self.authority))
        tokens = self._folder / "tokens.csv"
        tokens.touch(0o600)
        tokens.write_text(f'{self._token},admin,admin,"system:masters"\n')
        store, peers = free_port(), free_port()
        try:
            self._programs.start(
                tools.etcd(),
                f"--data-dir={self._folder / 'etcd'}",
                f"--listen-client-urls=http://127.0.0.1:{store}",
                f"--advertise-client-urls=http://127.0.0.1:{store}",
                f"--listen-peer-urls=http://127.0.0.1:{peers}",
                f"--initial-advertise-peer-urls=http://127.0.0.1:{peers}",
                f"--initial-cluster=default=http://127.0.0.1:{peers}",
                "--unsafe-no-fsync",
            )
            self._programs.start(
                tools.api_server(),
                f"--etcd-servers=http://127.0.0.1:{store}",
                f"--secure-port={self.port}",
                f"--bind-address={self.host}",
                f"--advertise-address={self.host}",
                f"--tls-cert-file={certificate}",
                f"--tls-private-key-file={key}",
                f"--token-auth-file={tokens}",
                f"--service-account-key-file={self.accounts_key}",
                f"--service-account-signing-key-file={self.accounts_key}",
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
        self._programs.end()

    def _certify(self) -> tuple[Path, Path]:
        """The server's certificate and its key, of an authority of its own; and the key that accounts' tokens are signed with."""
        subprocess.run(["openssl", "genrsa", "-out", self.accounts_key, "2048"], check=True, capture_output=True)
        authority = Authority()
        self.authority.write_text(authority.pem)
        return authority.issue("kube-apiserver", self.host, "kubernetes.default.svc").write(self._folder, "server")

    def _wait(self) -> None:
        deadline = time.monotonic() + READY_S
        while True:
            try:
                self.ask("GET", "/readyz", parse=False)
                return
            except (OSError, NotTaken) as error:
                if time.monotonic() > deadline or self._programs.one_has_ended:
                    raise RuntimeError(f"the API server did not start: {error}\n{self._programs.said()}") from None
                time.sleep(0.3)

    def _await_custom(self) -> None:
        """Custom resources are served a moment after their definitions are taken."""
        deadline = time.monotonic() + READY_S
        for spec in (definition["spec"] for definition in custom_definitions()):
            for version in (f"{spec['group']}/{version['name']}" for version in spec["versions"] if version["served"]):
                while self._resource(version, spec["names"]["kind"]) is None:
                    assert time.monotonic() < deadline, f"{version} {spec['names']['kind']} is not served"
                    time.sleep(0.1)

    def ask(self, method: str, path: str, body: object = None, *, parse: bool = True) -> Any:
        """What the server answers; a PATCH is a merge.

        Raises:
            NotTaken: it refuses, or has no such thing.
            OSError: it does not answer.
        """
        kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
        request = urllib.request.Request(
            f"https://{self.host}:{self.port}{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {self._token}", "Content-Type": kind},
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
                listed = self.ask("GET", _root(version))["resources"]
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
        self.ask("POST", f"{self.path(made['apiVersion'], made['kind'], namespace)}?{options}", made)

    def all(self, version: str, kind: str, namespace: str | None, **chosen: str) -> list[dict[str, Any]]:
        """The objects of a kind, of a namespace or of all; ``chosen``: by selectors, ``fieldSelector`` or ``labelSelector``."""
        listed = self.ask("GET", f"{self.path(version, kind, namespace)}?{urllib.parse.urlencode(chosen)}")
        return list(listed["items"])

    def delete(
        self, version: str, kind: str, namespace: str, name: str, options: Mapping[str, Any] | None = None
    ) -> None:
        """Have an object deleted, as ``kubectl delete`` has; one that is gone, or another by that name, is no error."""
        try:
            self.ask("DELETE", f"{self.path(version, kind, namespace)}/{name}", options)
        except NotTaken as refused:
            if not str(refused).startswith(("404:", "409:")):
                raise

    def kubeconfig(self) -> Path:
        """A file for kubectl and helm."""
        server = {"server": f"https://{self.host}:{self.port}", "certificate-authority": str(self.authority)}
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

    def path(self, version: str, kind: str, namespace: str | None) -> str:
        """Where the server has the objects of a kind."""
        found = self._resource(version, kind)
        if found is None:
            raise NotTaken(f"404: no {kind} of {version}")
        plural, namespaced = found
        where = f"/namespaces/{namespace}" if namespaced and namespace is not None else ""
        return f"{_root(version)}{where}/{plural}"

    def add_namespace(self, name: str) -> None:
        """A namespace that enforces ``restricted``."""
        labels = {"pod-security.kubernetes.io/enforce": "restricted"}
        self.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})


def _root(version: str) -> str:
    return f"/api/{version}" if "/" not in version else f"/apis/{version}"
