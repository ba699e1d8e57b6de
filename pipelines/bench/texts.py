"""The texts that every engine gets.

Comes in: a count. Goes out: real texts of mixed length, the same on every machine with one version of Python; or made-up
ones for a made-up model. Never here: files.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence

import numpy as np

from pipelines.demo_corpus import documents

SHORTEST_WORDS, MEAN_WORDS, LONGEST_WORDS = 6, 126, 510  # and two special tokens each


def corpus(count: int) -> list[str]:
    """The demo's documents, title and body; from the first again where ``count`` is more than there are."""
    texts = [f"{doc.title}: {doc.body}" for doc in documents(count)]
    return list(itertools.islice(itertools.cycle(texts), count))


def random_words(count: int, words: Sequence[str], seed: int = 0) -> list[str]:
    """Texts of 6 to 510 words, 126 on average, most of them short, as documents are (a gamma distribution of shape 2)."""
    random = np.random.default_rng(seed)
    lengths = random.gamma(2.0, MEAN_WORDS / 2.0, count)
    lengths = np.clip(np.rint(lengths), SHORTEST_WORDS, LONGEST_WORDS).astype(int)
    return [" ".join(words[index] for index in random.integers(0, len(words), length)) for length in lengths]


def digest(texts: Sequence[str]) -> str:
    """Says whether two runs had the same texts."""
    whole = hashlib.sha256()
    for text in texts:
        whole.update(text.encode() + b"\0")
    return whole.hexdigest()[:16]
