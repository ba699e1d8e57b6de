"""The command ``calibrate``: a sample of texts in, the ranges of their vectors out, for int8_ranges and uint8_ranges.

Comes in: texts, or lines of JSON with the fields that ``source.text`` names. Goes out: a file that
``workers.encoder.ranges`` reads, bound to the vectors that these settings make. Never here: Kafka or Ray, or a text in an error.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import numpy as np

from pipelines.arguments import PROGRAM
from pipelines.embedder import Embedder
from pipelines.fit import output_against_model
from pipelines.model import Model
from pipelines.of_topic import UNSAID, OfTopic
from pipelines.reading import Reading
from pipelines.texts import Text, texts_of, windows
from workers.encoder.quantize import project
from workers.encoder.ranges import Ranges
from workers.errors import EnvironmentFault, PoisonError, SettingsError
from workers.records import embeddings_of, type_vectors
from workers.settings import KafkaOutput, Settings

# Of n texts, one in n + 1 has a dimension's greatest value, and one its least. So 2 / (n + 1) of the values of texts to
# come lie outside the sample's ranges: 1 % for 200, which costs 2 points of recall@10, and 0.2 % from here on.
ENOUGH = 1_000
# What one text's component may move by with its batch in bfloat16, and some more; texts differ by ten times as much.
NOISE = 0.01


def run_calibrate(
    settings: Settings,
    *,
    dim: int | None,
    path: Path,
    texts: Sequence[str],
    lines: BinaryIO | None,
    of: OfTopic = UNSAID,
) -> int:
    """Embed ``texts``, or else the JSON ``lines``, and write the ranges of their vectors' first ``dim`` dimensions.

    Raises:
        EnvironmentFault: the model does not work here, ``path`` cannot be written, or no ranges can be had from the sample.
        SettingsError: the settings, ``dim`` or ``path`` do not suit the model, each other or the format.
    """
    if path.suffix != ".npz":
        raise SettingsError(f"--out {path}: the file is an .npz, and its name should end so")
    output = KafkaOutput(topic="calibrate", dim=dim)
    model = Model.open(settings)
    found = texts_of(texts, lines, Reading(settings, model.layout.prompts, of))
    for mistake in output_against_model(output, model.layout, settings.model.name, "--"):
        raise SettingsError(mistake)
    part = _made(path)
    try:
        sample = _Sample(Embedder(model), model.dim(output))
        ranges = _ranges(sample, found)
        space = model.fingerprint(sample.dim, "float32")
        _write(replace(ranges, space=space, model=model.name, texts=sample.count), part, path)
    finally:
        part.unlink(missing_ok=True)
    outside = f"about {200 / (sample.count + 1):.2g} % of the values of other texts lie outside them"
    print(f"{path}: ranges of {sample.dim} dimensions, from {sample.count:,} texts; {outside}")
    if sample.count < ENOUGH:
        _warn(f"the ranges are of {sample.count:,} texts only: {outside}, and are clipped; take {ENOUGH:,} or more")
    if sample.refused:
        _warn(
            f"{sample.refused:,} of {sample.refused + sample.count:,} texts were left out; the first: {sample.reason}"
        )
    return 0


class _Sample:
    """The texts' vectors, a window at a time, and a count of those that had one."""

    def __init__(self, embedder: Embedder, dim: int) -> None:
        self.dim = dim
        self.count = self.refused = 0
        self.reason = ""  # why the first that was refused was
        self._embedder = embedder

    def vectors(self, texts: Iterable[Text]) -> Iterator[type_vectors]:
        """Unit vectors, float32 [n, dim]."""
        for window in windows(texts):
            outcomes = self._embedder.embed(window, self.dim)
            for outcome in outcomes:
                if isinstance(outcome, PoisonError):
                    self._refuse(outcome.message)
            whole = (outcome for outcome in outcomes if not isinstance(outcome, PoisonError))
            found = [embedding.vector for outcome in whole for embedding in embeddings_of(outcome)]
            if not found:
                continue
            self.count += len(found)
            yield np.asarray(project(np.stack(found), self.dim), np.float32)

    def _refuse(self, reason: str) -> None:
        self.refused += 1
        self.reason = self.reason or reason


def _ranges(sample: _Sample, texts: Iterable[Text]) -> Ranges:
    try:
        ranges = Ranges.of(sample.vectors(texts))
    except ValueError:
        why = f": all {sample.refused:,} were refused, the first because {sample.reason}" if sample.refused else ""
        raise EnvironmentFault(f"there is no text to calibrate with{why}") from None
    if (ranges.high - ranges.low).max() < NOISE:
        raise EnvironmentFault(
            f"ranges need different texts, and the vectors of these ({sample.count:,}) hardly differ"
        )
    return ranges


def _made(path: Path) -> Path:
    """An empty file beside ``path``, to take its place when it is whole; so a folder that takes none is found out at once.

    Raises:
        EnvironmentFault: it cannot be written, or ``path`` is a folder.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        part.touch()
    except OSError as error:
        raise _unwritable(path, error) from None
    return part


def _write(ranges: Ranges, part: Path, path: Path) -> None:
    try:
        with part.open("wb") as file:
            ranges.write(file)
        part.replace(path)
    except OSError as error:
        raise _unwritable(path, error) from None


def _unwritable(path: Path, error: OSError) -> EnvironmentFault:
    return EnvironmentFault(f"--out {path} cannot be written: {error.strerror or type(error).__name__}")


def _warn(message: str) -> None:
    print(f"{PROGRAM}: warning: {message}", file=sys.stderr)
