"""The command ``check``: what would fail, found before it does. ``run`` looks at the same things before it starts.

Comes in: settings. Goes out: a line for each thing that is right, a sentence for each that is wrong. Never here: a change
to a topic or a group.
"""

from __future__ import annotations

import datetime
import sys
from collections.abc import Iterator

from pipelines import guard, identity
from pipelines.check_chunks import examine_chunks
from pipelines.check_deletes import examine_deletes
from pipelines.check_registry import examine_registry
from pipelines.check_sizes import examine_sizes
from pipelines.check_state import examine_state
from pipelines.check_traces import examine_traces
from pipelines.finding import Finding
from pipelines.model import Model
from pipelines.outputs import chain, position_key
from workers import kafka_client, kafka_rights, kafka_topics, log
from workers.codecs import decoder_for
from workers.errors import EnvironmentFault, RetryableError, StreamEmbedderError
from workers.kafka_security import tls
from workers.kafka_topics import Topic
from workers.records import TopicPartition
from workers.settings import KafkaOutput, ParquetOutput, Settings

LOG = log.get(__name__)

# A client certificate that ends so soon is spoken of.
SOON = datetime.timedelta(days=7)


def run_check(settings: Settings) -> int:
    """Look at everything and print it; 0 when nothing is wrong, 1 otherwise. What may never happen is a warning.

    Raises:
        SettingsError: the settings do not suit the model.
    """
    wrong = 0
    for finding in examine(settings):
        if finding.wrong is None:
            print(f"ok     {finding.subject}", flush=True)
        elif finding.may_never_happen:
            print(f"warn   {finding.wrong}", file=sys.stderr, flush=True)
        else:
            wrong += 1
            print(f"wrong  {finding.wrong}", file=sys.stderr, flush=True)
    return 1 if wrong else 0


def require_sound(settings: Settings) -> None:
    """Raise what :func:`run_check` would print as wrong.

    Raises:
        EnvironmentFault: one line for each thing that is wrong.
        SettingsError: the settings do not suit the model.
    """
    wrong = []
    for finding in examine(settings):
        if finding.wrong is not None and finding.may_never_happen:
            LOG.warning(finding.wrong)
        elif finding.wrong is not None:
            wrong.append(finding.wrong)
    if wrong:
        raise EnvironmentFault("\n".join(wrong))


def examine(settings: Settings) -> Iterator[Finding]:
    """Look at schemas, model, brokers, topics, rights, sizes and fingerprints, in that order; each as far as others allow.

    Before them all at traces, where they are on, and after schemas at ids.
    """
    yield from examine_traces(settings)
    try:
        decoder_for(settings)
    except EnvironmentFault as error:
        yield Finding("schema", str(error))
    yield from examine_deletes(settings)
    model = None
    try:
        model = Model.open(settings)
        yield Finding(
            f"model {model.name}: {model.layout.dim} dimensions, {model.max_tokens} tokens, in {model.folder}"
            + (f"; chunks of {model.text_tokens} tokens" if settings.model.chunked else "")
        )
    except EnvironmentFault as error:
        yield Finding("model", str(error))
    if model is not None:
        try:
            for output in settings.outputs:
                model.projection(output)
        except EnvironmentFault as error:
            yield Finding("ranges", str(error))
            model = None
    yield from examine_registry(settings, model)
    try:
        with kafka_client.admin(settings.kafka) as client:
            yield Finding(f"broker {settings.kafka.bootstrap_servers}")
            sources = kafka_topics.source_topics(client, settings.source)
            written = settings.written_topics
            topics = kafka_topics.describe_topics(client, dict.fromkeys([*sources, *written]))
            missing = [name for name in dict.fromkeys([*sources, *written]) if name not in topics]
            hidden = kafka_topics.hidden_topics(client, missing)
    except (EnvironmentFault, RetryableError) as error:
        yield Finding("broker", str(error))
        return
    yield from _certificate(settings)
    try:
        kafka_rights.require_group(settings.kafka, settings.source.group)
        yield Finding(f"group {settings.source.group}")
    except (EnvironmentFault, RetryableError) as error:
        yield Finding("group", str(error))
    yield from _present(settings, sources, written, topics, hidden)
    yield from examine_chunks(settings, sources, topics)
    yield from _rights(settings, sources, written, topics)
    yield from examine_state(settings, sources, topics)
    if model is not None:
        yield from examine_sizes(settings, model, sources, topics)
    if all(name in topics for name in written):
        yield from _transactions(settings)
        if model is not None and all(_allows(topics[name], "Read") for name in settings.output_topics):
            yield _fingerprints(settings, model)
    if model is not None:
        yield from _chains(settings, model, topics, sources)


def _certificate(settings: Settings) -> Iterator[Finding]:
    kafka = settings.kafka
    if kafka.ssl_hostname_unchecked_because is not None:
        yield Finding(
            f"brokers' names are not checked against their certificates: {kafka.ssl_hostname_unchecked_because}"
        )
    ends = tls.client_certificate_ends(kafka)
    if ends is None:
        return
    left = ends - datetime.datetime.now(datetime.UTC)
    if left < SOON:
        yield Finding(
            "client certificate",
            f"this client's certificate expires in {left.total_seconds() / 3600:.0f} hours, on {ends:%Y-%m-%d %H:%M} UTC: "
            "renew it",
            may_never_happen=True,
        )
    else:
        yield Finding(f"client certificate, valid until {ends:%Y-%m-%d}")


def _present(
    settings: Settings, sources: list[str], written: list[str], topics: dict[str, Topic], hidden: set[str]
) -> Iterator[Finding]:
    who = settings.kafka.who
    if not sources:
        yield Finding("source", f"source.pattern {settings.source.pattern} matches no topic that {who} may see")
    for name in dict.fromkeys([*sources, *written]):
        if name in hidden:
            operation = "Write" if name in written else "Read"
            yield Finding(name, f"{who} may not see topic {name}, if there is one: {_grant(operation, name)}")
        elif name in topics:
            unknown = "" if topics[name].configs_known else "; its limits are hidden, and taken for Kafka's defaults"
            aging = _aging(topics[name]) if name in written else ""
            yield Finding(f"topic {name}: {topics[name].partitions} partitions{unknown}{aging}")
        else:
            yield Finding(
                name,
                f"topic {name} does not exist, or {who} may not see it: create it (kafka-topics.sh --create --topic {name}), "
                "or correct the settings",
            )


def _rights(settings: Settings, sources: list[str], written: list[str], topics: dict[str, Topic]) -> Iterator[Finding]:
    looked_at = [] if settings.delivery.allow_fingerprint_change else settings.output_topics
    for names, operation, what, otherwise in (
        (sources, "Read", "read topic {}", ""),
        (written, "Write", "write to topic {}", ""),
        ([settings.state.topic] if settings.state.topic else [], "Read", "read topic {}, its own state", ""),
        (
            looked_at,
            "Read",
            "read topic {}, whose latest vectors say which model made them",
            ", or set delivery.allow_fingerprint_change: true",
        ),
    ):
        for name in dict.fromkeys(names):
            if name in topics and not _allows(topics[name], operation):
                what_for = what.format(name)
                yield Finding(name, f"{settings.kafka.who} may not {what_for}: {_grant(operation, name)}{otherwise}")


def _allows(topic: Topic, operation: str) -> bool:
    """Whether a topic's rights hold one; a broker too old to say which there are says nothing."""
    return not topic.operations or operation.upper() in topic.operations


def _grant(operation: str, topic: str) -> str:
    return f"grant {operation} on it (kafka-acls.sh --add --operation {operation} --topic {topic})"


def _aging(topic: Topic) -> str:
    """What a topic that deletes by age makes of records that keep an old source's timestamps."""
    if topic.retention_ms < 0 or topic.log_append_time:
        return ""
    days = topic.retention_ms / 86_400_000
    return f"; it deletes records {days:g} days after the timestamp of their source (retention.ms)"


def _transactions(settings: Settings) -> Iterator[Finding]:
    if settings.delivery.guarantee != "exactly_once":
        return
    ids = [identity.slot(settings, number) for number in range(settings.readers.count)]
    try:
        kafka_rights.require_transactions(settings.kafka, ids)
        yield Finding("transactions")
    except (EnvironmentFault, RetryableError) as error:
        yield Finding("transactions", str(error))


def _fingerprints(settings: Settings, model: Model) -> Finding:
    wanted = {
        output.topic: model.fingerprint_of(model.projection(output))
        for output in settings.outputs
        if isinstance(output, KafkaOutput)
    }
    try:
        guard.refuse_other_fingerprints(settings, wanted)
    except (EnvironmentFault, RetryableError) as error:
        return Finding("fingerprint", str(error))
    return Finding("fingerprint " + ", ".join(f"{found} on {topic}" for topic, found in wanted.items()))


def _chains(settings: Settings, model: Model, topics: dict[str, Topic], sources: list[str]) -> Iterator[Finding]:
    """Whether each store lets us put only where nothing is, and whose the chains are that are there."""
    partitions = [TopicPartition(name, n) for name in sources if name in topics for n in range(topics[name].partitions)]
    for output in settings.outputs:
        if not isinstance(output, ParquetOutput):
            continue
        found = chain(model, output)
        try:
            found.probe()
            yield Finding(f"{output.uri} takes files")
            with kafka_client.admin(settings.kafka) as client:
                committed = kafka_topics.committed_positions(client, settings.source.group)
            key = position_key(model, output)
            for partition in partitions:
                at = committed.get(partition)
                found.find(partition, None if at is None else at.outputs.get(key))
        except StreamEmbedderError as error:
            yield Finding(output.uri, str(error))
        else:
            yield Finding(f"chains of {len(partitions)} partitions below {output.uri}")
