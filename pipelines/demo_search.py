"""The demo's search: which vectors are nearest to a question's, by their cosine.

Comes in: vectors that came out of Kafka, and questions' vectors. Goes out: lines on standard output. Never here: an index; a few
thousand vectors are looked at one by one, as the command ``search`` does.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipelines.demo_outcomes import Outcomes
from pipelines.search.questions import cosines
from workers.records import type_vectors

ANSWERS = 3


def nearest(vectors: type_vectors, query: type_vectors, k: int) -> list[tuple[int, float]]:
    """The ``k`` rows of ``vectors`` [n, d] with the largest cosine to ``query`` [d], best first, with that cosine."""
    scores = cosines(vectors, query[np.newaxis])[:, 0]
    return [(int(row), float(scores[row])) for row in np.argsort(-scores, kind="stable")[:k]]


def answer(outcomes: Outcomes, questions: Sequence[str], queries: type_vectors) -> None:
    """Print the nearest documents of each question, whose vectors ``queries`` [questions, dim] are."""
    ids = list(outcomes.vectors)
    if not ids:
        return
    vectors = np.array([outcomes.vectors[name] for name in ids], np.float32)
    for question, query in zip(questions, queries, strict=True):
        print(f"\n   {question}", flush=True)
        for row, score in nearest(vectors, query, ANSWERS):
            print(f"      {score:.2f}  {outcomes.titles[ids[row]]}", flush=True)
    print()
