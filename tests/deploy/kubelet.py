"""What registers the nodes of the test's cluster and runs their pods, in place of a kubelet: see :mod:`tests.deploy.pod`."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from tests.deploy.api_server import NotTaken
from tests.deploy.network import GATEWAY
from tests.deploy.pod import LOOK_S, Node, Pod, now

HEARTBEAT_S = 8.0


class Kubelet:
    """One node, and the pods on it. ``capacity``: what it says that it has; nothing of it is held back."""

    def __init__(
        self,
        node: Node,
        name: str,
        capacity: Mapping[str, str],
        taints: Sequence[Mapping[str, str]] = (),
    ) -> None:
        self.node = node
        self._name = name
        self._capacity = dict(capacity)
        self._taints = list(taints)
        self._stop = threading.Event()
        self.pods: dict[str, Pod] = {}
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def __enter__(self) -> Kubelet:
        labels = {"kubernetes.io/hostname": self._name, "kubernetes.io/os": "linux"}
        made = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": self._name, "labels": labels}}
        self.node.server.create({**made, "spec": {"taints": self._taints}})
        self._beat()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(20)
        for pod in list(self.pods.values()):
            pod.kill()

    def _run(self) -> None:
        beaten = time.monotonic()
        while not self._stop.wait(LOOK_S):
            # The server may be busy; it is asked again.
            with contextlib.suppress(NotTaken, OSError):
                if time.monotonic() - beaten > HEARTBEAT_S:
                    self._beat()
                    beaten = time.monotonic()
                self._look(self.node.server.all("v1", "Pod", None, fieldSelector=f"spec.nodeName={self._name}"))

    def _look(self, pods: Sequence[dict[str, Any]]) -> None:
        for made in pods:
            metadata = made["metadata"]
            known = self.pods.get(metadata["uid"])
            if known is None and "deletionTimestamp" in metadata:
                self.node.server.delete("v1", "Pod", metadata["namespace"], metadata["name"], {"gracePeriodSeconds": 0})
            elif known is None:
                self.pods[metadata["uid"]] = Pod(self.node, made)
            elif "deletionTimestamp" in metadata:
                known.deletion = metadata
        for uid in [uid for uid, pod in self.pods.items() if pod.gone]:
            del self.pods[uid]

    def _beat(self) -> None:
        info = dict.fromkeys(("kernelVersion", "osImage", "kubeProxyVersion", "machineID", "systemUUID", "bootID"), "")
        info |= {"kubeletVersion": "none", "containerRuntimeVersion": "none", "operatingSystem": "linux"}
        ready = {"type": "Ready", "status": "True", "reason": "Here", "message": "", "lastHeartbeatTime": now()}
        status = {
            "capacity": self._capacity,
            "allocatable": self._capacity,
            "nodeInfo": {**info, "architecture": "amd64"},
            "conditions": [ready],
            "addresses": [{"type": "InternalIP", "address": GATEWAY}],
        }
        path = f"{self.node.server.path('v1', 'Node', None)}/{self._name}/status"
        self.node.server.ask("PATCH", path, {"status": status})
