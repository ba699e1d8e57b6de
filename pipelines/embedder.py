"""The model in this process, for the commands that need neither Kafka nor Ray.

Comes in: a window of texts. Goes out: for each its embedding, or why it has none. Never here: an output's dim or precision.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipelines.model import Model
from pipelines.texts import Text
from workers.errors import PoisonError
from workers.records import Batch, Document, Embedding


class Embedder:
    """Tokenizer and encoder, loaded once. For one thread."""

    def __init__(self, model: Model) -> None:
        """Load the weights, and test them.

        Raises:
            EnvironmentFault: the model does not work here.
        """
        self._max_tokens = model.max_tokens
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
        tokens = dict(zip(rows, encoded, strict=True))
        for row, found in tokens.items():
            if len(found.ids) == 0:
                message = "the model's tokenizer makes no token of the text, and adds none of its own"
                outcomes[row] = PoisonError("tokenize", "no_tokens", message)
            if self._reject and found.truncated:
                message = f"the text has {found.total} tokens or more, the limit is {self._max_tokens}"
                outcomes[row] = PoisonError("tokenize", "too_long", message)
        rows = [row for row in rows if row not in outcomes]
        vectors = self._encoder.encode(Batch.of([tokens[row].ids for row in rows]), dim)
        for row, vector in zip(rows, vectors, strict=True):
            if np.isfinite(vector).all():
                document, found = Document(window[row].id, window[row].text), tokens[row]
                outcomes[row] = Embedding(document, vector, len(found.ids), found.truncated)
            else:
                outcomes[row] = PoisonError("encode", "not_finite", "the model gave no finite vector for the text")
        return [outcomes[row] for row in range(len(window))]
