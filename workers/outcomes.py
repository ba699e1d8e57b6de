"""What becomes of a record's text: judged in one place, for the stream and for the commands.

Comes in: records, their tokens, an encoder's vectors. Goes out: texts that wait for an encoder, embeddings, and reasons why
there is none. Never here: threads, a piece of a text in a reason, or where an outcome goes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from workers.codecs.base import Decoder, understood
from workers.errors import PoisonError
from workers.pool import Answer
from workers.records import (
    Chunk,
    DeadLetter,
    Document,
    Embedding,
    Origin,
    Outcome,
    Record,
    Tokens,
    Tombstone,
    Unchanged,
    type_vectors,
)
from workers.text.chunks import Piece
from workers.window import WaitingText

# How far a vector's length may be from 1; what bfloat16 does to it stays far below.
NORM_TOLERANCE = 1e-2

type_settled = list[tuple[Origin, Outcome]]
type_parts = list[tuple[Chunk | None, Tokens]]
type_answered = list[tuple[WaitingText, Outcome]]


class TextTokenizer(Protocol):
    """What turns texts into token arrays; one thread uses it."""

    def encode(self, texts: Sequence[str], prompts: Sequence[str | None]) -> Sequence[Tokens | PoisonError]:
        """The tokens of each text, in order, or why it has none; a text without a prompt of its own has the one of all."""


type_found = Document | Tombstone | PoisonError


class Memory(Protocol):
    """What knows which documents are what they were."""

    def recognise(
        self, found: Sequence[tuple[Record, Document | Tombstone | PoisonError]]
    ) -> Sequence[tuple[Record, Document | Tombstone | PoisonError | Unchanged]]:
        """Records in their order, with what is to become of them."""


@runtime_checkable
class CuttingTokenizer(Protocol):
    """One that cuts what is too long; where there is one, every text is in chunks."""

    def chunks(self, texts: Sequence[str], prompts: Sequence[str | None]) -> Sequence[Sequence[Piece] | PoisonError]:
        """The parts of each text, one at least, with their tokens; or why it has none."""


def prepare(
    records: Iterable[Record],
    decoder: Decoder,
    tokenizer: TextTokenizer,
    *,
    reject_overflow: bool,
    memory: Memory | None = None,
) -> tuple[list[WaitingText], type_settled]:
    """Decode and tokenise: the texts to encode, and the outcomes of those records that need no encoder.

    Raises:
        RetryableError, EnvironmentFault: as :meth:`workers.codecs.base.Decoder.decode`; nothing is done with any record then.
    """
    read = [(record, _found(record, decoder)) for record in records]
    settled: type_settled = []
    documents: list[tuple[Origin, Document]] = []
    for record, found in read if memory is None else memory.recognise(read):
        if isinstance(found, PoisonError):
            settled.append((record.origin, dead_letter(found)))
        elif isinstance(found, Document):
            documents.append((record.origin, found))
        else:
            settled.append((record.origin, found))
    texts = []
    encoded = tokenised([document for _, document in documents], tokenizer)
    for (origin, document), parts in zip(documents, encoded, strict=True):
        refused = parts if isinstance(parts, PoisonError) else refused_part(parts, reject_overflow=reject_overflow)
        if refused is not None:
            settled.append((origin, dead_letter(refused)))
        elif not isinstance(parts, PoisonError):
            texts += [WaitingText(origin, document, tokens, chunk) for chunk, tokens in parts]
    return texts, settled


def _found(record: Record, decoder: Decoder) -> type_found:
    if record.value is None and record.key is not None:
        return Tombstone()
    return understood(decoder, record)


def tokenised(documents: Sequence[Document], tokenizer: TextTokenizer) -> list[type_parts | PoisonError]:
    """Each document's chunks with their tokens, in order; without chunks, its one text."""
    texts, prompts = [document.text for document in documents], [document.prompt for document in documents]
    if not isinstance(tokenizer, CuttingTokenizer):
        return [
            tokens if isinstance(tokens, PoisonError) else [(None, tokens)]
            for tokens in tokenizer.encode(texts, prompts)
        ]
    return [
        pieces
        if isinstance(pieces, PoisonError)
        else [(Chunk(index, len(pieces), piece.start, piece.end), piece.tokens) for index, piece in enumerate(pieces)]
        for pieces in tokenizer.chunks(texts, prompts)
    ]


def refused_part(parts: type_parts, *, reject_overflow: bool) -> PoisonError | None:
    """Why a document cannot be encoded, seen in the tokens of its parts; None: it can."""
    verdicts = (refusal(tokens, reject_overflow=reject_overflow) for _, tokens in parts)
    return next((verdict for verdict in verdicts if verdict is not None), None)


def refusal(tokens: Tokens, *, reject_overflow: bool) -> PoisonError | None:
    """Why a text cannot be encoded, seen in its tokens; None: it can."""
    if tokens.truncated and reject_overflow:
        message = f"the text has {tokens.total} tokens or more, the limit is {len(tokens.ids)}"
        return PoisonError("tokenize", "too_long", message)
    if len(tokens.ids) == 0:
        message = "the model's tokenizer makes no token of the text, and adds none of its own"
        return PoisonError("tokenize", "no_tokens", message)
    return None


def embedding(
    document: Document, tokens: Tokens, vector: type_vectors, *, sound: bool, chunk: Chunk | None = None
) -> Embedding | PoisonError:
    """A text's embedding, or why its vector is none; ``sound`` as :func:`is_sound` says."""
    if not sound:
        return PoisonError("encode", "not_finite", "the model gave no vector of finite, unit length for the text")
    return Embedding(document, vector, len(tokens.ids), tokens.truncated, chunk)


def is_sound(vectors: type_vectors) -> npt.NDArray[np.bool_]:
    """Which rows of float32 [n, dim] are finite and of unit length: bool [n]."""
    norms = np.sqrt(np.einsum("nd,nd->n", vectors, vectors))
    with np.errstate(invalid="ignore"):
        found: npt.NDArray[np.bool_] = np.abs(norms - 1.0) < NORM_TOLERANCE
    return found


def answered(rows: Sequence[Sequence[WaitingText]], answer: Answer) -> type_answered:
    """The outcomes of a call's texts; those of one row have one vector, or are refused for one reason."""
    sound = is_sound(answer.vectors)
    found: type_answered = []
    for number, texts in enumerate(rows):
        refused, vector, good = answer.refused.get(number), answer.vectors[number], bool(sound[number])
        found += [(text, refused or _outcome(text, vector, sound=good)) for text in texts]
    return found


def _outcome(text: WaitingText, vector: type_vectors, *, sound: bool) -> Outcome:
    found = embedding(text.document, text.tokens, vector, sound=sound, chunk=text.chunk)
    return dead_letter(found) if isinstance(found, PoisonError) else found


def dead_letter(error: PoisonError) -> DeadLetter:
    """The outcome of a record that is refused."""
    return DeadLetter(error.stage, error.reason, error.message)
