"""``simulate``: its options, and what it leaves behind.

Comes in: arguments. Goes out: a table on standard output; JSON, Markdown and a plot in a folder; an exit code. Never here: a
broker, Ray, or a GPU.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

from workers.errors import EnvironmentFault, SettingsError

PROGRAM = "stream-embedder simulate"
_ABOUT = """
Runs the scaling policy, as it is, against load curves in simulated time: steps, ramps, days, bursts, noise, nodes that take
minutes to start or are lost. Beside it: a clairvoyant scaler, Ray Serve's default policy, and replicas in proportion to the lag
as KEDA has them. It needs no broker, no Ray and no GPU, and no settings file.
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise SettingsError(f"{message} ({self.prog} --help says more)")


def run_simulate(words: Sequence[str]) -> int:
    """Simulate what the words ask for.

    Raises:
        SettingsError: an option is wrong.
        EnvironmentFault: the folder cannot be written.
    """
    try:
        found = _parser().parse_args(list(words))
    except SystemExit:  # --help has been printed
        return 0
    from pipelines.simulator import report  # noqa: PLC0415 - not for --help
    from pipelines.simulator.compare import compare  # noqa: PLC0415
    from pipelines.simulator.curves import hard, standard  # noqa: PLC0415

    known = {curve.name: curve for curve in [*standard(), *hard()]}
    names = list(known) if found.curves == "all" else [name.strip() for name in found.curves.split(",") if name.strip()]
    if unknown := [name for name in names if name not in known]:
        raise SettingsError(f"there is no curve {unknown[0]!r}: choose from {', '.join(known)}")
    if not names:
        raise SettingsError(f"a curve is needed: choose from {', '.join(known)}")
    results = compare(
        (known[name] for name in names), found.drain_target, lambda name: print(f"{name} is done", file=sys.stderr)
    )
    print(report.text(results, found.drain_target))
    page = report.page(results, found.drain_target, shlex.join([*PROGRAM.split(), *words]))
    files = [found.out / "simulate.json", found.out / "simulate.md"]
    try:
        found.out.mkdir(parents=True, exist_ok=True)
        values = json.dumps(report.values(results, found.drain_target), indent=1, ensure_ascii=False)
        files[0].write_text(values + "\n", encoding="utf-8")
        files[1].write_text(page, encoding="utf-8")
        if find_spec("matplotlib") is None:
            print("no plot, for matplotlib is not installed: pip install 'stream-embedder[plots]'", file=sys.stderr)
        else:
            from pipelines.simulator.plot import draw  # noqa: PLC0415 - not installed everywhere

            files += draw(results, found.out)
    except OSError as error:
        raise EnvironmentFault(f"cannot write to {found.out}: {error.strerror}; --out names another folder") from error
    print(f"\n{', '.join(map(str, files))}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog=PROGRAM,
        description=_ABOUT,
        epilog=f"example:\n  {PROGRAM} --curves step,burst --drain-target 120",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--curves", default="all", metavar="NAMES", help="names behind commas (default: all)")
    add("--drain-target", type=_seconds, default=60.0, metavar="S", help="as scaling.drain_target_s (default: 60)")
    add("--out", type=Path, default=Path("simulate"), metavar="FOLDER", help="for JSON, Markdown and plot")
    return parser


def _seconds(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 1 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"a number of seconds from 1 up is needed, not {text!r}")
    return number
