"""The command ``batch``: files, or topics between two offsets, in; Parquet out; until all of it is done.

Comes in: settings. Goes out: an exit code, and a summary. Never here: rows, or Ray's actors.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Sequence
from typing import TextIO

from pipelines import cluster
from pipelines.batch.crew import Crew
from pipelines.batch.inputs import InputFile, find
from pipelines.batch.outcome import Outcome, State
from pipelines.batch.outlets import batch_outlets, dead_letter_location, probe
from pipelines.batch.pieces import Piece, plan
from pipelines.batch.progress import Progress, spoken
from pipelines.batch.replica import Replica
from pipelines.batch.summary import Summary
from pipelines.batch.there import Task, There
from pipelines.batch.topic import TopicPiece, topic_pieces
from pipelines.live import LOG_PERIOD_S, Live
from pipelines.model import Model
from workers import log
from workers.errors import EnvironmentFault, SettingsError
from workers.object_store import Location
from workers.settings import ParquetOutput, Settings

# As a shell says of what Ctrl-C ended: whoever waits for a job must not take it for done.
STOPPED = 130
_SHOWN_FAILURES = 10


def run_batch(
    settings: Settings,
    stop: threading.Event,
    out: TextIO,
    *,
    as_json: bool = False,
    replica_class: type = Replica,
) -> int:
    """Embed all that the settings name and no earlier run has embedded, and say what became of it on ``out``.

    Returns 0 when all is done, 130 when ``stop`` was set before. ``replica_class`` may stand in for the model's replica.

    Raises:
        EnvironmentFault: something that the settings point at is wrong, or a part of the input could not be embedded.
        SettingsError: the settings do not suit the model, or the input.
    """
    log.configure()
    started = time.monotonic()
    with Live() as live:
        live.say("looking at model, input and outputs")
        model = Model.open(settings)
        outlets = batch_outlets(model)
        written = [*dict.fromkeys(outlet.location for outlet in outlets), dead_letter_location(settings)]
        _require_apart(written)
        for location in written:
            probe(settings, location)
        files, pieces, broken = list[InputFile](), list[Piece | TopicPiece](), list[str]()
        if settings.batch_reads_topics:
            pieces += topic_pieces(settings, outlets)
        else:
            files = find(settings.batch.inputs, settings.batch.format, written)
            planned = plan(files, settings)
            pieces += planned.pieces
            broken += planned.broken
        there = There(outlets, [*files, *(each for each in pieces if isinstance(each, TopicPiece))], settings)
        there.look()
        tasks = there.tasks(pieces)
        found = there.count([there.name(piece) for piece in pieces])
        outcome, progress = Outcome(stopped=stop.is_set() and bool(tasks)), Progress(0.0)
        if tasks and not stop.is_set():
            outcome, progress = _work(settings, tasks, there, stop, live, replica_class)
    failed = [*broken, *outcome.failed]
    summary = Summary(
        complete=not failed and not outcome.stopped and outcome.given_up is None,
        failed=failed,
        files=len(files),
        partitions=len({piece.uri for piece in pieces if isinstance(piece, TopicPiece)}),
        found=found,
        made=outcome.tally,
        reasons=outcome.reasons,
        dead_letters=str(written[-1]),
        outputs=tuple(output.uri for output in settings.outputs if isinstance(output, ParquetOutput)),
        seconds=time.monotonic() - started,
        start_s=outcome.start_s,
        worked_s=outcome.worked_s,
        load_s=outcome.load_s,
        replica_s=outcome.replica_s,
        busy_s=outcome.busy_s,
        replicas=outcome.most,
        replaced=outcome.replaced,
        tenth=progress.tenth,
        gpus=outcome.gpus,
        price_per_hour=settings.batch.price_per_hour,
    )
    out.write(summary.json().decode() + "\n" if as_json else summary.text())
    out.flush()
    if failed or outcome.given_up is not None:
        raise EnvironmentFault("\n".join(_mistakes(failed, outcome)))
    return STOPPED if outcome.stopped else 0


def _mistakes(failed: Sequence[str], outcome: Outcome) -> list[str]:
    """What could not be done, in lines for people; the log and the JSON name all of it."""
    lines = list(failed[:_SHOWN_FAILURES])
    if (more := len(failed) - _SHOWN_FAILURES) > 0:
        lines.append(f"and {more:,} more")
    if outcome.given_up is not None:
        return [*lines, f"{outcome.given_up}: run the same command again when that is mended, and it goes on"]
    rest = "what was under way is not done" if outcome.stopped else "the rest is done"
    return [*lines, f"{rest}; run the same command again when this is mended"]


def _work(
    settings: Settings, tasks: Sequence[Task], there: There, stop: threading.Event, live: Live, replica_class: type
) -> tuple[Outcome, Progress]:
    live.say("starting Ray" if settings.ray.address is None else f"joining Ray at {settings.ray.address}")
    with cluster.connected(settings):
        crew = Crew(settings, tasks, there, replica_class)
        shown = -LOG_PERIOD_S

        def show(state: State) -> None:
            nonlocal shown
            now = time.monotonic()
            if live.on_terminal or now - shown >= LOG_PERIOD_S:
                live.say(line(state, crew.progress))
                shown = now

        live.say("starting the first replica")
        return crew.run(stop, show), crew.progress


def line(state: State, progress: Progress) -> str:
    """The progress, in a line; rows and dead letters are those of finished pieces."""
    if state.ready == 0:
        return f"{state.left:,} pieces to do; the first replica starts"
    return (
        f"{progress.share:.1%}  {spoken(progress.left_s)} left  {state.left:,} pieces to do  "
        f"replicas {state.ready}/{state.members}  rows {state.tally.rows:,}  dead letters {state.tally.refused:,}"
    )


def _require_apart(written: Sequence[Location]) -> None:
    """Refuse outputs, or dead letters, inside of each other: whoever reads one reads all that lies there."""
    for one, other in itertools.permutations(map(str, written), 2):
        if f"{one}/".startswith(f"{other}/"):
            raise SettingsError(
                f"{one} lies in {other}, whose readers would get both: give each output, and dead_letter.uri, a place of its own"
            )
