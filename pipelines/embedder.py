"""The model in this process, for the commands that need neither Kafka nor Ray.

Comes in: a window of texts. Goes out: for each its embedding, or why it has none. Never here: an output's dim or precision.
"""

from __future__ import annotations

from collections.abc import Sequence

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
        rows = list(tokens)
        vectors = self._encoder.encode(Batch.of([tokens[row].ids for row in rows]), dim)
        for row, vector, sound in zip(rows, vectors, is_sound(vectors), strict=True):
            document = Document(window[row].id, window[row].text)
            outcomes[row] = embedding(document, tokens[row], vector, sound=bool(sound))
        return [outcomes[row] for row in range(len(window))]
