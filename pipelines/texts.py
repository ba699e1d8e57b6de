"""Texts that a command is given: as arguments, or as lines of JSON on its standard input.

Comes in: words, or a stream of lines. Goes out: texts with their ids, in order, a window at a time; or why a line has none.
Never here: the model, a text in an error, or more of the input in memory than one window.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from workers.codecs.base import Decoder
from workers.codecs.json import JsonDecoder
from workers.codecs.template import Template, parse_template
from workers.codecs.text import TextDecoder
from workers.errors import PoisonError
from workers.records import Document, Origin, Record

# Long enough to sort texts by length, short enough that lines appear while the input still comes.
WINDOW_TEXTS = 256
WINDOW_CHARACTERS = 4 << 20

_ANY = parse_template("{id|none}.")  # a text that every line has


class Text(NamedTuple):
    """One of the input's: itself, or why there is none. ``id`` is the line's own, else its number, from 1 up.

    ``prompt`` is what goes before this one; None: what goes before every one.
    """

    id: str
    text: str = ""
    prompt: str | None = None
    refused: PoisonError | None = None


def texts_of(
    words: Sequence[str],
    lines: Iterable[bytes] | None,
    *,
    template: Template,
    prompt: Template | None = None,
    refuse_empty: bool,
) -> Iterator[Text]:
    """Each of ``words`` as it is; or when there are ``lines``, what ``template`` makes of each, white space left out.

    ``prompt``: what makes each text's prompt of its line's fields; a word has none.
    """
    if lines is None:
        return _from_words(words, prompt, refuse_empty)
    return _from_lines(lines, template, prompt, refuse_empty)


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


def _from_words(words: Sequence[str], prompt: Template | None, refuse_empty: bool) -> Iterator[Text]:
    decoder = TextDecoder(refuse_empty=refuse_empty, prompt=prompt)
    for number, word in enumerate(words, 1):
        # An argument that is not UTF-8 has become surrogates; they turn into its bytes again, for the decoder to refuse.
        yield _decoded(decoder, str(number), word.encode(errors="surrogateescape"))


def _from_lines(
    lines: Iterable[bytes], template: Template, prompt: Template | None, refuse_empty: bool
) -> Iterator[Text]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        name = parse_template(f"{{id|{number}}}")
        text = _decoded(JsonDecoder(template, name, (), refuse_empty=refuse_empty, prompt=prompt), str(number), line)
        if text.refused is not None:
            # What is wrong may be the text alone: then the line is still known by its id.
            named = _decoded(JsonDecoder(_ANY, name, (), refuse_empty=False), str(number), line)
            text = text._replace(id=named.id)
        yield text


def _decoded(decoder: Decoder, number: str, value: bytes) -> Text:
    try:
        document = decoder.decode(Record(Origin("input", 0, 0, 0), number.encode(), value, -1))
    except PoisonError as error:
        return Text(number, refused=error)
    assert isinstance(document, Document)  # lines are in no envelope, and delete nothing
    return Text(document.id, document.text, document.prompt)
