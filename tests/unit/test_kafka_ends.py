"""What the client says of logs whose leaders come and go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pytest
from kafka import TopicPartition
from kafka import errors as kafka_errors

from workers import kafka_ends

HERE, AWAY = TopicPartition("t", 0), TopicPartition("t", 1)


class At(NamedTuple):
    offset: int


class Client:
    """As kafka-python answers: asked beside others, one without a leader is a KeyError, or like one without records."""

    def __init__(self) -> None:
        self.leaders = {HERE: 1, AWAY: -1}
        self.end = 7
        self.updates = 0
        self.found: dict[TopicPartition, At | None] = {}
        self._cluster = self

    def leader_for_partition(self, partition: TopicPartition) -> int | None:
        return self.leaders.get(partition)

    def request_update(self) -> None:
        self.updates += 1

    def end_offsets(self, partitions: Sequence[TopicPartition], timeout_ms: int | None) -> dict[TopicPartition, int]:
        return {tp: {HERE: self.end}[tp] if self.leaders[tp] < 0 else self.end for tp in partitions}

    def offsets_for_times(self, asked: Mapping[TopicPartition, int], _: int | None) -> dict[TopicPartition, Any]:
        self.end += 1  # somebody writes meanwhile
        if all(self.leaders[tp] < 0 for tp in asked):
            raise kafka_errors.KafkaTimeoutError("no leader")
        return {tp: None if self.leaders[tp] < 0 else self.found.get(tp) for tp in asked}


def test_who_has_a_leader_and_the_client_looks_again_for_the_others():
    client = Client()
    assert kafka_ends.led(client, [HERE, AWAY, TopicPartition("unknown", 0)]) == [HERE]
    assert client.updates == 1
    assert kafka_ends.led(client, [HERE]) == [HERE]
    assert client.updates == 1


def test_an_end_that_nobody_says_is_kafkas_error():
    client = Client()
    assert kafka_ends.ends(client, [HERE]) == {HERE: 7}
    assert kafka_ends.ends(client, []) == {}
    with pytest.raises(kafka_errors.LeaderNotAvailableError):
        kafka_ends.ends(client, [HERE, AWAY])


def test_no_record_since_a_moment_is_the_end_before_it_was_asked():
    assert kafka_ends.since(Client(), [HERE], 1) == {HERE: 7}


def test_a_leader_that_goes_between_two_questions_is_not_the_end():
    client = Client()
    client.leaders[AWAY] = 1
    client.found = {HERE: At(3), AWAY: At(4)}
    assert kafka_ends.since(client, [HERE, AWAY], 1) == {HERE: 3, AWAY: 4}
    offsets_for_times = client.offsets_for_times

    def goes(asked: Mapping[TopicPartition, int], timeout_ms: int | None) -> dict[TopicPartition, Any]:
        client.leaders[AWAY] = -1
        return offsets_for_times(asked, timeout_ms)

    client.offsets_for_times = goes  # type: ignore[method-assign]
    with pytest.raises(kafka_errors.KafkaTimeoutError):
        kafka_ends.since(client, [HERE, AWAY], 1)
