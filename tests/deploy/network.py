"""The tests' own network: whether they have one to themselves, that leads nowhere, and in it the pods' bridge and their names.

Their servers are then nobody's but theirs, and what needs more than they have is seen to fail.
"""

from __future__ import annotations

import itertools
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterable
from pathlib import Path

GATEWAY = "10.244.0.1"
# Set by who gives this process a network, and mounts, of its own.
APART = "NETWORK_APART"
_BRIDGE = "pods"


def is_apart() -> bool:
    """Whether this process is in a network namespace of its own, as ``make test-image`` and ``make test-cluster`` start it."""
    if APART not in os.environ:
        return False
    routes = Path("/proc/net/route").read_text().splitlines()[1:]
    return not routes and "eth0" not in {name for _, name in socket.if_nameindex()}


class PodNetwork:
    """A bridge on which every pod has an address, with names for pods and services in a file for their ``/etc/hosts``.

    This process is at :data:`GATEWAY`, and sees the same names. Only where :func:`is_apart`: it changes the network, and mounts.
    """

    def __init__(self, folder: Path) -> None:
        self.hosts, self.resolv = folder / "hosts", folder / "resolv.conf"
        self.hosts.write_text("127.0.0.1 localhost\n")
        # Nobody answers there, and says so at once: gRPC asks a name server also for what /etc/hosts has, and waits for it.
        self.resolv.write_text("nameserver 127.0.0.1\noptions attempts:1 timeout:1\n")
        self._numbers = itertools.count(10)
        self._pods: dict[str, str] = {}
        self._services: list[str] = []
        self._lock = threading.Lock()

    def __enter__(self) -> PodNetwork:
        _ip("link", "add", _BRIDGE, "type", "bridge")
        _ip("addr", "add", f"{GATEWAY}/16", "dev", _BRIDGE)
        _ip("link", "set", _BRIDGE, "up")
        for ours, named in ((self.hosts, "hosts"), (self.resolv, "resolv.conf")):
            subprocess.run(["mount", "--bind", ours, f"/etc/{named}"], check=True)
        return self

    def __exit__(self, *_: object) -> None:
        for named in ("hosts", "resolv.conf"):
            subprocess.run(["umount", f"/etc/{named}"], check=False)
        _ip("link", "del", _BRIDGE)

    def join(self, sandbox: int, name: str) -> str:
        """Give a process in a network namespace of its own an address here, which pods find under ``name``."""
        number = next(self._numbers)
        address = f"10.244.{number // 250}.{number % 250 + 2}"
        ours = Path("/proc/self/ns/net").stat().st_ino
        while os.stat(f"/proc/{sandbox}/ns/net").st_ino == ours:
            time.sleep(0.01)  # it is about to leave ours
        _ip("link", "add", f"pod{number}", "type", "veth", "peer", "name", "eth0", "netns", str(sandbox))
        _ip("link", "set", f"pod{number}", "master", _BRIDGE, "up")
        inside = ["nsenter", f"--target={sandbox}", "--net"]
        for words in (
            ["addr", "add", f"{address}/16", "dev", "eth0"],
            ["link", "set", "eth0", "up"],
            ["link", "set", "lo", "up"],
            ["route", "add", "default", "via", GATEWAY],
        ):
            subprocess.run([*inside, "ip", *words], check=True, capture_output=True)
        with self._lock:
            self._pods[name] = address
            self._write()
        return address

    def leave(self, name: str) -> None:
        """A pod is gone."""
        with self._lock:
            self._pods.pop(name, None)
            self._write()

    def set_services(self, services: Iterable[str]) -> None:
        """Lines of ``/etc/hosts`` for the services that there are."""
        with self._lock:
            if (sorted_ := sorted(services)) != self._services:
                self._services = sorted_
                self._write()

    def _write(self) -> None:
        lines = ["127.0.0.1 localhost", *(f"{address} {name}" for name, address in self._pods.items()), *self._services]
        # In place, because it is mounted; and without a moment in which it is empty.
        text = ("\n".join(lines) + "\n").encode()
        with self.hosts.open("r+b") as file:
            file.write(text)
            file.truncate()


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)
