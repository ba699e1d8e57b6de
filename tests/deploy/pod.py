"""One pod in place of a container runtime's: each container a process in the image's files.

Comes in: a pod that is bound to a node. Goes out: its processes, on the pods' network, and its status. As a kubelet does: init
containers, environment and volumes, readiness probes, SIGTERM, the grace, SIGKILL; what fails is tried again. Never here: limits,
network policies, claims of volumes, liveness and startup probes, hooks, another image than the one.
"""

from __future__ import annotations

import contextlib
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tests.deploy.api_server import ApiServer, NotTaken
from tests.deploy.container import Container
from tests.deploy.given import Given, NotKnown, expanded
from tests.deploy.image import Image
from tests.deploy.network import GATEWAY, PodNetwork

LOOK_S = 0.5


def now() -> str:
    """As Kubernetes writes times."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


@dataclass(frozen=True, slots=True)
class End:
    """How a pod has ended: the seconds that it took, those that it had, and its containers that took longer and were killed."""

    pod: str
    seconds: float
    grace: float
    killed: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Node:
    """What pods have in common: where they are known, what they run, how they reach each other; ``ends``: how they have ended."""

    server: ApiServer
    image: Image
    network: PodNetwork
    folder: Path
    ends: list[End] = field(default_factory=list)


class Pod:
    """One pod: a thread that starts it, watches it, and ends it when it is deleted."""

    def __init__(self, node: Node, made: dict[str, Any]) -> None:
        self.name = made["metadata"]["name"]
        self.folder = node.folder / made["metadata"]["uid"]
        self.deletion: dict[str, Any] | None = None  # the pod's metadata, once it is deleted
        self.gone = False
        self._node = node
        self._made = made
        self._spec = made["spec"]
        self._given: Given | None = None
        self._address = ""
        self._began = now()
        self._running: dict[str, Container] = {}
        self._restarts: dict[str, int] = {}
        self._ready: dict[str, tuple[float, bool]] = {}
        self._failures: dict[str, int] = {}
        self._attempts = 0
        self._problem = ""
        self._reported: object = None
        self.folder.mkdir(parents=True)
        self._thread = threading.Thread(target=self._live, name=self.name, daemon=True)
        self._thread.start()

    def run(self, container: str, command: Sequence[str], timeout: float) -> subprocess.CompletedProcess[str]:
        """A command in a container, as ``kubectl exec``."""
        return self._running[container].run(command, timeout)

    def kill(self) -> None:
        """End it at once, with the cluster."""
        self.deletion = self.deletion or {"deletionGracePeriodSeconds": 0}
        for container in list(self._running.values()):
            container.kill()
        self._thread.join(20)

    def _live(self) -> None:
        sandbox = None
        try:
            words = ["unshare", "--net", "--ipc", "--uts", "sh", "-c", 'hostname "$1" && exec sleep infinity', "-"]
            sandbox = subprocess.Popen([*words, self.name], stdin=subprocess.DEVNULL, start_new_session=True)
            self._address = self._node.network.join(sandbox.pid, self.name)
            self._report()
            if self._until_done(self._prepare) and self._initialised(sandbox.pid):
                for container in self._spec["containers"]:
                    self._until_done(partial(self._start, container, sandbox.pid))
                self._watch(sandbox.pid)
        finally:
            self._end(sandbox)

    def _until_done(self, step: Callable[[], None]) -> bool:
        """Do a step, as often as it takes; False where the pod is deleted before that. What is wrong is in its status."""
        while self.deletion is None:
            try:
                step()
            except Exception as error:
                self._problem = f"{type(error).__name__}: {error}"
                self._report()
                time.sleep(1)
            else:
                self._problem = ""
                return True
        return False

    def _prepare(self) -> None:
        self._attempts += 1
        folder = self.folder / f"volumes-{self._attempts}"
        self._given = Given(self._node.server, self._made, self._address, folder)

    def _initialised(self, sandbox: int) -> bool:
        for container in self._spec.get("initContainers", ()):
            while True:
                if not self._until_done(partial(self._start, container, sandbox)):
                    return False
                running = self._running.pop(container["name"])
                while running.exit_code is None:
                    if self.deletion is not None:
                        running.kill()
                        return False
                    time.sleep(0.1)
                if running.exit_code == 0:
                    break
                time.sleep(1)
        return self.deletion is None

    def _start(self, container: Mapping[str, Any], sandbox: int) -> None:
        assert self._given is not None
        image = self._node.image
        environ = self._given.environment(container)
        words = [*(container.get("command") or image.entrypoint), *container.get("args", ())]
        name = container["name"]
        count = self._restarts.get(name, -1) + 1
        self._restarts[name] = count
        self._running[name] = Container(
            image,
            self.folder / f"{name}-{count}",
            [expanded(word, environ) for word in words],
            environ,
            self._given.mounts(container),
            self._given.identity(container),
            read_only=container.get("securityContext", {}).get("readOnlyRootFilesystem", False),
            files={"hosts": self._node.network.hosts, "resolv.conf": self._node.network.resolv},
            sandbox=sandbox,
            log=self.folder / f"{name}.log",
        )

    def _watch(self, sandbox: int) -> None:
        again = self._spec.get("restartPolicy", "Always") == "Always"
        while self.deletion is None:
            for container in self._spec["containers"]:
                if again and self._running[container["name"]].exit_code is not None:
                    self._ready[container["name"]] = 0.0, False
                    self._until_done(partial(self._start, container, sandbox))
                self._until_done(partial(self._probe, container))
            self._report()
            time.sleep(LOOK_S)

    def _probe(self, container: Mapping[str, Any]) -> None:
        name, probe = container["name"], container.get("readinessProbe")
        runs = self._running[name].exit_code is None
        if probe is None or not runs:
            self._ready[name] = 0.0, runs
            return
        asked, before = self._ready.get(name, (0.0, False))
        if time.monotonic() - asked >= probe.get("periodSeconds", 10):
            failures = 0 if self._passes(name, probe) else self._failures.get(name, 0) + 1
            self._failures[name] = failures
            stays = before and failures < probe.get("failureThreshold", 3)
            self._ready[name] = time.monotonic(), not failures or stays

    def _passes(self, name: str, probe: Mapping[str, Any]) -> bool:
        timeout = probe.get("timeoutSeconds", 1)
        try:
            match probe:
                case {"httpGet": {"path": path, "port": int(port)}}:
                    with urllib.request.urlopen(f"http://{self._address}:{port}{path}", timeout=timeout) as answer:
                        return bool(answer.status < 400)
                case {"exec": {"command": command}}:
                    return self._running[name].run(command, timeout).returncode == 0
        except (OSError, subprocess.TimeoutExpired):
            return False
        raise NotKnown(f"a probe of {list(probe)}")

    def _report(self) -> None:
        codes = {name: container.exit_code for name, container in self._running.items()}
        ready = bool(codes) and all(passes for _, passes in self._ready.values()) and len(self._ready) == len(codes)
        phase = "Running" if codes else "Pending"
        if codes and all(code is not None for code in codes.values()):
            phase = "Failed" if any(codes.values()) else "Succeeded"
        seen = (
            phase,
            ready,
            self._problem,
            codes,
            dict(self._restarts),
            {name: yes for name, (_, yes) in self._ready.items()},
        )
        if seen == self._reported:
            return
        states = [self._state(container, codes) for container in self._spec["containers"]]
        conditions = {"PodScheduled": True, "Initialized": bool(codes), "ContainersReady": ready, "Ready": ready}
        status = {
            "phase": phase,
            "message": self._problem,
            "podIP": self._address,
            "podIPs": [{"ip": self._address}],
            "hostIP": GATEWAY,
            "startTime": self._began,
            "containerStatuses": states,
            "conditions": [
                {"type": kind, "status": str(yes), "lastTransitionTime": now()} for kind, yes in conditions.items()
            ],
        }
        with contextlib.suppress(NotTaken, OSError):
            self._node.server.ask("PATCH", f"{self._path}/status", {"status": status})
            self._reported = seen

    def _state(self, container: Mapping[str, Any], codes: Mapping[str, int | None]) -> dict[str, Any]:
        name = container["name"]
        if name not in codes:
            state: dict[str, Any] = {"waiting": {"reason": "PodInitializing"}}
        elif (code := codes[name]) is None:
            state = {"running": {"startedAt": self._began}}
        else:
            state = {"terminated": {"exitCode": code, "reason": "Error" if code else "Completed"}}
        return {
            "name": name,
            "image": container["image"],
            "imageID": "",
            "ready": self._ready.get(name, (0.0, False))[1],
            "started": name in codes,
            "restartCount": self._restarts.get(name, 0),
            "state": state,
        }

    def _end(self, sandbox: subprocess.Popen[bytes] | None) -> None:
        grace = (self.deletion or {}).get("deletionGracePeriodSeconds", 30)
        asked = time.monotonic()
        for container in self._running.values():
            container.terminate()
        while time.monotonic() < asked + grace and any(one.exit_code is None for one in self._running.values()):
            time.sleep(0.1)
        killed = tuple(name for name, container in self._running.items() if container.exit_code is None)
        for container in self._running.values():
            container.kill()
        if sandbox is not None:
            sandbox.kill()
            sandbox.wait()
        if self._given is not None:
            self._given.release()
        self._node.network.leave(self.name)
        self._node.ends.append(End(self.name, time.monotonic() - asked, grace, killed))
        options = {"gracePeriodSeconds": 0, "preconditions": {"uid": self._made["metadata"]["uid"]}}
        metadata = self._made["metadata"]
        with contextlib.suppress(OSError):
            self._node.server.delete("v1", "Pod", metadata["namespace"], self.name, options)
        self.gone = True

    @property
    def _path(self) -> str:
        return f"{self._node.server.path('v1', 'Pod', self._made['metadata']['namespace'])}/{self.name}"
