"""What Kubernetes gives a pod's containers: their environment, their volumes, who they run as.

Comes in: a pod, as the API server has it. Goes out: variables, and folders to mount. A kind of source that is not known here is
an error; parts of one (``items`` of a Secret, ``optional``) are not looked at.
"""

from __future__ import annotations

import base64
import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.deploy.api_server import ApiServer
from tests.deploy.container import Identity, Mount

_QUOTED = re.compile(r"metadata\.(labels|annotations)\['(.+)'\]")
_NAMED = re.compile(r"\$\(([A-Za-z_][A-Za-z0-9_.-]*)\)")


class NotKnown(Exception):
    """A pod asks for something that only a real kubelet knows."""


class Given:
    """What one pod has. ``folder``: of its own, for its volumes."""

    def __init__(self, server: ApiServer, pod: Mapping[str, Any], address: str, folder: Path) -> None:
        self._server = server
        self._pod = pod
        self._address = address
        self._folder = folder
        self._namespace = pod["metadata"]["namespace"]
        self._security = pod["spec"].get("securityContext") or {}
        self._mounted: list[Path] = []
        try:
            self._volumes = {volume["name"]: self._volume(volume) for volume in pod["spec"].get("volumes", ())}
        except BaseException:
            self.release()
            raise

    def identity(self, container: Mapping[str, Any]) -> Identity:
        """Who a container runs as."""
        said = {**self._security, **container.get("securityContext", {})}
        if said.get("runAsNonRoot") and not said.get("runAsUser"):
            raise NotKnown("runAsNonRoot without runAsUser")
        group = self._security.get("fsGroup")
        return Identity(said["runAsUser"], said["runAsGroup"], () if group is None else (group,))

    def environment(self, container: Mapping[str, Any]) -> dict[str, str]:
        """A container's variables."""
        found = {"HOSTNAME": self._pod["metadata"]["name"], "KUBERNETES_SERVICE_HOST": self._server.host}
        ports = ("KUBERNETES_SERVICE_PORT", "KUBERNETES_SERVICE_PORT_HTTPS")
        found |= dict.fromkeys(ports, str(self._server.port))
        if container.get("envFrom"):
            raise NotKnown("envFrom")
        for item in container.get("env", ()):
            match item.get("valueFrom"):
                case None:
                    found[item["name"]] = expanded(item.get("value", ""), found)
                case {"fieldRef": {"fieldPath": path}}:
                    found[item["name"]] = self._field(path)
                case {"secretKeyRef": {"name": name, "key": key}}:
                    found[item["name"]] = self._data("Secret", name)[key].decode()
                case {"configMapKeyRef": {"name": name, "key": key}}:
                    found[item["name"]] = self._data("ConfigMap", name)[key].decode()
                case other:
                    raise NotKnown(f"a variable from {list(other)}")
        return found

    def mounts(self, container: Mapping[str, Any]) -> list[Mount]:
        """A container's volumes, where it wants them."""
        return [
            Mount(self._volumes[item["name"]] / item.get("subPath", ""), item["mountPath"], item.get("readOnly", False))
            for item in container.get("volumeMounts", ())
        ]

    def release(self) -> None:
        """Nothing of the pod runs any more."""
        while self._mounted:
            subprocess.run(["umount", "--lazy", self._mounted.pop()], check=False)

    def _field(self, path: str) -> str:
        if (quoted := _QUOTED.fullmatch(path)) is not None:
            return str(self._pod["metadata"].get(quoted[1], {}).get(quoted[2], ""))
        match path:
            case "metadata.name" | "metadata.namespace" | "metadata.uid":
                return str(self._pod["metadata"][path.partition(".")[2]])
            case "status.podIP":
                return self._address
            case "status.hostIP":
                return self._server.host
            case "spec.nodeName" | "spec.serviceAccountName":
                return str(self._pod["spec"][path.partition(".")[2]])
        raise NotKnown(f"the field {path}")

    def _data(self, kind: str, name: str) -> dict[str, bytes]:
        data = self._server.ask("GET", f"{self._server.path('v1', kind, self._namespace)}/{name}").get("data", {})
        return {key: base64.b64decode(value) if kind == "Secret" else value.encode() for key, value in data.items()}

    def _volume(self, volume: Mapping[str, Any]) -> Path:
        folder = self._folder / volume["name"]
        folder.mkdir(parents=True)
        group = self._security.get("fsGroup", 0)
        match volume:
            case {"emptyDir": {"medium": "Memory", **more}}:
                size = more.get("sizeLimit", "1Gi").replace("i", "").lower()
                subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True)
                self._mounted.append(folder)
            case {"emptyDir": _}:
                pass
            case {"configMap": source}:
                self._write(folder, self._data("ConfigMap", source["name"]), source, group)
            case {"secret": source}:
                self._write(folder, self._data("Secret", source["secretName"]), source, group)
            case {"projected": source}:
                for part in source["sources"]:
                    self._write(folder, self._projected(part), source, group)
            case _:
                raise NotKnown(f"a volume of {list(volume)}")
        if "emptyDir" in volume:
            os.chown(folder, 0, group)
            folder.chmod(0o2777)
        return folder

    def _projected(self, part: Mapping[str, Any]) -> dict[str, bytes]:
        match part:
            case {"downwardAPI": {"items": items}}:
                return {item["path"]: self._field(item["fieldRef"]["fieldPath"]).encode() for item in items}
            case {"configMap": {"name": name, "items": items}}:
                data = self._data("ConfigMap", name)
                return {item["path"]: data[item["key"]] for item in items}
            case {"serviceAccountToken": {"path": path, **more}}:
                return {path: self._token(more).encode()}
        raise NotKnown(f"a projected volume of {list(part)}")

    def _token(self, wanted: Mapping[str, Any]) -> str:
        account = self._pod["spec"].get("serviceAccountName", "default")
        metadata = self._pod["metadata"]
        bound = {"kind": "Pod", "apiVersion": "v1", "name": metadata["name"], "uid": metadata["uid"]}
        spec = {"expirationSeconds": wanted.get("expirationSeconds", 3600), "boundObjectRef": bound}
        if "audience" in wanted:
            spec["audiences"] = [wanted["audience"]]
        request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
        path = f"{self._server.path('v1', 'ServiceAccount', self._namespace)}/{account}/token"
        return str(self._server.ask("POST", path, request)["status"]["token"])

    @staticmethod
    def _write(folder: Path, data: Mapping[str, bytes], source: Mapping[str, Any], group: int) -> None:
        for name, content in data.items():
            file = folder / name
            file.write_bytes(content)
            file.chmod(source.get("defaultMode", 0o644))
            os.chown(file, 0, group)


def expanded(text: str, variables: Mapping[str, str]) -> str:
    """A value or a word of a command, with ``$(NAME)`` in it replaced where there is such a variable."""
    return _NAMED.sub(lambda found: variables.get(found[1], found[0]), text)
