"""What would become of a sample's records: decoded, tokenised and written down by the code of the real thing.

Comes in: blocks of records. Goes out: what was counted in each, and how many bytes each output would take. Never here: an
encoder, for vectors are made up: unit vectors at random, which take the room of real ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypedDict, cast

import numpy as np

from pipelines.batch.rows import decoder_of
from pipelines.model import Model
from pipelines.plan.blocks import Sampled
from workers.codecs import renderer_for, rows_for, whole_for
from workers.codecs.base import Decoder
from workers.encoder.quantize import Projection
from workers.gathering import Gathering
from workers.offsets import Prefix
from workers.outcomes import TextTokenizer, prepare
from workers.outlets import DeadLetterOutlet, Outlet, Outlets
from workers.records import Chunked, DeadLetter, Embedding, Message, Outcome, Record, Settled, Tombstone, type_ids
from workers.settings import KafkaOutput, ParquetOutput
from workers.settings.outputs import Output
from workers.sinks.kafka_record import record_bytes

if TYPE_CHECKING:
    from workers.codecs.parquet import ParquetRenderer, Row

SEED = 0


class _About(TypedDict):
    dim: int
    model: str
    fingerprint: str


@dataclass(slots=True)
class Counts:
    """What was counted in one block."""

    records: int = 0
    bytes: int = 0
    tokens: int = 0
    texts: int = 0
    truncated: int = 0
    tombstones: int = 0
    embedded: int = 0
    refused: int = 0


@dataclass(slots=True)
class OutputBytes:
    """What one output takes: ``bytes`` for ``rows`` embeddings and deletions of the sample."""

    name: str
    dim: int
    precision: str
    format: str
    bytes: int = 0
    rows: int = 0

    @property
    def each(self) -> float:
        """Bytes of one; 0 where there is none."""
        return self.bytes / self.rows if self.rows else 0.0


@dataclass(slots=True)
class Profile:
    """All of a sample: ``counts`` of each block by kind of input, tokens of each text with its weight, and the rest."""

    counts: list[list[Counts]] = field(default_factory=list)
    lengths: list[tuple[float, float]] = field(default_factory=list)
    texts: list[type_ids] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    equal: int = 0
    outputs: list[OutputBytes] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Rows:
    """An output of files, for which no store is needed; see :class:`workers.outlets.RowOutlet`."""

    name: str
    projection: Projection
    renderer: ParquetRenderer

    @property
    def whole(self) -> ParquetRenderer | None:
        """See there."""
        return self.renderer if self.renderer.together else None


def profile(
    sampled: Sequence[Sampled],
    model: Model,
    *,
    of_files: bool,
    refuses: Callable[[Message], str | None] = lambda _: None,
) -> Profile:
    """Look at every record of a sample.

    Args:
        sampled: by kind of input.
        model: with the settings.
        of_files: whether records are rows of files.
        refuses: why an output's topic would not take a message.

    Raises:
        RetryableError, EnvironmentFault: see :func:`workers.outcomes.prepare`, and :meth:`pipelines.model.Model.projection`.
    """
    work = _Work(model, decoder_of(model.settings, model.layout.prompts, of_files=of_files), model.tokenizer(), refuses)
    for each in sampled:
        weight = each.stratum.weight
        work.found.counts.append([work.block(block.records, weight) for block in each.blocks])
    return work.finished()


class _Work:
    """The sample, block after block."""

    def __init__(
        self,
        model: Model,
        decoder: Decoder,
        tokenizer: TextTokenizer,
        refuses: Callable[[Message], str | None],
    ) -> None:
        settings = model.settings
        self._decoder = decoder
        self._tokenizer = tokenizer
        self._reject = settings.model.overflow == "reject"
        self._dim = model.widest
        self._random = np.random.default_rng(SEED)
        self._seen: set[bytes] = set()
        self._topics, self._files = _outlets(model)
        dead = DeadLetterOutlet(
            settings.dead_letter.topic, "0" * 16, tombstone=settings.delivery.on_dead_letter == "tombstone"
        )
        # A dead letter that its topic does not take is for check to find.
        self._outlets = Outlets(
            self._topics, self._files, dead, lambda message: None if message.topic == dead.topic else refuses(message)
        )
        self._rows: list[list[object]] = [[] for _ in self._files]
        self.found = Profile(outputs=[_output_bytes(output, model) for output in settings.outputs])
        self._by_topic = {
            output.topic: told
            for output, told in zip(settings.outputs, self.found.outputs, strict=True)
            if isinstance(output, KafkaOutput)
        }
        self._of_files = [
            told
            for output, told in zip(settings.outputs, self.found.outputs, strict=True)
            if isinstance(output, ParquetOutput)
        ]

    def block(self, records: Sequence[Record], weight: float) -> Counts:
        """Look at the records of a block."""
        counts = Counts(records=len(records), bytes=sum(record.size for record in records))
        if not records:
            return counts
        texts, settled = prepare(records, self._decoder, self._tokenizer, reject_overflow=self._reject)
        outcomes: dict[int, Outcome] = {origin.offset: outcome for origin, outcome in settled}
        gathering = Gathering()
        gathering.expect(texts)
        vectors = self._random.normal(size=(len(texts), self._dim)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        for text, vector in zip(texts, vectors, strict=True):
            ids = text.tokens.ids
            found = Embedding(text.document, vector, len(ids), text.tokens.truncated, text.chunk)
            outcomes |= {origin.offset: outcome for origin, outcome in gathering.whole([(text, found)])}
            counts.texts += 1
            counts.tokens += len(ids)
            counts.truncated += text.tokens.truncated
            self.found.lengths.append((len(ids), weight))
            self.found.texts.append(ids)
            self.found.equal += ids.tobytes() in self._seen
            self._seen.add(ids.tobytes())
        for outcome in self._written(records, outcomes):
            counts.embedded += isinstance(outcome, Embedding | Chunked)
            counts.tombstones += isinstance(outcome, Tombstone)
            if isinstance(outcome, DeadLetter):
                counts.refused += 1
                self.found.reasons[f"{outcome.stage}/{outcome.reason}"] += 1
        return counts

    def _written(self, records: Sequence[Record], outcomes: dict[int, Outcome]) -> list[Outcome]:
        """The outcomes as they turn out once each output has written its own."""
        settled = tuple(Settled(record, outcomes[record.origin.offset]) for record in records)
        first, last = records[0].origin, records[-1].origin
        prefix = Prefix(first.topic_partition, first.epoch, settled, last.offset + 1, already={})
        (rendered,), messages = self._outlets.render([prefix])
        for message in messages:
            if (told := self._by_topic.get(message.topic)) is not None:
                told.bytes += len(record_bytes(0, 0, message.key, message.value, message.headers))
                told.rows += 1
        for kept, rows in zip(self._rows, rendered.rows, strict=True):
            kept += [row for _, row in rows]
        return [entry.outcome for entry in rendered.prefix.settled]

    def finished(self) -> Profile:
        """All of it, the files written too."""
        for outlet, rows, told in zip(self._files, self._rows, self._of_files, strict=True):
            if rows:
                # What a file has of its own does not grow with its rows.
                whole = outlet.renderer.file([outlet.renderer.batch(cast("list[Row]", rows))], {})
                told.bytes, told.rows = len(whole) - len(outlet.renderer.file([], {})), len(rows)
        return self.found


def _outlets(model: Model) -> tuple[list[Outlet], list[_Rows]]:
    """The outputs: records in Avro are good for their size alone, for no schema is registered."""
    topics, files = list[Outlet](), list[_Rows]()
    for output in model.settings.outputs:
        projection = model.projection(output)
        chunked = model.settings.model.chunked
        about = _About(dim=projection.dim, model=model.name, fingerprint=model.fingerprint_of(projection))
        if isinstance(output, KafkaOutput):
            renderer = renderer_for(output, **about, chunked=chunked)
            topics.append(Outlet(output.name, output.topic, projection, renderer, whole_for(output, **about)))
        else:
            rows = rows_for(output, **about, chunked=chunked)
            files.append(_Rows(output.name, projection, rows))
    return topics, files


def _output_bytes(output: Output, model: Model) -> OutputBytes:
    kind = f"kafka, {output.format}" if isinstance(output, KafkaOutput) else f"parquet, {output.compression}"
    name = output.topic if isinstance(output, KafkaOutput) else output.uri
    return OutputBytes(name, model.dim(output), output.precision, kind)
