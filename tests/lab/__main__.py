"""``python -m tests.lab``: many seeds, some at a time, and a report."""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import shlex
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from tests.lab import lane
from tests.lab.plan import SINKS, Plan
from tests.lab.report import render
from tests.lab.trial import Result


def seeds_of(text: str) -> list[int]:
    """``1-100``, ``7``, or ``3,5,9-12``."""
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        try:
            numbers = range(int(first), int(last or first) + 1)
        except ValueError:
            numbers = range(0)
        if not numbers:
            raise argparse.ArgumentTypeError(f"write seeds as 7, 1-100 or 3,5,9-12, not {part!r}")
        found += numbers
    return found


def count_of(text: str) -> int:
    """A number from 1 up."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a whole number from 1 up is needed, not {text!r}")
    return int(text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the seeds; 1 if one of them failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.lab", description="Faults over real parts, and a checker.")
    parser.add_argument("--seeds", type=seeds_of, default=seeds_of("1-100"), help="such as 7, or 1-100 (default)")
    parser.add_argument("--records", type=count_of, default=20_000, help="of each seed (default: 20,000)")
    parser.add_argument("--sinks", choices=SINKS, help="for all seeds; by default they take turns")
    parser.add_argument(
        "--lanes", type=count_of, default=2, help="seeds at a time, each lane with servers of its own (2)"
    )
    parser.add_argument("--report", type=Path, help="where the tables go, as Markdown")
    parser.add_argument("--results", type=Path, help="a line for each seed that is done; those in it are not run again")
    parser.add_argument("--folder", type=Path, help="where the servers' data and failed seeds lie (default: temporary)")
    options = parser.parse_args(arguments)
    folder = options.folder or Path(tempfile.mkdtemp(prefix="fault-lab-"))
    results = _earlier(options)
    done = {result.plan.seed for result in results}
    plans = [Plan.of(seed, options.sinks) for seed in options.seeds if seed not in done]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.lanes, context, lane.open_lane, (folder,)) as lanes:
        for waited in as_completed([lanes.submit(lane.run, plan, options.records) for plan in plans]):
            result = waited.result()
            results.append(result)
            _say(result)
            if options.results is not None:
                with options.results.open("a", encoding="utf-8") as lines:
                    lines.write(result.as_json() + "\n")
            _report(results, options)
    _report(results, options)  # also where all were done before
    failed = [result.plan.seed for result in results if not result.sound]
    print(f"{len(results)} seeds, {sum(result.records for result in results):,} records, failed: {failed or 'none'}")
    if failed:
        print(f"again: {_command(options, ','.join(map(str, failed)))}")
    return 1 if failed else 0


def _report(results: list[Result], options: argparse.Namespace) -> None:
    if options.report is not None:
        results.sort(key=lambda result: result.plan.seed)
        command = _command(options, f"{min(options.seeds)}-{max(options.seeds)}")
        options.report.write_text(render(results, command), encoding="utf-8")


def _earlier(options: argparse.Namespace) -> list[Result]:
    """Seeds of this very run that are done; a line that an end cut short is none."""
    if options.results is None or not options.results.exists():
        return []
    found = []
    for line in options.results.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(ValueError):
            found.append(Result.of_json(line))
    return [
        result
        for result in found
        if result.records == options.records and result.plan == Plan.of(result.plan.seed, options.sinks)
    ]


def _say(result: Result) -> None:
    verdict = "ok" if result.sound else "FAILED"
    plan = result.plan
    print(f"seed {plan.seed}: {verdict}, {plan.sinks}, {result.seconds:.0f} s: {', '.join(plan.faults)}", flush=True)
    if result.notes:
        print("\n".join(f"    {note}" for note in result.notes), flush=True)
    if not result.sound:
        print("\n".join([*result.findings.examples, result.trouble, f"kept in {result.folder}"]), flush=True)


def _command(options: argparse.Namespace, seeds: str) -> str:
    sinks = f" --sinks {shlex.quote(options.sinks)}" if options.sinks else ""
    return f"python -m tests.lab --seeds {seeds} --records {options.records}{sinks}"


if __name__ == "__main__":
    sys.exit(main())
