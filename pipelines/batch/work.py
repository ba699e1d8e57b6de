"""The work on one part: rows in, files out, whole or not at all.

Comes in: a part's rows, and which of its files are there. Goes out: the others, put where nothing is, dead letters first; and
what became of the rows. Never here: Ray, which piece is next, or a row that ends the job.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from pipelines.batch.dead_letters import dead_letters_file, dead_records_file, digest
from pipelines.batch.embed import PASSES_A_CALL, RowEmbedder, type_progress
from pipelines.batch.finished import PieceName, Tally
from pipelines.batch.outlets import batch_outlets, dead_letter_folder, dead_letter_location
from pipelines.batch.place import Place
from pipelines.batch.rows import FileRow, Part, decoder_of
from pipelines.model import Model
from workers.codecs.parquet import Row
from workers.outcomes import TextTokenizer
from workers.pool import EncoderPool
from workers.records import Chunked, DeadLetter, Embedding, Settled, Tombstone, embeddings_of


@dataclass(frozen=True, slots=True)
class Done:
    """What became of rows: the counts of what was put, and why rows were refused, by ``stage/class``."""

    tally: Tally
    reasons: dict[str, int]


class Worker:
    """A model's outputs, and how rows become their files. For any number of threads, each with a tokenizer of its own."""

    def __init__(self, model: Model, pool: EncoderPool, max_batch_tokens: int, *, passes: int = PASSES_A_CALL) -> None:
        """``pool``: takes batches; ``max_batch_tokens``: the budget of one forward pass; ``passes``: in a batch."""
        self._outlets = batch_outlets(model)
        self._places = [Place(outlet.location) for outlet in self._outlets]
        self._dead = Place(dead_letter_location(model.settings))
        self._dead_folder = dead_letter_folder(model)
        decoder = decoder_of(model.settings, model.layout.prompts, of_files=not model.settings.batch_reads_topics)
        self._embedder = RowEmbedder(model.settings, decoder, self._outlets, pool, max_batch_tokens, passes=passes)

    @property
    def folders(self) -> tuple[str, ...]:
        """Where the outputs' files lie below their URIs."""
        return tuple(outlet.folder for outlet in self._outlets)

    def do(
        self, name: PieceName, part: Part, there: Sequence[bool], tokenizer: TextTokenizer, progress: type_progress
    ) -> Done:
        """Embed a part and put its files.

        Args:
            name: of the part's piece.
            part: the rows.
            there: for each output, whether it has the part already.
            tokenizer: this thread's own.
            progress: hears, while it is embedded, how much of the part is: 0 to 1.

        Raises:
            EnvironmentFault: a store takes no files.
            RetryableError: the pool was closed, or the schema registry does not answer now.
        """
        files, entries = self._embedder.embed(part.rows, tokenizer, progress)
        done = _done(entries, part.gone)
        refused = [(entry.record, entry.outcome) for entry in entries if isinstance(entry.outcome, DeadLetter)]
        file = name.part(part.number, last=part.last)
        if refused:
            # First: a part that its outputs have is complete.
            path = f"{self._dead_folder}/{file.removesuffix('.parquet')}-{digest(refused)}.parquet"
            of_files = [(record, letter) for record, letter in refused if isinstance(record, FileRow)]
            self._dead.put(path, dead_letters_file(of_files) if of_files else dead_records_file(refused))
        for outlet, place, has, rows in zip(self._outlets, self._places, there, files, strict=True):
            if not has:
                batches = [outlet.renderer.batch(cast("list[Row]", rows))] if rows else []
                content = outlet.renderer.file(batches, {**done.tally.notes, "part": str(part.number)})
                place.put(f"{outlet.folder}/{file}", content)
        return done


def _done(entries: Sequence[Settled], gone: int) -> Done:
    embedded = [entry.outcome for entry in entries if isinstance(entry.outcome, Embedding | Chunked)]
    vectors = [vector for outcome in embedded for vector in embeddings_of(outcome)]
    letters = Counter(
        f"{entry.outcome.stage}/{entry.outcome.reason}" for entry in entries if isinstance(entry.outcome, DeadLetter)
    )
    tally = Tally(
        rows=len(embedded),
        tokens=sum(vector.tokens for vector in vectors),
        truncated=sum(vector.truncated for vector in vectors),
        refused=letters.total(),
        parts=1,
        deleted=sum(isinstance(entry.outcome, Tombstone) for entry in entries),
        gone=gone,
    )
    return Done(tally, dict(letters))
