"""What a plan says, in figures. Pure.

Comes in: a sample, what became of it, and a rate. Goes out: estimates for the whole. Never here: words.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pipelines.plan.blocks import Sampled
from pipelines.plan.estimate import Estimate, quantile, together
from pipelines.plan.outcomes import Counts, OutputBytes, Profile
from pipelines.plan.rate import Rate
from workers.settings import Settings


@dataclass(frozen=True, slots=True)
class Source:
    """A topic, or all files of a format: how much of it is meant, as far as that is known without reading it.

    ``units`` are ``what`` says: offsets, or bytes.
    """

    name: str
    parts: int
    units: int
    what: str
    compacted: bool = False


@dataclass(frozen=True, slots=True)
class Cost:
    """What the encoders take, at a rate: ``gpu_hours`` None where replicas have no GPU, or that is not known."""

    rate: Rate
    replicas: int
    replica_hours: Estimate
    hours: Estimate
    gpu_hours: Estimate | None
    price: Estimate | None


@dataclass(frozen=True, slots=True)
class Plan:
    """All of it. Totals are of the whole input, and 0 where ``waiting`` is False: nothing of what is there is to be read.

    ``reasons``, ``equal`` and ``sampled`` count records of the sample.
    """

    job: str
    model: str
    sources: Sequence[Source]
    broken: Sequence[str]
    waiting: bool
    whole: bool
    from_the_front: bool
    blocks: int
    sampled: int
    texts: int
    records: Estimate
    bytes: Estimate
    embedded: Estimate
    tombstones: Estimate
    refused: Estimate
    reasons: Mapping[str, int]
    tokens: Estimate
    tokens_mean: float
    tokens_p50: float
    tokens_p99: float
    truncated: float
    equal: int
    outputs: Sequence[OutputBytes]
    cost: Cost | None

    def output_total(self, output: OutputBytes) -> Estimate:
        """The bytes that an output would take: of embeddings, and of deletions."""
        return (self.embedded + self.tombstones) * output.each


def figures(
    settings: Settings,
    *,
    job: str,
    model: str,
    sources: Sequence[Source],
    broken: Sequence[str],
    waiting: bool,
    sampled: Sequence[Sampled],
    found: Profile,
    rate: Rate | None,
    price: float | None,
    file_bytes: int | None = None,
) -> Plan:
    """Put the whole together from its sample; ``file_bytes``: of files, whose size is known."""
    strata = [each.stratum for each in sampled]

    def total(of: Callable[[Counts], float]) -> Estimate:
        if not waiting:
            return Estimate(0.0)
        return together(
            stratum.total([of(counts) for counts in each]) for stratum, each in zip(strata, found.counts, strict=True)
        )

    every = [counts for each in found.counts for counts in each]
    texts = sum(counts.texts for counts in every)
    weights = sum(weight for _, weight in found.lengths)
    tokens = total(lambda counts: counts.tokens)
    cut = sum(
        stratum.weight * counts.truncated for stratum, each in zip(strata, found.counts, strict=True) for counts in each
    )
    return Plan(
        job=job,
        model=model,
        sources=sources,
        broken=broken,
        waiting=waiting,
        whole=all(each.whole for each in sampled),
        from_the_front=any(each.from_the_front for each in sampled),
        blocks=len(every),
        sampled=sum(each.records for each in sampled),
        texts=texts,
        records=total(lambda counts: counts.records),
        bytes=total(lambda counts: counts.bytes) if file_bytes is None else Estimate(file_bytes),
        embedded=total(lambda counts: counts.embedded),
        tombstones=total(lambda counts: counts.tombstones),
        refused=total(lambda counts: counts.refused),
        reasons=dict(found.reasons.most_common()),
        tokens=tokens,
        tokens_mean=sum(value * weight for value, weight in found.lengths) / weights if weights else 0.0,
        tokens_p50=quantile(found.lengths, 0.5),
        tokens_p99=quantile(found.lengths, 0.99),
        truncated=cut / weights if weights else 0.0,
        equal=found.equal,
        outputs=found.outputs,
        cost=None if rate is None else cost_of(settings, tokens, rate, price),
    )


def cost_of(settings: Settings, tokens: Estimate, rate: Rate, price: float | None) -> Cost:
    """``price``: of an hour of one replica."""
    pool = settings.pool
    hours = tokens * (1 / rate.tokens_per_s / 3600)
    gpus = pool.gpus_per_replica if pool.gpus_per_replica is not None else float(bool(rate.cuda))
    return Cost(
        rate,
        pool.max,
        hours,
        hours * (1 / pool.max),
        hours * gpus if gpus else None,
        None if price is None else hours * price,
    )
