"""The command ``report``: a sample of texts in; what each dim and precision of their vectors keeps, out.

Comes in: settings, and files of texts or lines on standard input. Goes out: a table on standard output; JSON and a page in a
folder. Never here: Kafka or Ray, or a text in what is written.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO

from pipelines.arguments import PROGRAM, Arguments
from pipelines.embedder import Embedder
from pipelines.model import Model
from pipelines.of_topic import UNSAID, OfTopic
from pipelines.report import words
from pipelines.report.measure import Report, measure, usual_dims
from pipelines.report.page import page
from pipelines.report.sample import draw, embed, read_texts
from workers.errors import EnvironmentFault, SettingsError
from workers.settings import Settings

DEFAULT_TEXTS = 2_000
# Each that asks is compared with each that is there.
MOST_TEXTS = 50_000
DEFAULT_RECALL = 0.95


def from_line(settings: Settings, arguments: Arguments, line: str, lines: BinaryIO) -> int:
    """Run what a command line asks for: ``line`` as it was typed, ``lines`` standard input; see :func:`run_report`."""
    options, files = arguments.options, [Path(word) for word in arguments.words]
    return run_report(
        settings,
        files,
        lines=None if files else lines,
        out=options.out,
        command=line,
        count=options.texts,
        dims=options.dims,
        min_recall=options.min_recall,
        of=OfTopic.of(options),
    )


def run_report(
    settings: Settings,
    files: Sequence[Path],
    *,
    lines: BinaryIO | None,
    out: Path,
    command: str,
    count: int | None = None,
    dims: Sequence[int] = (),
    min_recall: float | None = None,
    of: OfTopic = UNSAID,
) -> int:
    """Report on ``count`` texts of ``files``, or else of the JSON ``lines``.

    ``dims``: to cut vectors to; by default the powers of two below the model's, and those of the outputs. ``min_recall``: what
    the cheapest has to keep of the 10 nearest. ``command`` is quoted in what is written to ``out``.

    Raises:
        EnvironmentFault: the model does not work here, a file cannot be read or written, or there are too few texts.
        SettingsError: the settings, ``dims`` or ``files`` do not suit each other or the model.
    """
    wanted = count or DEFAULT_TEXTS
    if wanted > MOST_TEXTS:
        raise SettingsError(f"--texts {wanted:,}: {MOST_TEXTS:,} are compared at most, and some thousands tell as much")
    model = Model.open(settings)
    whole = model.layout.dim
    if large := [dim for dim in dims if dim > whole]:
        raise SettingsError(f"--dims {large[0]}: {settings.model.name} has {whole} dimensions")
    cuts = dims or [*usual_dims(whole), *(output.dim for output in settings.outputs if output.dim is not None)]
    found = read_texts(files, lines, model, of)
    _writable(out)
    texts, read = draw(found, wanted)
    sample = embed(Embedder(model), texts, read, whole, _progress(len(texts)))
    report = measure(model.name, sample, cuts, DEFAULT_RECALL if min_recall is None else min_recall)
    print(words.text(report))
    print(f"\n{', '.join(map(str, _write(report, command, out)))}")
    return 0


def _write(report: Report, command: str, out: Path) -> list[Path]:
    pictures: dict[str, str] = {}
    if find_spec("matplotlib") is None:
        missing = "the page has no plots, for matplotlib is not installed: pip install 'stream-embedder[plots]'"
        print(f"{PROGRAM}: warning: {missing}", file=sys.stderr)
    else:
        from pipelines.report.plot import pictures as drawn  # noqa: PLC0415 - not installed everywhere

        pictures = drawn(report)
    values = json.dumps(words.values(report, command), indent=1, ensure_ascii=False)
    files = {out / "report.json": f"{values}\n", out / "report.html": page(report, command, pictures)}
    for path, content in files.items():
        try:
            path.write_text(content, encoding="utf-8")
        except OSError as error:
            raise _unwritable(out, error) from None
    return list(files)


def _writable(folder: Path) -> None:
    """Find out before the work whether there is a place for it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".report"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise _unwritable(folder, error) from None


def _unwritable(folder: Path, error: OSError) -> EnvironmentFault:
    reason = error.strerror or type(error).__name__
    return EnvironmentFault(f"cannot write to {folder}: {reason}; --out names another folder")


def _progress(total: int) -> Callable[[int], None]:
    """A line on a terminal's standard error that says how far it is; elsewhere nothing."""
    if not sys.stderr.isatty():
        return lambda done: None

    def tell(done: int) -> None:
        print(f"\r{done:,} of {total:,} texts embedded", end="\n" if done >= total else "", file=sys.stderr, flush=True)

    return tell
