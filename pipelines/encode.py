"""The command ``encode``: texts in, one line of JSON each out, in order; of a text in chunks, one for each of those.

Comes in: texts, or lines of JSON. Goes out: the record that an output in JSON would carry, or a line that says why there is
none. Never here: Kafka or Ray, or a text in an error.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import orjson
from pydantic import ValidationError

from pipelines.embedder import Embedder
from pipelines.fit import output_against_model
from pipelines.model import Model
from pipelines.of_topic import UNSAID, OfTopic
from pipelines.reading import Reading
from pipelines.texts import texts_of, windows
from workers.codecs import renderer_for
from workers.codecs.base import Renderer
from workers.encoder.quantize import Projection
from workers.errors import PoisonError, SettingsError
from workers.records import Chunked, Embedding, Origin, Record, embeddings_of
from workers.settings import KafkaOutput, Settings


def run_encode(
    settings: Settings,
    *,
    dim: int | None,
    precision: str,
    ranges: Path | None = None,
    texts: Sequence[str],
    lines: BinaryIO | None,
    out: BinaryIO,
    of: OfTopic = UNSAID,
) -> int:
    """Embed ``texts``, or else what the source makes of the JSON ``lines``, and write a line for each to ``out``.

    Where texts are cut into chunks, there is a line for each of those.

    Raises:
        EnvironmentFault: the model or ``ranges`` are not there, or do not work here.
        SettingsError: the settings, ``dim``, ``precision`` and ``ranges`` do not suit each other or the model.
    """
    output = _output(dim, precision, ranges)
    model = Model.open(settings)
    reading = Reading(settings, model.layout.prompts, of)
    for mistake in output_against_model(output, model.layout, settings.model.name, "--"):
        raise SettingsError(mistake)
    projection = model.projection(output)
    renderer = renderer_for(output, dim=projection.dim, model=model.name, fingerprint=model.fingerprint_of(projection))
    found = texts_of(texts, lines, reading)
    embedder = Embedder(model)
    for window in windows(found):
        for text, outcome in zip(window, embedder.embed(window, projection.dim), strict=True):
            out.writelines(line + b"\n" for line in _lines(text.id, outcome, projection, renderer))
        out.flush()
    return 0


def _output(dim: int | None, precision: str, ranges: Path | None) -> KafkaOutput:
    """The flags as an output, which knows what contradicts what."""
    try:
        return KafkaOutput.model_validate({"topic": "stdout", "dim": dim, "precision": precision, "ranges": ranges})
    except ValidationError as error:
        found = [detail["msg"].removeprefix("Value error, ") for detail in error.errors(include_url=False)]
        raise SettingsError("\n".join(found)) from None


def _lines(
    name: str, outcome: Embedding | Chunked | PoisonError, projection: Projection, renderer: Renderer
) -> Iterator[bytes]:
    if isinstance(outcome, PoisonError):
        yield orjson.dumps({"id": name, "error": outcome.message})
        return
    record = Record(Origin("input", 0, 0, 0), None, None, -1)
    for embedding in embeddings_of(outcome):
        vector, scale = next(projection(embedding.vector[np.newaxis]).rows())
        yield renderer.render(record, embedding, vector, scale).value or b""
