"""The local broker keeps its promises: data outlive a crash, the address stays, nothing is left behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from kafka import KafkaProducer, TopicPartition

from pipelines.broker import Broker
from workers import kafka_client, kafka_topics
from workers.errors import EnvironmentFault
from workers.settings import KafkaSettings


def send(kafka: KafkaSettings, topic: str, value: bytes) -> None:
    producer = kafka_client.connect(KafkaProducer, kafka)
    try:
        producer.send(topic, value, partition=0).get(timeout=30)
    finally:
        producer.close()


def read(kafka: KafkaSettings, topic: str, count: int) -> list[bytes | None]:
    consumer = kafka_client.bare_consumer(kafka, auto_offset_reset="earliest")
    try:
        consumer.assign([TopicPartition(topic, 0)])
        values: list[bytes | None] = []
        end = time.monotonic() + 30
        while len(values) < count and time.monotonic() < end:
            values += [record.value for records in consumer.poll(500).values() for record in records]
        return values
    finally:
        consumer.close()


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return (
        "Z" not in Path(f"/proc/{pid}/stat").read_text().split(")")[-1].split()[0] if Path("/proc").exists() else True
    )


def gone(pid: int, seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not alive(pid):
            return True
        time.sleep(0.05)
    return False


def test_a_record_outlives_a_crash(own_broker: Broker) -> None:
    kafka_topics.create_topics(own_broker.settings, {"kept": 1})
    send(own_broker.settings, "kept", b"one")
    address, crashed = own_broker.bootstrap_servers, own_broker.pid

    own_broker.kill()
    assert not own_broker.running
    own_broker.start()

    assert own_broker.bootstrap_servers == address
    assert own_broker.pid != crashed
    send(own_broker.settings, "kept", b"two")
    assert read(own_broker.settings, "kept", 2) == [b"one", b"two"]


def test_a_paused_broker_answers_nobody_until_it_resumes(own_broker: Broker) -> None:
    own_broker.pause()
    host, port = own_broker.bootstrap_servers.split(":")
    with pytest.raises(TimeoutError), socket.create_connection((host, int(port)), timeout=1) as connection:
        connection.sendall(b"\x00\x00\x00\x0a\x00\x12\x00\x00\x00\x00\x00\x01\xff\xff")  # ApiVersions
        connection.recv(1)
    assert own_broker.running
    own_broker.resume()
    kafka_topics.create_topics(own_broker.settings, {"after": 1})


def test_stop_leaves_no_process_and_close_no_data() -> None:
    broker = Broker()
    broker.start()
    pid, data = broker.pid, broker.data_dir
    assert pid is not None
    assert data is not None

    broker.pause()  # it ends all the same
    broker.close()

    assert gone(pid)
    assert not data.exists()


def test_the_broker_dies_with_us(tmp_path: Path) -> None:
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom pipelines.broker import Broker\n"
        "b = Broker(Path(sys.argv[1]))\nb.start()\nprint(b.pid, flush=True)\ntime.sleep(600)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE)
    try:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert alive(pid)
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.communicate()
    assert gone(pid)


def test_a_port_that_is_taken_is_said(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(EnvironmentFault, match=f"port {port} is taken"):
            Broker(tmp_path, port).start()


@pytest.mark.parametrize("setting", [{"num.io.threads": "many"}, {"authorizer.class.name": "no.such.Class"}])
def test_a_broker_that_cannot_start_says_why(tmp_path: Path, setting: dict[str, str]) -> None:
    broker = Broker(tmp_path, extra=setting)
    with pytest.raises(EnvironmentFault, match=r"(?i)exception.*(num\.io\.threads|no\.such\.Class)"):
        broker.start()
    assert not broker.running


def test_rights_and_passwords(tmp_path: Path, unique_name: Callable[[], str]) -> None:
    login = "org.apache.kafka.common.security.plain.PlainLoginModule required"
    extra = {
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": "User:ANONYMOUS",
        "sasl.enabled.mechanisms": "PLAIN",
        "listener.name.sasl.plain.sasl.jaas.config": f'{login} user_app="right";',
    }
    with Broker(tmp_path, extra=extra, listeners={"SASL": "SASL_PLAINTEXT"}) as broker:
        topic = unique_name()
        kafka_topics.create_topics(broker.settings, {topic: 1})
        app = {
            "bootstrap_servers": broker.address("SASL"),
            "security_protocol": "SASL_PLAINTEXT",
            "sasl_mechanism": "PLAIN",
            "sasl_username": "app",
        }
        with kafka_client.admin(KafkaSettings.model_validate(app | {"sasl_password": "right"})) as client:
            assert kafka_topics.describe_topics(client, [topic]) == {}  # it is there, and not ours to see
        with (
            pytest.raises(EnvironmentFault, match="uthentication"),
            kafka_client.admin(KafkaSettings.model_validate(app | {"sasl_password": "wrong"})),
        ):
            pass


def test_the_command_says_where_it_listens_and_ends_in_order() -> None:
    port = free_port()
    command = subprocess.Popen(
        [sys.executable, "-m", "pipelines.broker", "--port", str(port)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert command.stdout is not None
        assert f"listens on 127.0.0.1:{port}; Ctrl-C stops it" in command.stdout.readline()
    finally:
        command.send_signal(signal.SIGINT)
        command.communicate(timeout=60)
    assert command.returncode == 0
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=1)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]
