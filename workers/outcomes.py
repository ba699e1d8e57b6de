"""What becomes of a record's text: judged in one place, for the stream and for the commands.

Comes in: records, their tokens, an encoder's vectors. Goes out: texts that wait for an encoder, embeddings, and reasons why
there is none. Never here: threads, a piece of a text in a reason, or where an outcome goes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from workers.codecs.base import Decoder
from workers.errors import PoisonError
from workers.pool import Answer
from workers.records import (
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
from workers.window import WaitingText

# How far a vector's length may be from 1; what bfloat16 does to it stays far below.
NORM_TOLERANCE = 1e-2

type_settled = list[tuple[Origin, Outcome]]


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
    encoded = tokenizer.encode(
        [document.text for _, document in documents], [document.prompt for _, document in documents]
    )
    for (origin, document), tokens in zip(documents, encoded, strict=True):
        if isinstance(tokens, PoisonError):
            settled.append((origin, dead_letter(tokens)))
        elif (refused := refusal(tokens, reject_overflow=reject_overflow)) is not None:
            settled.append((origin, dead_letter(refused)))
        else:
            texts.append(WaitingText(origin, document, tokens))
    return texts, settled


def _found(record: Record, decoder: Decoder) -> type_found:
    if record.value is None and record.key is not None:
        return Tombstone()
    try:
        return decoder.decode(record)
    except PoisonError as error:
        return error


def refusal(tokens: Tokens, *, reject_overflow: bool) -> PoisonError | None:
    """Why a text cannot be encoded, seen in its tokens; None: it can."""
    if tokens.truncated and reject_overflow:
        message = f"the text has {tokens.total} tokens or more, the limit is {len(tokens.ids)}"
        return PoisonError("tokenize", "too_long", message)
    if len(tokens.ids) == 0:
        message = "the model's tokenizer makes no token of the text, and adds none of its own"
        return PoisonError("tokenize", "no_tokens", message)
    return None


def embedding(document: Document, tokens: Tokens, vector: type_vectors, *, sound: bool) -> Embedding | PoisonError:
    """A text's embedding, or why its vector is none; ``sound`` as :func:`is_sound` says."""
    if not sound:
        return PoisonError("encode", "not_finite", "the model gave no vector of finite, unit length for the text")
    return Embedding(document, vector, len(tokens.ids), tokens.truncated)


def is_sound(vectors: type_vectors) -> npt.NDArray[np.bool_]:
    """Which rows of float32 [n, dim] are finite and of unit length: bool [n]."""
    norms = np.sqrt(np.einsum("nd,nd->n", vectors, vectors))
    with np.errstate(invalid="ignore"):
        found: npt.NDArray[np.bool_] = np.abs(norms - 1.0) < NORM_TOLERANCE
    return found


def answered(rows: Sequence[Sequence[WaitingText]], answer: Answer) -> type_settled:
    """The outcomes of a call's texts; those of one row have one vector, or are refused for one reason."""
    sound = is_sound(answer.vectors)
    settled: type_settled = []
    for number, texts in enumerate(rows):
        refused, vector, good = answer.refused.get(number), answer.vectors[number], bool(sound[number])
        settled += [(text.origin, refused or _outcome(text, vector, sound=good)) for text in texts]
    return settled


def _outcome(text: WaitingText, vector: type_vectors, *, sound: bool) -> Outcome:
    found = embedding(text.document, text.tokens, vector, sound=sound)
    return dead_letter(found) if isinstance(found, PoisonError) else found


def dead_letter(error: PoisonError) -> DeadLetter:
    """The outcome of a record that is refused."""
    return DeadLetter(error.stage, error.reason, error.message)
