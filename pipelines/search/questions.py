"""Questions as vectors, for whoever searches vectors of documents.

Comes in: settings and questions. Goes out: a vector for each; cosines. Never here: where the documents' vectors are.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pipelines.model import Model
from workers.codecs import prompt_template
from workers.errors import SettingsError
from workers.records import Batch, type_vectors
from workers.settings import Settings

QUERY = "query"


def for_questions(settings: Settings, prompt_text: str | None = None) -> Settings:
    """The settings that embed a question: with ``prompt_text``, else the model's own prompt for queries, where it has one.

    Raises:
        EnvironmentFault, SettingsError: see :meth:`pipelines.model.Model.open`.
        SettingsError: ``prompt_text`` has fields.
    """
    if prompt_text is None and QUERY not in Model.open(settings).layout.prompts:
        return settings
    asked = {"prompt": QUERY if prompt_text is None else None, "prompt_text": prompt_text}
    found = settings.model_copy(update={"model": settings.model.model_copy(update=asked)})
    if (template := prompt_template(found.model)) is not None:
        raise SettingsError(
            f"the prompt of a question has the field {template.fields[0]}, and a question has none: write a brace that is "
            "meant twice"
        )
    return found


def embed_questions(settings: Settings, questions: Sequence[str], prompt_text: str | None = None) -> type_vectors:
    """Unit vectors of the questions, float32 [questions, dim], all of the model's dims; arguments and errors as above.

    Raises:
        PoisonError: the model's tokenizer makes nothing of a question.
    """
    model = Model.open(for_questions(settings, prompt_text))
    return model.encoder().encode(Batch.of(model.tokenizer().ids(questions)))


def cosines(vectors: type_vectors, questions: type_vectors) -> npt.NDArray[np.float32]:
    """The cosine of each of ``vectors`` [n, d] with each of ``questions`` [q, d], float32 [n, q]; 0 for one that is zero."""
    tiny = np.finfo(np.float32).tiny
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True) * np.linalg.norm(questions, axis=1)
    return np.asarray((vectors @ questions.T) / np.maximum(lengths, tiny), np.float32)
