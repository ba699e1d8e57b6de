"""The model in this process, for the commands that need neither Kafka nor Ray.

Comes in: a window of texts. Goes out: for each its embedding, those of its chunks, or why it has none. Never here: an output's
dim or precision.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pipelines.model import Model
from pipelines.texts import Text
from workers.errors import PoisonError
from workers.outcomes import embedding, is_sound, refused_part, tokenised
from workers.records import Batch, Chunk, Chunked, Document, Embedding, Tokens, type_vectors


class Embedder:
    """Tokenizer and encoder, loaded once. For one thread."""

    def __init__(self, model: Model) -> None:
        """Load the weights, and test them.

        Raises:
            EnvironmentFault: the model does not work here.
        """
        self._reject = model.settings.model.overflow == "reject"
        self._tokenizer = model.tokenizer()
        self._encoder = model.encoder()
        self._encoder.self_test()

    def embed(self, window: Sequence[Text], dim: int) -> list[Embedding | Chunked | PoisonError]:
        """What becomes of each text, in their order; vectors have ``dim`` dimensions."""
        outcomes: dict[int, Embedding | Chunked | PoisonError] = {
            row: text.refused for row, text in enumerate(window) if text.refused is not None
        }
        documents = {
            row: Document(text.id, text.text, prompt=text.prompt)
            for row, text in enumerate(window)
            if row not in outcomes
        }
        tokens: dict[int, list[tuple[Chunk | None, Tokens]]] = {}
        for row, found in zip(documents, tokenised(list(documents.values()), self._tokenizer), strict=True):
            refused = found if isinstance(found, PoisonError) else refused_part(found, reject_overflow=self._reject)
            if refused is not None:
                outcomes[row] = refused
            elif not isinstance(found, PoisonError):
                tokens[row] = found
        # By the bytes of their ids: equal texts are encoded once.
        places: dict[bytes, int] = {}
        for parts in tokens.values():
            for _, part in parts:
                places.setdefault(part.ids.tobytes(), len(places))
        vectors = self._encoder.encode(Batch.of([np.frombuffer(ids, np.int32) for ids in places]), dim)
        sound = is_sound(vectors)
        for row, parts in tokens.items():
            numbers = [places[part.ids.tobytes()] for _, part in parts]
            outcomes[row] = _outcome(documents[row], parts, vectors[numbers], sound[numbers])
        return [outcomes[row] for row in range(len(window))]


def _outcome(
    document: Document,
    parts: Sequence[tuple[Chunk | None, Tokens]],
    vectors: type_vectors,
    sound: npt.NDArray[np.bool_],
) -> Embedding | Chunked | PoisonError:
    """The outcome of a text by its parts' vectors, float32 [parts, dim], and which of them are ``sound``."""
    made: list[Embedding] = []
    for (chunk, tokens), vector, good in zip(parts, vectors, sound, strict=True):
        found = embedding(document, tokens, vector, sound=bool(good), chunk=chunk)
        if isinstance(found, PoisonError):
            return found
        made.append(found)
    return made[0] if made[0].chunk is None else Chunked(tuple(made))
