"""The pipeline around a real encoder, beside the encoder alone.

Comes in: a stage. Goes out: tokens per second of both, and their ratio, round by round. Never here: the encoder.
"""

from __future__ import annotations

from pipelines.bench.pipeline.children import pipeline, run_loop
from pipelines.bench.pipeline.part import Part, spread
from pipelines.bench.pipeline.stage import TOKENS, Stage

# Before this share of the records is out, the pipeline fills.
WARM = 0.2


def measure(stage: Stage, *, records: int, rounds: int) -> Part:
    """The encoder alone, then Kafka → Ray → encoder → Kafka, in turn; one replica on one core in both.

    Raises:
        EnvironmentFault: one of them fails.
    """
    source = "whole-in"
    stage.fill(source, records)
    alone: list[float] = []
    whole: list[float] = []
    for number in range(rounds):
        name = f"whole-{number}"
        plain = stage.settings(
            name, source, pool={"min": 1, "max": 1, "cpus_per_replica": 1}, readers={"count": 1, "cpus": 0.5}
        )
        figures = run_loop(
            {"loop": "encoder", "records": records, "texts": stage.texts, "threads": 1, "settings": plain}
        )
        alone.append(TOKENS * figures["records"] / figures["wall_s"])
        with pipeline(stage.write(name, plain)), stage.progress(name) as progress:
            # From one commit to another: each says when so many records were out.
            begin = progress.reach(int(WARM * records))
            first = progress.now()
            end = progress.reach(records)
        whole.append(TOKENS * (records - first) / (end - begin))
    shares = [100 * ours / theirs for ours, theirs in zip(whole, alone, strict=True)]
    return Part(
        "whole",
        f"The whole pipeline with {stage.opened.name}",
        ("what runs", "tokens/s", "of the encoder alone"),
        [
            ("the encoder alone, on one core", spread(alone), "100 %"),
            ("Kafka → Ray → the same encoder on one core → Kafka", spread(whole), f"{spread(shares, 1)} %"),
        ],
        (
            f"{records:,} JSON records with texts of {TOKENS} tokens, exactly once; medians of {rounds} rounds in turn (from least "
            "to most). Broker, reader, Serve and measuring share the machine's other cores.",
        ),
        {"records": records, "tokens_per_s": {"alone": alone, "whole": whole}, "percent": shares},
    )
