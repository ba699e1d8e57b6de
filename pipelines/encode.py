"""The command ``encode``: texts in, one line of JSON each out, in order.

Comes in: texts, or lines of JSON. Goes out: the record that an output in JSON would carry, or a line that says why there is
none. Never here: Kafka or Ray, a text in an error, or more of the input in memory than one window.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import BinaryIO, NamedTuple

import numpy as np
import orjson

from pipelines.model import Model
from workers.codecs import renderer_for
from workers.codecs.base import Decoder
from workers.codecs.json import JsonDecoder
from workers.codecs.template import Template
from workers.codecs.text import TextDecoder
from workers.encoder.quantize import project
from workers.errors import PoisonError, SettingsError
from workers.records import Batch, Document, Embedding, Origin, Record, Tokens, type_vectors
from workers.settings import KafkaOutput, Settings

# Long enough to sort texts by length, short enough that lines appear while the input still comes.
WINDOW_TEXTS = 256
WINDOW_CHARACTERS = 4 << 20

TEXT = Template.parse("{text}")
ANY = Template.parse("{id|none}.")  # a text that every line has


class _Item(NamedTuple):
    """A line of the input: its document, or why it has none."""

    id: str
    text: str = ""
    refused: PoisonError | None = None


def run_encode(
    settings: Settings,
    *,
    dim: int | None,
    precision: str,
    texts: Sequence[str],
    lines: BinaryIO | None,
    out: BinaryIO,
) -> int:
    """Embed ``texts``, or else the JSON ``lines``, and write a line for each to ``out``.

    Raises:
        EnvironmentFault: the model is not there, or does not work here.
        SettingsError: the settings or ``dim`` do not suit the model.
    """
    model = Model.open(settings)
    if dim is not None and dim > model.layout.dim:
        raise SettingsError(f"--dim ({dim}) is larger than the {model.layout.dim} dimensions of {settings.model.name}")
    refuse_empty = settings.source.empty == "reject"
    items = _from_texts(texts, refuse_empty) if lines is None else _from_lines(lines, refuse_empty)
    command = _Encode(settings, model, KafkaOutput(topic="stdout", dim=dim, precision=precision))
    for window in _windows(items):
        out.writelines(line + b"\n" for line in command.lines(window))
        out.flush()
    return 0


class _Encode:
    """What a window needs, loaded once."""

    def __init__(self, settings: Settings, model: Model, output: KafkaOutput) -> None:
        self._settings = settings
        self._max_tokens = model.max_tokens
        self._dim, self._precision = model.dim(output), output.precision
        fingerprint = model.fingerprint(self._dim, self._precision)
        self._renderer = renderer_for(output, dim=self._dim, model=model.name, fingerprint=fingerprint)
        self._tokenizer = model.tokenizer()
        self._encoder = model.encoder()
        self._encoder.self_test()

    def lines(self, window: Sequence[_Item]) -> Iterator[bytes]:
        """A window's records, in its order."""
        refused = {row: item.refused for row, item in enumerate(window) if item.refused is not None}
        rows = [row for row in range(len(window)) if row not in refused]
        tokens = dict(zip(rows, self._tokenizer.encode([window[row].text for row in rows]), strict=True))
        if self._settings.model.overflow == "reject":
            for row, found in tokens.items():
                if found.truncated:
                    message = f"the text has {found.total} tokens or more, the limit is {self._max_tokens}"
                    refused[row] = PoisonError("tokenize", "too_long", message)
        rows = [row for row in rows if row not in refused]
        batch = Batch.of([tokens[row].ids for row in rows])
        vectors = dict(zip(rows, self._encoder.encode(batch, self._dim), strict=True))
        for row, vector in vectors.items():
            if not np.isfinite(vector).all():
                refused[row] = PoisonError("encode", "not_finite", "the model gave no finite vector for the text")
        for row, item in enumerate(window):
            if row in refused:
                yield orjson.dumps({"id": item.id, "error": refused[row].message})
            else:
                yield self._render(item, tokens[row], vectors[row])

    def _render(self, item: _Item, tokens: Tokens, vector: type_vectors) -> bytes:
        embedding = Embedding(Document(item.id, item.text), vector, len(tokens.ids), tokens.truncated)
        record = Record(Origin("input", 0, 0, 0), None, None, -1)
        projected = project(vector[np.newaxis], self._dim, self._precision)[0]
        return self._renderer.render(record, embedding, projected).value or b""


def _from_texts(texts: Sequence[str], refuse_empty: bool) -> Iterator[_Item]:
    decoder = TextDecoder(refuse_empty=refuse_empty)
    for number, text in enumerate(texts, 1):
        # An argument that is not UTF-8 has become surrogates; they turn into its bytes again, for the decoder to refuse.
        yield _item(decoder, str(number), text.encode(errors="surrogateescape"))


def _from_lines(lines: BinaryIO, refuse_empty: bool) -> Iterator[_Item]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        name = Template.parse(f"{{id|{number}}}")
        item = _item(JsonDecoder(TEXT, name, (), refuse_empty=refuse_empty), str(number), line)
        if item.refused is not None:
            # What is wrong may be the text alone: then the line is still known by its id.
            item = item._replace(id=_item(JsonDecoder(ANY, name, (), refuse_empty=False), str(number), line).id)
        yield item


def _item(decoder: Decoder, number: str, value: bytes) -> _Item:
    try:
        document = decoder.decode(Record(Origin("input", 0, 0, 0), number.encode(), value, -1))
    except PoisonError as error:
        return _Item(number, refused=error)
    return _Item(document.id, document.text)


def _windows(items: Iterator[_Item]) -> Iterator[list[_Item]]:
    window: list[_Item] = []
    characters = 0
    for item in items:
        window.append(item)
        characters += len(item.text)
        if len(window) >= WINDOW_TEXTS or characters >= WINDOW_CHARACTERS:
            yield window
            window, characters = [], 0
    if window:
        yield window
