"""Texts that a command is given: as arguments, or as lines of JSON on its standard input.

Comes in: words, or a stream of lines. Goes out: texts with their ids, in order, a window at a time; or why a line has none.
Never here: the model, a text in an error, or more of the input in memory than one window.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

from pipelines.reading import Reading
from workers.codecs.base import Decoder, understood
from workers.errors import PoisonError
from workers.records import Document, Origin, Record

# Long enough to sort texts by length, short enough that lines appear while the input still comes.
WINDOW_TEXTS = 256
WINDOW_CHARACTERS = 4 << 20


class Text(NamedTuple):
    """One of the input's: itself, or why there is none. ``id`` is the line's own, else its number, from 1 up.

    ``prompt`` is what goes before this one; None: what goes before every one.
    """

    id: str
    text: str = ""
    prompt: str | None = None
    refused: PoisonError | None = None


def texts_of(words: Sequence[str], lines: Iterable[bytes] | None, reading: Reading) -> Iterator[Text]:
    """Each of ``words`` as it is; or when there are ``lines``, what ``reading`` makes of each, white space left out.

    Raises:
        SettingsError: as :meth:`pipelines.reading.Reading.require_topic`; at once.
    """
    if lines is None:
        return _from_words(words, reading)
    reading.require_topic()
    return _from_lines(lines, reading)


def windows(texts: Iterable[Text]) -> Iterator[list[Text]]:
    """The texts in their order, as many at a time as are worth a call of the encoder."""
    window: list[Text] = []
    characters = 0
    for text in texts:
        window.append(text)
        characters += len(text.text)
        if len(window) >= WINDOW_TEXTS or characters >= WINDOW_CHARACTERS:
            yield window
            window, characters = [], 0
    if window:
        yield window


def _from_words(words: Sequence[str], reading: Reading) -> Iterator[Text]:
    decoder = reading.of_words
    for number, word in enumerate(words, 1):
        # An argument that is not UTF-8 has become surrogates; they turn into its bytes again, for the decoder to refuse.
        record = _record(number, word.encode(errors="surrogateescape"))
        yield _decoded(decoder, record, number)


def _from_lines(lines: Iterable[bytes], reading: Reading) -> Iterator[Text]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        record = _record(number, line)
        text = _decoded(partial(reading.of_line, record, number), record, number)
        if text.refused is not None:
            # What is wrong may be the text alone: then the line is still known by its id.
            named = _decoded(partial(reading.of_id, number), record, number)
            text = text._replace(id=named.id)
        yield text


def _record(number: int, value: bytes) -> Record:
    return Record(Origin("input", 0, 0, 0), b"%d" % number, value, -1)


def _decoded(decoder: Callable[[], Decoder], record: Record, number: int) -> Text:
    try:
        found = understood(decoder(), record)
    except PoisonError as error:  # no decoder reads the line
        found = error
    if isinstance(found, PoisonError):
        return Text(str(number), refused=found)
    if isinstance(found, Document):
        return Text(found.id, found.text, found.prompt)
    return Text(str(number), refused=PoisonError("decode", "deleted", "the line deletes a row, and has no text"))
