"""One way to reach Kafka: clients that say why they cannot connect.

Comes in: ``KafkaSettings``. Goes out: kafka-python clients. Never here: how we are let in (``kafka_security``), topics and
their facts (``kafka_topics``), the consumer loop (``sources``), or transactions (``sinks``).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer
from kafka import errors as kafka_errors
from kafka.serializer import Serializer

from workers import kafka_headers, kafka_security
from workers.errors import EnvironmentFault, RetryableError
from workers.kafka_security.network import Network
from workers.settings import KafkaSettings

type_client = TypeVar("type_client")


class _Null:
    """The type of :data:`NULL`."""


NULL = _Null()
"""A null value to send: kafka-python refuses a null key with a null value before it serialises, though Kafka allows it."""


class NullableSerializer(Serializer):  # type: ignore[misc]
    """Sends bytes as they are, and :data:`NULL` as null."""

    def serialize(self, topic: str, headers: object, data: object) -> object:
        """The bytes of a value, or None."""
        return None if data is NULL else data


def connect(client: Callable[..., type_client], kafka: KafkaSettings, **more: Any) -> type_client:
    """Make a kafka-python client.

    Raises:
        EnvironmentFault: no broker answers in ten seconds, or all refuse us; the sentence has the cause.
    """
    kafka_headers.keep_all_names()
    network = Network(kafka)
    arguments = {
        "bootstrap_servers": [server.strip() for server in kafka.bootstrap_servers.split(",")],
        "reconnect_backoff_max_ms": 1000,
        "bootstrap_timeout_ms": 10_000,
        "kafka_client": network.client,
        **kafka_security.arguments(kafka),
        **more,
    }
    try:
        return client(**arguments)
    except (kafka_errors.KafkaError, OSError, ValueError, RuntimeError, AssertionError) as error:
        network.close()
        raise EnvironmentFault(network.sentence or _unreachable(kafka, error)) from error


def _unreachable(kafka: KafkaSettings, error: BaseException) -> str:
    return f"no Kafka broker answers at {kafka.bootstrap_servers} ({sentence(error)})"


def sentence(error: BaseException) -> str:
    """The first line of what a Kafka error says, short enough for a sentence."""
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__


@contextlib.contextmanager
def admin(kafka: KafkaSettings) -> Iterator[KafkaAdminClient]:
    """An admin client that is closed afterwards; its Kafka errors become ours.

    Raises:
        EnvironmentFault: no connection, or a right is missing.
        RetryableError: anything that may pass.
    """
    client = connect(KafkaAdminClient, kafka, request_timeout_ms=10_000)
    try:
        yield client
    except kafka_errors.AuthorizationError as error:
        raise EnvironmentFault(f"Kafka at {kafka.bootstrap_servers} does not allow it: {sentence(error)}") from error
    except kafka_errors.KafkaError as error:
        raise RetryableError(f"Kafka at {kafka.bootstrap_servers}: {sentence(error)}") from error
    finally:
        client.close()


def bare_consumer(kafka: KafkaSettings, **more: Any) -> KafkaConsumer:
    """A consumer outside any group, read committed: to look at a topic. The caller closes it."""
    arguments = {"group_id": None, "isolation_level": "read_committed", "enable_auto_commit": False} | more
    return connect(KafkaConsumer, kafka, **arguments)


def finish_join(consumer: KafkaConsumer) -> None:
    """Before each poll of a group's member: have a join that ended just as the poll before did handed out.

    kafka-python 3.0.12 has forgotten by then why it joins, and would go on without its partitions for good.
    """
    coordinator = consumer._coordinator
    if coordinator.rejoining:
        coordinator.request_rejoin()


def bare_producer(kafka: KafkaSettings, **more: Any) -> KafkaProducer:
    """An idempotent producer without transactions. The caller closes it."""
    return connect(KafkaProducer, kafka, **({"value_serializer": NullableSerializer()} | more))
