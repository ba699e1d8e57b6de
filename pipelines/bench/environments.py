"""Python environments of the peers', each with what one peer needs, made once and kept.

Comes in: pinned packages. Goes out: a Python interpreter. Never here: a change to this environment.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from pipelines.bench.engines import EXPORTER, Engine
from workers.cache_folder import cache_folder
from workers.errors import EnvironmentFault

INSTALL_S = 1800.0
_STAMP = "made.txt"


def default_folder(environ: Mapping[str, str]) -> Path:
    """Where they are kept unless ``--venvs`` says otherwise."""
    return cache_folder(environ) / "bench"


@dataclass(frozen=True, slots=True)
class Environments:
    """The peers' environments below ``folder``. ``environ`` goes to the installer, with its index and proxies."""

    folder: Path
    environ: Mapping[str, str]

    def python(self, engine: Engine) -> Path:
        """An interpreter that can import the engine: this one where it can, else one of its own.

        Raises:
            EnvironmentFault: it cannot be installed.
        """
        if not engine.packages or (engine.importable is not None and find_spec(engine.importable) is not None):
            return Path(sys.executable)
        return self._made(engine.name, engine.packages)

    def exporter(self) -> Path:
        """An interpreter with all that this one has, and ONNX's tools.

        Raises:
            EnvironmentFault: they cannot be installed.
        """
        python = self._made("onnx-export", EXPORTER)
        # What stands in a .pth file comes after the environment's own packages.
        (site,) = python.parents[1].glob("lib/python*/site-packages")
        ours = dict.fromkeys(sysconfig.get_path(kind) for kind in ("purelib", "platlib"))
        (site / "this-environment.pth").write_text("".join(f"{path}\n" for path in ours), encoding="utf-8")
        return python

    def _made(self, name: str, packages: Sequence[str]) -> Path:
        wanted = [package.format(torch=_torch()) for package in packages]
        # Another version of Python, or other pins, is another environment.
        stamp = "\n".join([sys.version, *wanted])
        folder = self.folder / f"{name}-{hashlib.sha256(stamp.encode()).hexdigest()[:8]}"
        python = folder / "bin" / "python"
        if (folder / _STAMP).is_file() and python.exists():
            return python
        print(f"installing {name}, once, into {folder}", file=sys.stderr, flush=True)
        try:
            shutil.rmtree(folder, ignore_errors=True)  # half of one, from a run that was stopped
            folder.parent.mkdir(parents=True, exist_ok=True)
            for command in _commands(folder, python, wanted):
                self._run(command, folder.with_suffix(".log"))
            (folder / _STAMP).write_text(stamp, encoding="utf-8")
        except OSError as error:
            raise EnvironmentFault(f"{folder} cannot be made ({error.strerror}); choose another with --venvs") from None
        return python

    def _run(self, command: Sequence[str], log: Path) -> None:
        environ = {name: value for name, value in self.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
        try:
            done = subprocess.run(  # noqa: S603
                command,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=INSTALL_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise EnvironmentFault(f"installing took longer than {INSTALL_S:.0f} s") from None
        log.write_text(done.stdout, encoding="utf-8")
        if done.returncode != 0:
            raise EnvironmentFault(f"it cannot be installed: {_reason(done.stdout)} ({log} says more)")


def _torch() -> str:
    """This environment's version of torch, for the peers to run on the same; a build's suffix such as +cpu left out."""
    return version("torch").partition("+")[0]


def _commands(folder: Path, python: Path, packages: Sequence[str]) -> list[list[str]]:
    """By uv, which shares what it has downloaded; without it by venv and pip."""
    beside = Path(sys.executable).parent / "uv"
    if (uv := shutil.which("uv") or (str(beside) if os.access(beside, os.X_OK) else None)) is not None:
        make = [uv, "venv", "--quiet", "--python", sys.executable, str(folder)]
        return [make, [uv, "pip", "install", "--quiet", "--python", str(python), *packages]]
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages]
    return [[sys.executable, "-m", "venv", str(folder)], install]


def _reason(output: str) -> str:
    """What an installer gives as the reason: uv in a sentence with "because", pip in a line with ERROR."""
    lines = [line for line in (line.strip(" ×│╰─▶├") for line in output.splitlines()) if line]
    causes = [line for line in lines if "because" in line.lower()]
    errors = [line for line in lines if "error" in line.lower()]
    return (causes or errors or lines or ["no reason given"])[0][:200]
