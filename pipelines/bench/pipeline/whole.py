"""The pipeline around a real encoder, beside the encoder alone.

Comes in: a stage. Goes out: tokens per second of both, and their ratio, round by round; on a GPU for several numbers of readers,
of which one may be too few. Never here: the encoder.
"""

from __future__ import annotations

from pipelines.bench.pipeline.children import pipeline, run_loop
from pipelines.bench.pipeline.part import Part, spread
from pipelines.bench.pipeline.stage import TOKENS, Stage

# Before this share of the records is out, the pipeline fills.
WARM = 0.2
# No more than partitions.
READERS_CUDA = (1, 2, 4)


def measure(stage: Stage, *, records: int, rounds: int) -> Part:
    """The encoder alone, then Kafka → Ray → encoder → Kafka, in turn; one replica in both, on one core or on the GPU.

    Raises:
        EnvironmentFault: one of them fails.
    """
    from workers.encoder.encoder import has_cuda  # noqa: PLC0415 - heavy

    cuda = has_cuda()
    pool = {"min": 1, "max": 1, "cpus_per_replica": 1, "gpus_per_replica": int(cuda)}
    source = "whole-in"
    stage.fill(source, records)
    alone: list[float] = []
    counts = READERS_CUDA if cuda else (1,)
    whole: dict[int, list[float]] = {count: [] for count in counts}
    for number in range(rounds):
        plain = stage.settings(f"whole-{number}", source, pool=pool)
        job = {
            "loop": "encoder",
            "records": records,
            "texts": stage.texts,
            "threads": 1,
            "cuda": cuda,
            "settings": plain,
        }
        figures = run_loop(job)
        alone.append(TOKENS * figures["records"] / figures["wall_s"])
        for count in counts:
            name = f"whole-{number}-{count}"
            readers = {"count": count, "cpus": 1 if cuda else 0.5}
            plain = stage.settings(name, source, pool=pool, readers=readers)
            with pipeline(stage.write(name, plain)), stage.progress(name) as progress:
                # From one commit to another: each says when so many records were out.
                begin = progress.reach(int(WARM * records))
                first = progress.now()
                end = progress.reach(records)
            whole[count].append(TOKENS * (records - first) / (end - begin))
    place = "on the GPU" if cuda else "on one core"
    shares = {
        count: [100 * ours / theirs for ours, theirs in zip(whole[count], alone, strict=True)] for count in counts
    }
    return Part(
        "whole",
        f"The whole pipeline with {stage.name}",
        ("what runs", "tokens/s", "of the encoder alone"),
        [
            (f"the encoder alone, {place}", spread(alone), "100 %"),
            *(
                (
                    f"Kafka → {count} {'reader' if count == 1 else 'readers'} → the same encoder {place} → Kafka",
                    spread(whole[count]),
                    f"{spread(shares[count], 1)} %",
                )
                for count in counts
            ),
        ],
        (
            f"{records:,} JSON records with texts of {TOKENS} tokens, exactly once; medians of {rounds} rounds in turn (from least "
            "to most). Broker, readers, Serve and measuring share the machine's other cores.",
        ),
        {
            "records": records,
            "tokens_per_s": {"alone": alone, "whole": {str(count): whole[count] for count in counts}},
            "percent": {str(count): shares[count] for count in counts},
        },
    )
