"""What a group and its transactions are allowed to do, asked without doing it.

Comes in: an admin client, or the settings to get one. Goes out: nothing, or a sentence with the right to grant. Never here: a
change: each question is a request that the broker checks for rights first, and then finds to be about nobody.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from kafka import KafkaAdminClient
from kafka import errors as kafka_errors
from kafka.protocol.consumer.group import HeartbeatRequest
from kafka.protocol.metadata import CoordinatorType
from kafka.protocol.producer.transaction import EndTxnRequest

from workers.deadline import Deadline
from workers.errors import EnvironmentFault
from workers.kafka_client import admin
from workers.settings import KafkaSettings

# A producer id that no broker has given to anybody yet.
_NOBODY = 2**62
_MAY_PASS = (
    kafka_errors.CoordinatorNotAvailableError,
    kafka_errors.CoordinatorLoadInProgressError,
    kafka_errors.NotCoordinatorError,
    kafka_errors.NodeNotReadyError,
)


def require_group(kafka: KafkaSettings, group: str) -> None:
    """See whether we may be a member of a consumer group and commit its offsets.

    Raises:
        EnvironmentFault: we may not.
        RetryableError: its coordinator does not answer.
    """

    def heartbeat() -> Any:
        return HeartbeatRequest(group_id=group, generation_id=-1, member_id="stream-embedder-check")

    with admin(kafka) as client:
        if not _may(client, group, CoordinatorType.GROUP, heartbeat):
            raise EnvironmentFault(
                f"{kafka.who} may not read as group {group}: grant Read on it (kafka-acls.sh --add --operation Read --group "
                f"{group})"
            )


def require_transactions(kafka: KafkaSettings, ids: Sequence[str]) -> None:
    """See whether we may write transactions under these ids.

    Raises:
        EnvironmentFault: we may not.
        RetryableError: no broker coordinates them.
    """
    with admin(kafka) as client:
        refused = [name for name in ids if not _may(client, name, CoordinatorType.TRANSACTION, _end_of(name))]
    if refused:
        stem = ids[0].rpartition(".")[0] + "."
        raise EnvironmentFault(
            f"{kafka.who} may not use transactional id {refused[0]}: grant Write on those that begin with {stem} "
            f"(kafka-acls.sh --add --operation Write --transactional-id {stem} --resource-pattern-type prefixed), or choose "
            "delivery.guarantee: at_least_once"
        )


def _end_of(transactional_id: str) -> Callable[[], Any]:
    return lambda: EndTxnRequest(
        transactional_id=transactional_id, producer_id=_NOBODY, producer_epoch=0, committed=False, max_version=3
    )


def _may(
    client: KafkaAdminClient, key: str, kind: CoordinatorType, request: Callable[[], Any], patience_s: float = 15.0
) -> bool:
    """Whether a coordinator lets us ask.

    A fresh broker needs a moment to make the topics that coordinators keep: that is waited for, ``patience_s`` at most.
    """

    async def ask() -> Any:
        coordinator = await client._find_coordinator_id(key, kind)
        return await client._manager.send(request(), node_id=coordinator)

    deadline = Deadline(patience_s)
    while True:
        try:
            answer = client._manager.run(ask)
            error = kafka_errors.for_code(answer.error_code)
            if issubclass(error, _MAY_PASS):
                raise error
        except kafka_errors.AuthorizationError:
            return False
        except _MAY_PASS:
            if deadline.expired:
                raise
            time.sleep(0.2)
        else:
            # Anything else, such as "unknown member", comes after the rights were found in order.
            return not issubclass(error, kafka_errors.AuthorizationError)
