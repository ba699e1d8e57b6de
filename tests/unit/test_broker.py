"""The local broker's settings. No broker runs here: ``tests/integration/test_broker.py`` has them run."""

from __future__ import annotations

from pathlib import Path

from pipelines import broker


def test_extra_properties_and_listeners(tmp_path: Path) -> None:
    made = broker.Broker(
        tmp_path, extra={"default.replication.factor": "3", "a": "b"}, listeners={"SASL": "SASL_PLAINTEXT"}
    )
    made._ports = {"PLAINTEXT": 1, "SASL": 2, "CONTROLLER": 3}
    properties = made._properties(tmp_path)
    assert properties["default.replication.factor"] == "3"
    assert properties["a"] == "b"
    assert properties["advertised.listeners"] == "PLAINTEXT://127.0.0.1:1,SASL://127.0.0.1:2"
    assert (
        properties["listener.security.protocol.map"] == "PLAINTEXT:PLAINTEXT,SASL:SASL_PLAINTEXT,CONTROLLER:PLAINTEXT"
    )
    assert made.address("SASL") == "127.0.0.1:2"


def test_a_given_broker_is_used_and_not_started() -> None:
    with broker.local_broker("kafka.example:9092") as bootstrap_servers:
        assert bootstrap_servers == "kafka.example:9092"
