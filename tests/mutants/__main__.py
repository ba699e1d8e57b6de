"""``python -m tests.mutants [names]``: what the tests say of each mutant, and 1 if one lives.

Comes in: names of mutants; none: all. Goes out: a line for each. Never here: what they are; nor a change to the tree.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.mutants import MUTANTS, ROOT, Mutant

# The tests of one mutant, or all of them without one; a guard against waiting for ever may be what is missing.
TIMEOUT_S = 400.0


def tests_run(tree: Path, tests: Sequence[str], timeout_s: float = TIMEOUT_S) -> tuple[int, str]:
    """pytest's exit status and last words; -1: they did not end in time."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--hypothesis-seed=0", *tests]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(
            command, cwd=tree, env=environment, capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired:
        return -1, f"no end within {timeout_s:.0f} s"
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    return done.returncode, lines[-1] if lines else "no word"


def verdict(mutant: Mutant) -> tuple[str, str]:
    """What became of a mutant, and pytest's last words."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        tree = Path(folder)
        copy_tree(tree)
        if not mutant.apply(tree):
            return "stale", f"its text does not stand once in {mutant.file}"
        status, words = tests_run(tree, mutant.tests)
    # 1 is pytest's word for tests that ran and failed; an import or a collection that fails has others.
    return {0: "SURVIVED", 1: "killed"}.get(status, "broken"), words


def copy_tree(folder: Path) -> None:
    """What git tracks, as it is now, and what it would."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in listed.stdout.decode().split("\0"):
        if name and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description="Take guards away; tests must fail.")
    names = [mutant.name for mutant in MUTANTS]
    parser.add_argument("names", nargs="*", metavar="name", help=f"default: all. {', '.join(names)}")
    wanted = parser.parse_args(arguments).names
    if unknown := set(wanted) - set(names):
        parser.error(f"no mutant is called {', '.join(sorted(unknown))}")
    chosen = [mutant for mutant in MUTANTS if not wanted or mutant.name in wanted]
    every = sorted({test for mutant in chosen for test in mutant.tests})
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        copy_tree(Path(folder))
        status, words = tests_run(Path(folder), every, TIMEOUT_S * len(every))
    if status != 0:
        print(f"without a mutant the tests do not pass: {words}")
        return 1
    print(f"without a mutant: {words}", flush=True)
    lived = 0
    for mutant in chosen:
        found, words = verdict(mutant)
        lived += found != "killed"
        print(f"{mutant.name:<20} {found:<9} {mutant.takes}" + ("" if found == "killed" else f" ({words})"), flush=True)
    print(f"{len(chosen) - lived} of {len(chosen)} killed")
    return int(lived > 0)


if __name__ == "__main__":
    sys.exit(main())
