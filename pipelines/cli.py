"""The command ``stream-embedder``: its commands, its flags, and what it ends with.

Comes in: arguments and the environment, which only this file reads. Goes out: an exit code, and for a mistake one sentence
on standard error. Never here: work. Each command's module is imported when the command runs, so that ``--help`` and
``config`` answer at once.
"""
# ruff: noqa: PLC0415 - imports inside functions are the point

from __future__ import annotations

import os
import shlex
import sys
import traceback
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, NamedTuple

from pipelines.arguments import PROGRAM, STANDALONE, Arguments, helped, overview, parse
from pipelines.of_topic import OfTopic
from workers.errors import EnvironmentFault, SettingsError, StreamEmbedderError

if TYPE_CHECKING:
    from pipelines.configure import Configured
    from pipelines.dead_letters import Wanted
    from workers.settings import Settings

INTERRUPTED = 130
BROKEN_PIPE = 141


class _Call(NamedTuple):
    """What a command runs with."""

    arguments: Arguments
    configured: Configured
    environ: Mapping[str, str]
    line: str  # as it was typed


def _run(call: _Call) -> int:
    from pipelines import signals

    with signals.setting() as stop:  # before anything that starts threads is imported
        settings = _for_stream(call)
        from pipelines.run import run

        return run(settings, stop)


def _batch(call: _Call) -> int:
    from pipelines import signals

    with signals.setting() as stop:  # as above
        settings = call.configured.settings
        settings.require_batch()
        _check_model(settings)
        from pipelines.batch.command import run_batch

        return run_batch(settings, stop, sys.stdout, as_json=call.arguments.options.json)


def _check(call: _Call) -> int:
    settings = _for_stream(call)
    from pipelines.check import run_check

    return run_check(settings)


def _config(call: _Call) -> int:
    from pipelines.settings_text import render

    sys.stdout.write(render(call.configured))
    _check_model(call.configured.settings)
    return 0


def _encode(call: _Call) -> int:
    _require_texts(call, "encode")
    from pipelines.encode import run_encode

    return run_encode(
        call.configured.settings,
        dim=call.arguments.options.dim,
        precision=call.arguments.options.precision,
        ranges=call.arguments.options.ranges,
        texts=call.arguments.words,
        lines=None if call.arguments.words else sys.stdin.buffer,
        out=sys.stdout.buffer,
        of=OfTopic.of(call.arguments.options),
    )


def _calibrate(call: _Call) -> int:
    _require_texts(call, "calibrate")
    from pipelines.calibrate import run_calibrate

    return run_calibrate(
        call.configured.settings,
        dim=call.arguments.options.dim,
        path=call.arguments.options.out,
        texts=call.arguments.words,
        lines=None if call.arguments.words else sys.stdin.buffer,
        of=OfTopic.of(call.arguments.options),
    )


def _require_texts(call: _Call, name: str) -> None:
    if not call.arguments.words and sys.stdin.isatty():
        raise SettingsError(f"{name} needs texts: as arguments, or as JSON lines on standard input")


def _report(call: _Call) -> int:
    if not call.arguments.words and sys.stdin.isatty():
        raise SettingsError("report needs texts: files, or JSON lines on standard input")
    from pipelines.report.command import from_line

    return from_line(call.configured.settings, call.arguments, call.line, sys.stdin.buffer)


def _search(call: _Call) -> int:
    from pipelines.search.command import from_line

    return from_line(call.configured.settings, call.arguments)


def _cutover(call: _Call) -> int:
    from pipelines.cutover.command import from_line

    return from_line(call.configured.settings, call.arguments)


def _plan(call: _Call) -> int:
    from pipelines.plan.command import job_of, run_plan

    settings = call.configured.settings
    if job_of(settings, call.arguments.options.job) == "batch":
        settings.require_batch()
        _check_model(settings)
    else:
        settings = _for_stream(call)
    return run_plan(settings, call.arguments, sys.stdout)


def _list_dead_letters(call: _Call) -> int:
    from pipelines.dead_letters_text import run_list

    options = call.arguments.options
    return run_list(
        call.configured.settings,
        _wanted(call),
        last=options.last,
        replayed=options.replayed,
        keys=options.keys,
        as_json=options.json,
    )


def _show_dead_letters(call: _Call) -> int:
    from pipelines.dead_letters_text import run_show

    options = call.arguments.options
    return run_show(call.configured.settings, call.arguments.words, payload=options.payload, out=options.out)


def _replay(call: _Call) -> int:
    from pipelines.replay import run_replay

    options = call.arguments.options
    return run_replay(
        call.configured.settings, _wanted(call), to=options.to, limit=options.limit, dry_run=options.dry_run
    )


def _wanted(call: _Call) -> Wanted:
    from pipelines.dead_letters import Place, Wanted, parse_since

    options = call.arguments.options
    return Wanted(
        stages=frozenset(options.stage),
        classes=frozenset(getattr(options, "class")),
        topics=frozenset(options.topic),
        places=tuple(map(Place.parse, call.arguments.words)),
        since_ms=None if options.since is None else parse_since(options.since, datetime.now(UTC)),
    )


def _status(call: _Call) -> int:
    from pipelines.status.command import from_line

    return from_line(call.configured.settings, call.arguments)


def _show_offsets(call: _Call) -> int:
    call.configured.settings.require_stream()
    from pipelines.offsets import run_show

    return run_show(call.configured.settings, call.arguments.words, as_json=call.arguments.options.json)


def _reset_offsets(call: _Call) -> int:
    call.configured.settings.require_stream()
    from pipelines.offsets import run_reset

    options = call.arguments.options
    return run_reset(call.configured.settings, call.arguments.words, to=options.to, dry_run=options.dry_run)


def _create_topics(call: _Call) -> int:
    settings = _for_stream(call)
    from pipelines.topics import run_create

    options = call.arguments.options
    return run_create(
        settings,
        partitions=options.partitions,
        replication=options.replication,
        keyless=options.keyless,
        dry_run=options.dry_run,
    )


def _demo(call: _Call) -> int:
    from pipelines.demo import run_demo

    return run_demo(
        rows=call.arguments.options.rows,
        queries=[*call.arguments.options.query, *call.arguments.words],
        bootstrap_servers=call.environ.get("KAFKA_BOOTSTRAP_SERVERS"),
        settings=call.configured.settings,
    )


def _version() -> str:
    try:
        return f"{PROGRAM} {version(PROGRAM)}"
    except PackageNotFoundError:
        return f"{PROGRAM}, run from a folder where it is not installed"


def _for_stream(call: _Call) -> Settings:
    """The settings, if they say what to read and where to write."""
    call.configured.settings.require_stream()
    _check_model(call.configured.settings)
    return call.configured.settings


def _check_model(settings: Settings) -> None:
    """Hold the settings against a model that is on this machine; one that needs a download is checked when it is there."""
    from pipelines.fit import against_model
    from workers.encoder.hub import local_folder, location_of, resolve
    from workers.encoder.layout import Layout
    from workers.settings import DEFAULT_MODEL

    name, revision = settings.model.name, settings.model.revision
    if location_of(name, revision) is not None:
        return
    if local_folder(name) is not None or (name == DEFAULT_MODEL and revision is None):
        try:
            layout = Layout.read(
                resolve(name, revision), task=settings.model.task, sliding_window=settings.model.sliding_window
            )
        except EnvironmentFault:
            return  # what is wrong with the model itself is for the command to say
        against_model(settings, layout)


_RUN = {
    "run": _run,
    "batch": _batch,
    "plan": _plan,
    "encode": _encode,
    "calibrate": _calibrate,
    "report": _report,
    "search": _search,
    "cutover": _cutover,
    "check": _check,
    "status": _status,
    "topics create": _create_topics,
    "offsets show": _show_offsets,
    "offsets reset": _reset_offsets,
    "dead-letters list": _list_dead_letters,
    "dead-letters show": _show_dead_letters,
    "dead-letters replay": _replay,
    "config": _config,
    "demo": _demo,
}


def _command(words: Sequence[str], environ: Mapping[str, str]) -> int:
    name, rest = (words[0], words[1:]) if words else ("", [])
    if rest and f"{name} {rest[0]}" in _RUN:
        name, rest = f"{name} {rest[0]}", rest[1:]
    if name in ("-h", "--help", "--version"):
        print(_version() if name == "--version" else overview())
        return 0
    if name == "bench":
        from pipelines.bench.command import run_bench

        return run_bench(rest, environ)
    if name == "simulate":
        from pipelines.simulator.command import run_simulate

        return run_simulate(rest)
    if group := [known.split()[1] for known in _RUN if known.startswith(f"{name} ")]:
        if {"-h", "--help"}.intersection(rest):
            print(overview(name))
            return 0
        raise SettingsError(f"{name} needs one of {', '.join(group)} ({PROGRAM} {name} --help says more)")
    if name not in _RUN:
        wrong = f"there is no command {name!r}" if name else "a command is needed"
        known = ", ".join([*_RUN, *STANDALONE])
        raise SettingsError(f"{wrong}: choose from {known} ({PROGRAM} --help says more)")
    if helped(name, rest):
        return 0
    from pipelines.configure import load
    from workers.settings import Settings

    arguments = parse(name, rest, Settings.model_fields)
    line = shlex.join([PROGRAM, *words])
    return _RUN[name](_Call(arguments, load(arguments.options.config, arguments.flags, environ), environ, line))


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns what the process should exit with."""
    words = sys.argv[1:] if argv is None else list(argv)
    try:
        code = _command(words, os.environ)
        sys.stdout.flush()
        return code
    except StreamEmbedderError as error:
        for line in str(error).splitlines():
            print(f"{PROGRAM}: {line}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:  # noqa: BLE001 - the last line of defence: a bug of ours
        if isinstance(error, BrokenPipeError) and words[0] != "run":
            # Whoever read our output has left; Python would complain once more when it flushes at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return BROKEN_PIPE
        if os.environ.get("STREAM_EMBEDDER_DEBUG") == "1":
            traceback.print_exc()
        hint = "set STREAM_EMBEDDER_DEBUG=1 for the traceback"
        print(f"{PROGRAM}: unexpected {type(error).__name__}; {hint}", file=sys.stderr)
        return 1
