"""A Kubernetes cluster on this machine, without a container engine: a real API server, controllers, scheduler and KubeRay operator.

Comes in: an image. Goes out: a cluster of two nodes, one of which says that it has GPUs, on whose pods the image's files run as
processes (:mod:`tests.deploy.kubelet`). Takes root, and a network of its own: see ``make test-cluster``.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.deploy import tools
from tests.deploy.api_server import ApiServer, NotTaken
from tests.deploy.image import Image
from tests.deploy.kubelet import Kubelet
from tests.deploy.network import GATEWAY, PodNetwork
from tests.deploy.pod import End, Node, Pod
from tests.deploy.programs import Programs

GPU = "nvidia.com/gpu"
_ROOM = {"cpu": "64", "memory": "256Gi", "pods": "100", "ephemeral-storage": "500Gi"}
# Nobody here gives nodes ranges of addresses.
_CONTROLLERS = "*,-node-ipam-controller,-cloud-node-lifecycle-controller"


class Cluster:
    """One, with an empty store."""

    def __init__(self, folder: Path, image: Image) -> None:
        self._folder = folder
        self._image = image
        self._open = contextlib.ExitStack()
        self._stop = threading.Event()
        self._programs = Programs(folder)

    def __enter__(self) -> Cluster:
        with contextlib.ExitStack() as stack:
            network = stack.enter_context(PodNetwork(self._folder))
            self.server = stack.enter_context(ApiServer(self._folder, GATEWAY))
            stack.callback(self._programs.end)
            self.kubeconfig = self.server.kubeconfig()
            self._controllers()
            stack.callback(self._stop.set)
            threading.Thread(target=self._services, args=(network,), name="services", daemon=True).start()
            rooms = {"cpu-0": _ROOM, "gpu-0": {**_ROOM, GPU: "4"}}
            taint = {"key": GPU, "value": "present", "effect": "NoSchedule"}
            self.kubelets = []
            for name, room in rooms.items():
                node = Node(self.server, self._image, network, self._folder / name)
                kubelet = Kubelet(node, name, room, [taint] if GPU in room else [])
                self.kubelets.append(stack.enter_context(kubelet))
            self._open = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def _controllers(self) -> None:
        config = f"--kubeconfig={self.kubeconfig}"
        alone = [config, "--leader-elect=false", "--secure-port=0"]
        self._programs.start(
            tools.controllers(),
            *alone,
            f"--controllers={_CONTROLLERS}",
            f"--service-account-private-key-file={self.server.accounts_key}",
            f"--root-ca-file={self.server.authority}",
            "--use-service-account-credentials=true",
        )
        self._programs.start(tools.scheduler(), *alone)
        self._programs.start(
            tools.operator(),
            config,
            "--enable-leader-election=false",
            "--metrics-addr=127.0.0.1:18080",
            "--health-probe-bind-address=127.0.0.1:18081",
        )

    def _services(self, network: PodNetwork) -> None:
        """Names of services, for those whose pods are ready: what DNS and a service's address are elsewhere."""
        while not self._stop.wait(0.3):
            with contextlib.suppress(NotTaken, OSError):
                slices = self.server.all("discovery.k8s.io/v1", "EndpointSlice", None)
                network.set_services(line for found in slices for line in _lines(found))

    def remaining_pods(self, namespace: str, group: str | None = None) -> list[dict[str, Any]]:
        """Ray's pods of a worker group, or of all, the head's being ``headgroup``; without those that are on their way out."""
        chosen = {} if group is None else {"labelSelector": f"ray.io/group={group}"}
        found = self.server.all("v1", "Pod", namespace, **chosen)
        return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]

    def running(self, name: str) -> Pod:
        """A pod's processes."""
        for kubelet in self.kubelets:
            for pod in list(kubelet.pods.values()):
                if pod.name == name:
                    return pod
        raise KeyError(name)

    def ends(self) -> list[End]:
        """How pods have ended."""
        return [end for kubelet in self.kubelets for end in kubelet.node.ends]

    def said(self) -> str:
        """What may tell why something is not as it should be."""
        lines = [self._programs.said()]
        for kubelet in self.kubelets:
            for pod in list(kubelet.pods.values()):
                lines += [
                    f"--- {pod.name} {file.stem}\n{file.read_text(errors='replace')[-1500:]}"
                    for file in pod.folder.glob("*.log")
                ]
        for kind in ("RayService", "RayCluster"):
            for made in self.server.all("ray.io/v1", kind, None):
                lines.append(f"--- {kind} {made['metadata']['name']}: {json.dumps(made.get('status'))[:3000]}")
        return "\n".join(lines)


def _lines(found: dict[str, Any]) -> Iterator[str]:
    metadata = found["metadata"]
    service, namespace = metadata["labels"].get("kubernetes.io/service-name"), metadata["namespace"]
    for endpoint in found.get("endpoints") or ():
        if service and endpoint.get("conditions", {}).get("ready") is not False:
            names = " ".join(f"{service}.{namespace}{rest}" for rest in (".svc.cluster.local", ".svc", ""))
            yield from (f"{address} {names} {service}" for address in endpoint["addresses"])
