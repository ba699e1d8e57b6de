"""The model in this process, for the commands that need neither Kafka nor Ray.

Comes in: a window of texts. Goes out: for each its embedding, or why it has none. Never here: an output's dim or precision.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipelines.model import Model
from pipelines.texts import Text
from workers.errors import PoisonError
from workers.outcomes import embedding, is_sound, refusal
from workers.records import Batch, Document, Embedding, Tokens


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

    def embed(self, window: Sequence[Text], dim: int) -> list[Embedding | PoisonError]:
        """What becomes of each text, in their order; vectors have ``dim`` dimensions."""
        outcomes: dict[int, Embedding | PoisonError] = {
            row: text.refused for row, text in enumerate(window) if text.refused is not None
        }
        rows = [row for row in range(len(window)) if row not in outcomes]
        encoded = self._tokenizer.encode([window[row].text for row in rows], [window[row].prompt for row in rows])
        tokens: dict[int, Tokens] = {}
        for row, found in zip(rows, encoded, strict=True):
            if isinstance(found, PoisonError):
                outcomes[row] = found
            elif (error := refusal(found, reject_overflow=self._reject)) is not None:
                outcomes[row] = error
            else:
                tokens[row] = found
        # By the bytes of their ids: equal texts are encoded once.
        places: dict[bytes, int] = {}
        alike = {row: places.setdefault(found.ids.tobytes(), len(places)) for row, found in tokens.items()}
        distinct = [np.frombuffer(ids, np.int32) for ids in places]
        vectors = self._encoder.encode(Batch.of(distinct), dim)
        sound = is_sound(vectors)
        for row, place in alike.items():
            document = Document(window[row].id, window[row].text)
            outcomes[row] = embedding(document, tokens[row], vectors[place], sound=bool(sound[place]))
        return [outcomes[row] for row in range(len(window))]
