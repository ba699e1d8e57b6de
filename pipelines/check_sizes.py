"""The part of ``check`` that looks at how large records get, and what topics take.

Comes in: settings, the model, and the topics that there are. Goes out: findings, and the size of a record that is made up. Never
here: a connection.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from pipelines.finding import Finding
from pipelines.model import Model
from workers.codecs import renderer_for, whole_for
from workers.kafka_topics import Topic
from workers.records import Chunk, Document, Embedding, Origin, Record
from workers.settings import KafkaOutput, Settings

# Room for key, headers and included fields beside the vector, which only the records know.
OTHER_BYTES = 1024
# What a dead letter adds to its source record: headers with origin, stage, class and message.
DEAD_LETTER_BYTES = 4096


def examine_sizes(
    settings: Settings, model: Model, sources: Sequence[str], topics: Mapping[str, Topic]
) -> Iterator[Finding]:
    """Whether each output's topic takes its vectors, and the dead-letter topic all that the source allows."""
    for output in settings.outputs:
        if not isinstance(output, KafkaOutput) or output.topic not in topics:
            continue
        size, most = record_size(model, output), topics[output.topic].max_message_bytes
        what = f"a vector of {model.dim(output)} dimensions as {output.format} takes about {size:,} bytes"
        if output.together:
            what = f"a document of one chunk: {what}"
        if size + OTHER_BYTES > most:
            yield Finding(
                output.topic,
                f"{what}, and topic {output.topic} takes records up to {most:,} (max.message.bytes): raise it, or choose "
                "format: binary, a smaller dim or precision",
            )
        elif output.together:
            room = 1 + (most - OTHER_BYTES - size) // (record_size(model, output, chunks=2) - size)
            yield Finding(
                f"{what}; topic {output.topic} takes {most:,}: about {room:,} chunks, and one with more is a dead letter"
            )
        else:
            yield Finding(f"{what}; topic {output.topic} takes {most:,}")
    dead = topics.get(settings.dead_letter.topic)
    largest = max((topics[name].max_message_bytes for name in sources if name in topics), default=None)
    if dead is not None and largest is not None and dead.max_message_bytes < largest + DEAD_LETTER_BYTES:
        yield Finding(
            dead.name,
            f"topic {dead.name} takes records up to {dead.max_message_bytes:,} bytes (max.message.bytes), and a dead letter "
            f"may take {largest + DEAD_LETTER_BYTES:,}: what the source allows, and its headers; raise it",
            may_never_happen=True,
        )


def record_size(model: Model, output: KafkaOutput, *, chunks: int = 1) -> int:
    """Bytes of an output record without key, headers and included fields; ``chunks``: that it has together."""
    dim = model.dim(output)
    # A made-up vector, its components as long as they come: with a sign, or where there is none, above the middle.
    sign = 1 if output.precision.startswith("u") else -1
    sample = sign * np.abs(np.random.default_rng(0).normal(size=(1, dim))).astype(np.float32)
    vector, scale = next(model.projection(output)(sample).rows())
    chunked = model.settings.model.chunked
    record = Record(Origin("check", 0, 0, 0), b"", b"", 0)
    chunk, text = None, ""
    if chunked:
        # A token has some four characters.
        text = "x" * (4 * model.text_tokens)
        chunk = Chunk(0, 1, 0, len(text))
    embedding = Embedding(Document("check", text), sample[0], model.text_tokens, False, chunk)
    if (whole := whole_for(output, dim=dim, model=model.name, fingerprint="0" * 16)) is not None:
        return whole.render_whole(record, [embedding] * chunks, [(vector, scale)] * chunks).size
    renderer = renderer_for(output, dim=dim, model=model.name, fingerprint="0" * 16, chunked=chunked)
    return renderer.render(record, embedding, vector, scale).size
