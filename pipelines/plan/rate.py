"""How many tokens one replica embeds in a second: given, or measured here for a few seconds on the sample's own texts.

Comes in: a model, and texts as tokens. Goes out: a rate, and where it is from. Never here: several replicas.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.model import Model
from workers.errors import EnvironmentFault
from workers.records import Batch, type_ids
from workers.settings import Settings
from workers.text.batching import plan

SEED = 0


@dataclass(frozen=True, slots=True)
class Rate:
    """Tokens in a second of one replica; ``source`` says in words where that is from, ``cuda`` whether it has a GPU."""

    tokens_per_s: float
    source: str
    cuda: bool | None = None


def known_rate(settings: Settings, given: float | None) -> Rate | None:
    """What was said; None: nothing was."""
    if given is not None:
        return Rate(given, "--tokens-per-s")
    told = settings.scaling.tokens_per_s
    return None if told is None else Rate(told, "scaling.tokens_per_s")


def measure(model: Model, texts: Sequence[type_ids], seconds: float) -> Rate:
    """Encode the sample's texts, over and over, with the threads or the GPU that a replica has here.

    Raises:
        EnvironmentFault: the model does not work here, or there is no text to measure with.
        SettingsError: it does not suit the settings.
    """
    if not texts:
        raise EnvironmentFault("no text of the sample can be embedded, so there is nothing to measure with")
    pool = model.settings.pool
    encoder = model.encoder(threads=max(1, math.ceil(pool.cpus_per_replica)))
    encoder.warm_up()
    encoder.self_test()
    cuda = encoder.device.startswith("cuda")
    budget = pool.batch_tokens(cuda=cuda)
    passes = [
        Batch.of([texts[number] for number in numbers]) for numbers in plan(list(map(len, texts)), budget, budget)
    ]
    # They come by length: in any order, however early the clock stops.
    random.Random(SEED).shuffle(passes)  # noqa: S311 - no secret
    encoder.encode(passes[0], model.widest)
    tokens, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds or not tokens:
        batch = passes.pop()
        passes.insert(0, batch)
        encoder.encode(batch, model.widest)
        tokens += batch.tokens
    took = time.perf_counter() - started
    return Rate(tokens / took, f"measured here for {took:.0f} s on {encoder.device} in {encoder.dtype}", cuda)
