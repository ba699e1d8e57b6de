"""Servers of our own on loopback: ports for them, and an end for them when we end.

Comes in: port numbers and process ids. Goes out: free ports, and processes that watch over others. Never here: what the
servers are.
"""

from __future__ import annotations

import random
import socket
import subprocess

from workers.errors import EnvironmentFault

HOST = "127.0.0.1"
# Below Linux's range for outgoing connections (32768 up): a client that keeps trying a stopped broker's port could
# otherwise be given that very port as its own, connect to itself, and keep the broker from coming back.
PORTS = range(20_000, 32_000)


def listens(port: int) -> bool:
    """Whether somebody does at the port."""
    try:
        with socket.create_connection((HOST, port), timeout=1):
            return True
    except OSError:
        return False


def _bindable(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def free_port() -> int:
    """A port that nobody has, in the range above; EnvironmentFault when there is none."""
    for _ in range(100):
        port = random.choice(PORTS)  # noqa: S311
        if _bindable(port):
            return port
    raise EnvironmentFault(f"no free port between {PORTS.start} and {PORTS.stop} for the local Kafka broker")


def refuse_taken(port: int) -> None:
    """Raise EnvironmentFault when somebody has the port."""
    if not _bindable(port):
        raise EnvironmentFault(f"port {port} is taken: does a broker run there already? Choose another with --port")


def end_with_us(pid: int) -> subprocess.Popen[bytes]:
    """Kill ``pid``, or the process group of a negative one, when this process ends, by kill -9 too.

    A shell waits on a pipe that only we hold open.

    Linux's parent-death signal is not used: it fires when the thread that started the child ends.
    """
    return subprocess.Popen(  # noqa: S603
        ["/bin/sh", "-c", 'read _; kill -s KILL -- "$1"', "sh", str(pid)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def end(*processes: subprocess.Popen[bytes] | None) -> None:
    """Kill processes, such as a server and then who watches over it, and wait until they are gone."""
    for process in processes:
        if process is not None:
            process.kill()
            process.wait()
            if process.stdin is not None:
                process.stdin.close()
