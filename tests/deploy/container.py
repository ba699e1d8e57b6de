"""A process in an image's files, as a container runtime starts it in a pod of the profile ``restricted``.

Comes in: an image, a command, what is mounted. Goes out: a process in namespaces of its own, with the image's root (read-only
where the pod says so), the pod's user, no capabilities, no way to new privileges. Never here: limits of memory and CPU. Plain
util-linux; needs root.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.deploy.image import Image

DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
_FILES = ("hosts", "resolv.conf")


@dataclass(frozen=True, slots=True)
class Mount:
    """A folder or file of ours, where the container sees it."""

    source: Path
    target: str
    read_only: bool = False


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a container runs as; ``groups`` besides its own."""

    user: int
    group: int
    groups: tuple[int, ...] = ()

    @property
    def command(self) -> list[str]:
        """What a command is put behind, to run as this one, without any privilege."""
        groups = ["--groups", ",".join(map(str, self.groups))] if self.groups else ["--clear-groups"]
        privileges = ["--no-new-privs", "--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all"]
        return ["/usr/bin/setpriv", f"--reuid={self.user}", f"--regid={self.group}", *groups, *privileges]


class Container:
    """A running one. Its first process is 1 in its own namespace, as in a pod.

    Args:
        folder: of its own and empty: what is written to the root, if that is not read-only, and its mount point.
        env: all that it has besides the image's.
        files: host files for ``hosts`` and ``resolv.conf`` in ``/etc``.
        sandbox: the process whose network, hostname and shared memory it has; None for ours.
        log: what it says is appended here.
    """

    def __init__(
        self,
        image: Image,
        folder: Path,
        command: Sequence[str],
        env: Mapping[str, str],
        mounts: Iterable[Mount],
        identity: Identity,
        *,
        read_only: bool,
        files: Mapping[str, Path],
        sandbox: int | None,
        log: Path,
    ) -> None:
        self._identity = identity
        # It begins in the image's folder, with nothing of our own environment.
        pairs = [f"{name}={value}" for name, value in {**image.env, **env}.items()]
        self._begun = ["/usr/bin/env", "-i", f"--chdir={image.folder}", *pairs]
        script = _script(
            image, folder, sorted(mounts, key=lambda mount: len(mount.target)), read_only=read_only, files=files
        )
        script += f'\nexec /usr/sbin/chroot {shlex.quote(str(folder / "root"))} {shlex.join(identity.command)} "$@"'
        joined = ["nsenter", f"--target={sandbox}", "--net", "--ipc", "--uts"] if sandbox else []
        apart = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--propagation=private"]
        apart += [] if sandbox else ["--ipc", "--uts"]
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [*joined, *apart, "bash", "-c", script, "_", *self._begun, *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    @property
    def exit_code(self) -> int | None:
        """None while it runs; 128 and the signal's number where one ended it."""
        code = self.process.poll()
        return code if code is None or code >= 0 else 128 - code

    def run(self, command: Sequence[str], timeout: float) -> subprocess.CompletedProcess[str]:
        """Run a command in it, as ``kubectl exec`` does; raises subprocess.TimeoutExpired."""
        first = self._first()
        if first is None:
            return subprocess.CompletedProcess(list(command), 1, "", "it does not run")
        inside = ["nsenter", f"--target={first}", "--mount", "--pid", "--net", "--ipc", "--uts", "--root", "--wd"]
        words = [*inside, *self._identity.command, *self._begun, *command]
        return subprocess.run(
            words, capture_output=True, text=True, timeout=timeout, check=False, stdin=subprocess.DEVNULL
        )

    def terminate(self) -> None:
        """SIGTERM to its first process."""
        first = self._first()
        if first is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(first, signal.SIGTERM)

    def kill(self) -> None:
        """End it, and all that it started."""
        first = self._first()
        if first is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(first, signal.SIGKILL)
        self.process.kill()
        self.process.wait()

    def _first(self) -> int | None:
        """The process id, here, of what is 1 there."""
        if self.process.poll() is not None:
            return None
        with contextlib.suppress(OSError):
            pid = self.process.pid
            for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
                return int(child)
        return None


def _script(image: Image, folder: Path, mounts: Sequence[Mount], *, read_only: bool, files: Mapping[str, Path]) -> str:
    """What makes the container's files, in a mount namespace of its own."""
    root, upper, work = folder / "root", folder / "upper", folder / "work"
    for made in (root, upper, work):
        made.mkdir(parents=True)
    q = shlex.quote
    at = q(str(root))
    lines = [
        "set -e",
        "ulimit -n 1048576 2>/dev/null || true",
        f"mount -t overlay -o lowerdir={q(str(image.root))},upperdir={q(str(upper))},workdir={q(str(work))} overlay {at}",
        f"mkdir -p {at}/proc {at}/dev {at}/sys",
    ]
    # A runtime makes the places that something is mounted at, before the root is read-only; those below another mount later.
    below = [mount for mount in mounts if any(_within(mount.target, other.target) for other in mounts)]
    lines += [
        f"mkdir -p {at}{q(_real(mount.target))}" for mount in mounts if mount not in below and mount.source.is_dir()
    ]
    lines += [f"rm -f {at}/etc/{name}; touch {at}/etc/{name}" for name in _FILES if name in files]
    if read_only:
        lines.append(f"mount -o remount,ro {at}")
    lines += [f"mount -t proc proc {at}/proc", f"mount -t tmpfs -o mode=755 tmpfs {at}/dev"]
    lines += [f"touch {at}/dev/{name}; mount --bind /dev/{name} {at}/dev/{name}" for name in DEVICES]
    lines += [f"mkdir {at}/dev/shm {at}/dev/pts", f"chmod 1777 {at}/dev/shm", f"ln -s /proc/self/fd {at}/dev/fd"]
    lines += [f"ln -s /proc/self/fd/{n} {at}/dev/{name}" for n, name in enumerate(("stdin", "stdout", "stderr"))]
    lines.append(f"mount -t sysfs -o ro sysfs {at}/sys")
    lines += [f"mount --bind {q(str(files[name]))} {at}/etc/{name}" for name in _FILES if name in files]
    for mount in mounts:
        place = f"{at}{q(_real(mount.target))}"
        if mount in below:
            lines.append(f"mkdir -p {place}")
        lines.append(f"mount --bind {q(str(mount.source))} {place}")
        if mount.read_only:
            lines.append(f"mount -o remount,bind,ro {place}")
    return "\n".join(lines)


def _within(target: str, other: str) -> bool:
    return target != other and (target.startswith(other.rstrip("/") + "/") or target.startswith("/dev/"))


def _real(target: str) -> str:
    """Debian's /var/run is a link to /run."""
    return target.replace("/var/run/", "/run/", 1) if target.startswith("/var/run/") else target
