"""A sample of the user's texts, and their vectors.

Comes in: files of texts, or lines on standard input. Goes out: so many of the texts, drawn evenly from all of them, and what
became of each. Never here: a text after it was embedded, or in an error.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import BinaryIO

import numpy as np
import orjson

from pipelines.embedder import Embedder
from pipelines.model import Model
from pipelines.of_topic import OfTopic
from pipelines.reading import Reading
from pipelines.texts import Text, texts_of, windows
from workers.codecs.plain import plain
from workers.errors import EnvironmentFault, PoisonError, SettingsError
from workers.records import embeddings_of, type_vectors

LINES, PARQUET = frozenset({".jsonl", ".ndjson", ".json"}), ".parquet"
SEED = 0


@dataclass(frozen=True, slots=True)
class Sample:
    """What was drawn: ``vectors`` float32 [n, D] of the texts that have one, each text once.

    ``read``: texts in the input; ``drawn``: those taken; ``duplicates``: those of them that are, word for word, another's;
    ``refused``: by class, those that have no vector; ``truncated``, ``tokens``: of those that have.
    """

    vectors: type_vectors
    read: int
    drawn: int
    duplicates: int
    refused: Mapping[str, int]
    truncated: int
    tokens: int
    longest: int


def read_texts(files: Sequence[Path], lines: BinaryIO | None, model: Model, of: OfTopic) -> Iterator[Text]:
    """The texts of files, JSON lines or Parquet by their names, or of ``lines``; made of their fields as the source says.

    Raises:
        SettingsError: a file is of another kind, or has no column that ``source.text`` names; ``of`` is no topic of the source.
        EnvironmentFault: a file cannot be read.
    """
    if other := [path for path in files if path.suffix.lower() not in {*LINES, PARQUET}]:
        raise SettingsError(f"{other[0]}: texts are read from JSON lines ({', '.join(sorted(LINES))}) or {PARQUET}")
    reading = Reading(model.settings, model.layout.prompts, of)
    reading.require_topic()
    sources = [lines] if lines is not None else (_lines_of(path, reading) for path in files)
    return chain.from_iterable(texts_of((), source, reading) for source in sources)


def draw(texts: Iterable[Text], count: int, seed: int = SEED) -> tuple[list[Text], int]:
    """``count`` of the texts, each as likely as another, in their order; and how many there are.

    A reservoir (Vitter 1985, algorithm R), so the input may be longer than memory.
    """
    rng, kept, read = random.Random(seed), list[tuple[int, Text]](), 0  # noqa: S311 - no secret
    for read, text in enumerate(texts, 1):
        if len(kept) < count:
            kept.append((read, text))
        elif (place := rng.randrange(read)) < count:
            kept[place] = (read, text)
    return [text for _, text in sorted(kept, key=lambda each: each[0])], read


def embed(embedder: Embedder, texts: Sequence[Text], read: int, dim: int, tell: Callable[[int], None]) -> Sample:
    """Embed the texts that were drawn, each once; ``tell`` hears how many are done."""
    seen, refused, vectors = set[bytes](), Counter[str](), list[type_vectors]()
    duplicates = truncated = tokens = longest = done = 0
    for window in windows(texts):
        fresh = []
        for text in window:
            digest = hashlib.sha256(f"{text.prompt}\0{text.text}".encode("utf-8", "surrogatepass")).digest()
            if text.refused is None and digest in seen:
                duplicates += 1
                continue
            if text.refused is None:
                seen.add(digest)
            fresh.append(text)
        for outcome in embedder.embed(fresh, dim):
            if isinstance(outcome, PoisonError):
                refused[outcome.reason] += 1
                continue
            for embedding in embeddings_of(outcome):
                vectors.append(embedding.vector)
                truncated += embedding.truncated
                tokens += embedding.tokens
                longest = max(longest, embedding.tokens)
        done += len(window)
        tell(done)
    stacked = np.stack(vectors) if vectors else np.empty((0, dim), np.float32)
    return Sample(stacked, read, len(texts), duplicates, dict(refused.most_common()), truncated, tokens, longest)


def _lines_of(path: Path, reading: Reading) -> Iterator[bytes]:
    """A file as lines of JSON."""
    return _of_parquet(path, reading) if path.suffix.lower() == PARQUET else _of_lines(path)


def _of_lines(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            yield from file
    except OSError as error:
        raise EnvironmentFault(f"{path} cannot be read: {error.strerror or type(error).__name__}") from None


def _of_parquet(path: Path, reading: Reading) -> Iterator[bytes]:
    """Rows as lines of JSON, with the columns that are named, so that they are read as lines are."""
    names = reading.fields
    from workers.codecs.parquet_rows import column_names, plain_rows  # noqa: PLC0415 - heavy

    try:
        columns = column_names(path)
        if (wanted := reading.text_fields) and not names.intersection(columns):
            raise SettingsError(
                f"{path} has the columns {', '.join(columns[:20])}, and source.text names {', '.join(wanted)}: "
                "--source.text '{column}' says which is the text"
            )
        for row in plain_rows(path, [name for name in columns if name in names or name == "id"]):
            try:
                yield b"null" if row is None else orjson.dumps({name: plain(value) for name, value in row.items()})
            except (PoisonError, TypeError, ValueError):
                yield b"null"  # a row that no line can say is refused as one
    except ValueError as error:
        raise EnvironmentFault(f"{path}: {error}") from None
    except OSError as error:
        raise EnvironmentFault(f"{path} cannot be read: {error.strerror or type(error).__name__}") from None
