"""``dead-letters list | show | replay`` on a real broker: what a user sees, and that each dead letter is sent once."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines import replay
from pipelines.cli import main
from tests.conftest import RunningBroker
from tests.integration.pipeline import reading
from workers import kafka_client, kafka_records, kafka_topics
from workers.codecs.dead_letter import render_dead_letter
from workers.errors import RetryableError
from workers.metrics import Metrics
from workers.records import DeadLetter, Message, Origin, Record
from workers.settings import KafkaSettings
from workers.sinks import kafka as sink_room
from workers.sinks.kafka import TransactionalSink

ROOT = Path(__file__).parents[2]
SECRET = "my-secret-text"
KEY = "my-secret-key"
NOW_MS = int(time.time() * 1000)
NEWER = (
    "note  a replayed record comes after the newer records of its key: where its key was written since, the older text's "
    "vector is now the latest\n"
)
CLASSES = (("text", "missing_field"), ("decode", "invalid_json"), ("text", "empty"))


@dataclass(frozen=True)
class Scene:
    """A pipeline's topics, and the commands on them."""

    kafka: KafkaSettings
    config: Path
    documents: str
    dead: str
    capsys: pytest.CaptureFixture[str]

    def run(self, command: str, *arguments: str) -> tuple[int, str, str]:
        """Exit code, standard output, standard error."""
        code = main(["dead-letters", command, "-c", str(self.config), *arguments])
        said = self.capsys.readouterr()
        return code, said.out, said.err

    def listed(self, *arguments: str) -> list[dict[str, Any]]:
        code, out, err = self.run("list", "--json", *arguments)
        assert (code, err) == (0, "")
        return [json.loads(line) for line in out.splitlines()]

    def fill(self, records: Sequence[Record], letters: Sequence[DeadLetter]) -> None:
        """Dead letters as the pipeline writes them, 20 a transaction."""
        messages = [
            render_dead_letter(record, letter, self.dead, "ab12ab12ab12ab12")
            for record, letter in zip(records, letters, strict=True)
        ]
        with sink(self.kafka, self.dead, f"{self.dead}.fill") as out:
            for start in range(0, len(messages), 20):
                out.publish(messages[start : start + 20])

    def read(self, topic: str) -> list[Any]:
        return read(self.kafka, topic)

    def numbers(self) -> Counter[int]:
        """How often each record of :meth:`many` is in the source topic."""
        return Counter(int(record.value.split()[0]) for record in self.read(self.documents))

    def many(self, count: int) -> None:
        """``count`` dead letters, numbered in their values, their classes mixed."""
        self.fill(
            [
                Record(
                    Origin(self.documents, number % 3, number, 0),
                    f"{KEY}-{number % 7}".encode(),
                    f"{number} {SECRET}".encode(),
                    NOW_MS - 1_000 * number,
                )
                for number in range(count)
            ],
            [DeadLetter(*CLASSES[number % 3], "our own sentence") for number in range(count)],
        )


class sink:
    """A transactional sink that is closed afterwards."""

    def __init__(self, kafka: KafkaSettings, topic: str, transactional_id: str) -> None:
        self.sink = TransactionalSink(kafka, [topic], Metrics(), transactional_id=lambda: transactional_id)

    def __enter__(self) -> TransactionalSink:
        self.sink.open()
        return self.sink

    def __exit__(self, *_: object) -> None:
        self.sink.close()


def read(kafka: KafkaSettings, topic: str) -> list[Any]:
    """What a read_committed reader finds, up to the end, which may be an open transaction."""
    with reading(kafka, topic) as found:
        found.finish(patience_s=2)
        return found.records


@pytest.fixture
def scene(
    broker: RunningBroker,
    make_topic: Callable[..., str],
    unique_name: Callable[[], str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> Scene:
    documents, dead = make_topic(3), make_topic(2, max_message_bytes=2_000_000)
    settings = {
        "source": {"topics": [documents], "group": unique_name()},
        "dead_letter": {"topic": dead},
        "kafka": {"bootstrap_servers": broker.bootstrap_servers},
    }
    config = tmp_path / "pipeline.yaml"
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return Scene(broker.settings, config, documents, dead, capsys)


def odd_records(topic: str) -> Iterator[Record]:
    """Records that differ from a plain one in each way that Kafka allows."""
    bodies: list[tuple[bytes | None, bytes | None, tuple[tuple[str, bytes | None], ...]]] = [
        (b"key", b'{"text": 1}', ()),
        (None, b"no key", (("trace", b"1"), ("trace", b"2"), ("trace", b"1"))),
        (b"", b"", (("", b""),)),
        (None, None, ()),
        (b"\xff\x00", b"\x80" * 1_000, (("bytes", b"\xff\x00"), ("ü", "ü".encode()))),
        (b"key", b"x" * 1_000_000, ()),
        (b"key", b"null header", (("none", None), ("embedding-error-x", b"mine"), ("embedding-dim", b"3"))),
    ]
    for number, (key, value, headers) in enumerate(bodies):
        yield Record(Origin(topic, number % 3, 40 + number, 0), key, value, NOW_MS - 86_400_000 * number, headers)


def test_a_replay_is_byte_for_byte(scene: Scene) -> None:
    records = list(odd_records(scene.documents))
    scene.fill(records, [DeadLetter("text", "missing_field", "a sentence")] * len(records))
    assert scene.run("replay", "--dry-run")[:2] == (
        0,
        f"would replay 7 dead letters of {scene.dead} (7 to {scene.documents})\n{NEWER}",
    )
    assert scene.read(scene.documents) == [], "a dry run sends nothing"
    code, out, err = scene.run("replay")
    assert (code, err) == (0, "")
    assert out == f"replayed 7 dead letters of {scene.dead} (7 to {scene.documents})\n{NEWER}"

    expected = [
        (
            record.origin.partition,
            record.key,
            record.value,
            record.timestamp_ms,
            # The client cannot write a null header value: it is empty already in the dead letter.
            [*((name, value or b"") for name, value in record.headers), ("embedding-replayed", b"1")],
        )
        for record in records
    ]
    found = [
        (record.partition, record.key, record.value, record.timestamp, list(record.headers))
        for record in scene.read(scene.documents)
    ]
    assert sorted(found, key=repr) == sorted(expected, key=repr)


def test_a_second_replay_sends_nothing_twice(scene: Scene) -> None:
    scene.many(45)
    assert scene.run("replay")[1].startswith(f"replayed 45 dead letters of {scene.dead}")
    assert scene.run("replay")[1] == f"replayed 0 dead letters of {scene.dead}; 45 had been replayed before\n"
    scene.many(10)
    assert scene.run("replay")[1].startswith(f"replayed 10 dead letters of {scene.dead}")
    assert scene.numbers() == Counter(range(45)) + Counter(range(10))


def test_what_a_filter_leaves_waits_for_another_replay(scene: Scene) -> None:
    scene.many(60)
    assert len(scene.listed("--class", "empty")) == 20
    assert scene.run("replay", "--class", "empty", "--limit", "5")[0] == 0
    assert len(scene.listed("--class", "empty")) == 15
    assert scene.run("replay", "--class", "empty")[0] == 0
    assert set(scene.numbers()) == {number for number in range(60) if number % 3 == 2}
    code, out, _ = scene.run("list")
    assert code == 0
    assert f"{scene.dead}: 40 dead letters wait, 20 were replayed" in out
    rows = {tuple(line.split()[:4]) for line in out.splitlines()}
    assert {("text", "missing_field", "20", "0"), ("text", "empty", "0", "20")} <= rows
    (one, *_) = scene.listed("--last", "1")
    assert one["timestamp_ms"] == NOW_MS and one["class"] == "missing_field"
    assert scene.run("replay", f"{one['partition']}/{one['offset']}")[1].startswith("replayed 1 ")
    assert scene.run("replay", f"{scene.documents}/1/1")[1].startswith("replayed 1 ")
    assert scene.run("replay", "--stage", "text", "--since", "30s")[0] == 0
    assert scene.run("replay")[0] == 0
    assert scene.numbers() == Counter(range(60)), "each once, by whatever way"
    assert scene.listed() == []
    assert len(scene.listed("--replayed")) == 60


# A replay in small transactions that dies in its third, at one of the moments at which that could matter.
DYING = """
import os, signal, sys, time
from pipelines import replay
from pipelines.cli import main
from workers.sinks.kafka import TransactionalSink
replay.LETTERS = 10
moment, calls = sys.argv[1], 0

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def dying(name):
    original = getattr(TransactionalSink, name)
    def call(self, *arguments):
        global calls
        calls += 1
        if calls == 3 and moment == "before":
            die()
        if calls == 3 and moment == "while":
            self._producer._sender.wakeup()
            time.sleep(0.002)
            die()
        found = original(self, *arguments)
        if calls == 3 and moment == "after":
            die()
        return found
    setattr(TransactionalSink, name, call)

dying({"sent": "write", "before": "_wait", "while": "_wait", "after": "publish"}[moment])
if moment == "sent":
    moment = "after"
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.parametrize("moment", ["sent", "before", "while", "after"])
def test_a_replay_that_is_killed_goes_on_where_it_ended(scene: Scene, moment: str) -> None:
    """``sent``: records acknowledged, no commit; ``before`` and ``while``: the commit goes out or not; ``after``: it did."""
    scene.many(60)
    arguments = [moment, "dead-letters", "replay", "-c", str(scene.config)]
    died = subprocess.run([sys.executable, "-c", DYING, *arguments], cwd=ROOT, check=False, capture_output=True)
    assert died.returncode == -signal.SIGKILL, died.stderr
    code, out, err = scene.run("replay")
    assert (code, err) == (0, "")
    before = {"sent": (20,), "before": (20, 30), "while": (20, 30), "after": (30,)}[moment]
    assert out.startswith(tuple(f"replayed {60 - count} dead letters" for count in before)), out
    assert scene.numbers() == Counter(range(60))
    assert scene.listed() == []


def test_of_two_replays_the_later_goes_on(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.many(60)
    monkeypatch.setattr(replay, "LETTERS", 10)
    original, calls = TransactionalSink.publish, []

    def publish(self: TransactionalSink, messages: Sequence[Message]) -> None:
        calls.append(len(messages))
        if len(calls) == 3:
            command = [sys.executable, "-m", "pipelines", "dead-letters", "replay", "-c", str(scene.config)]
            other = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
            assert other.stdout.startswith("replayed 40 ")
        original(self, messages)

    monkeypatch.setattr(TransactionalSink, "publish", publish)
    code, _, err = scene.run("replay")
    assert code == 1
    assert err.startswith("stream-embedder: replay stopped after 20 dead letters: ") and err.count("\n") == 1
    assert "run it again" in err
    assert scene.numbers() == Counter(range(60))


def test_a_receipt_behind_somebodys_open_transaction_is_waited_for(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pipeline's transaction that began before a replay's hides its receipts until it ends."""
    scene.many(4)
    record = Record(Origin(scene.documents, 0, 4, 0), None, b"4", NOW_MS)
    late = render_dead_letter(record, DeadLetter("text", "empty", ""), scene.dead, "")
    original = TransactionalSink.publish
    monkeypatch.setattr(sink_room, "TRANSACTION_TIMEOUT_MS", 120_000)  # not before this test ends it itself
    with sink(scene.kafka, scene.dead, f"{scene.dead}.other") as other:

        def publish(self: TransactionalSink, messages: Sequence[Message]) -> None:
            other.write(
                [Message(late.topic, None, late.value, late.headers, NOW_MS, partition) for partition in (0, 1)]
            )
            original(self, messages)

        with monkeypatch.context() as patched:
            patched.setattr(TransactionalSink, "publish", publish)
            assert scene.run("replay")[1].startswith("replayed 4 ")
        (topic,) = describe(scene.kafka, scene.dead)
        with kafka_client.admin(scene.kafka) as client:
            ends = kafka_topics.end_offsets(client, {topic.name: topic})
        with pytest.raises(RetryableError, match="somebody's transaction is still open"):
            list(kafka_records.committed_records(scene.kafka, topic, ends=ends, patience_s=1))
        assert len(scene.listed()) == 4, "list does not wait: it shows what is committed"
        commit = threading.Timer(1.5, other._producer.commit_transaction)
        commit.start()
        code, out, _ = scene.run("replay")
        commit.join()
    assert (code, out.splitlines()[0]) == (
        0,
        f"replayed 2 dead letters of {scene.dead} (2 to {scene.documents}); 4 had been replayed before",
    )
    assert scene.numbers() == Counter([0, 1, 2, 3, 4, 4])


def describe(kafka: KafkaSettings, *names: str) -> list[kafka_topics.Topic]:
    with kafka_client.admin(kafka) as client:
        return list(kafka_topics.describe_topics(client, names).values())


def test_what_does_not_fit_is_left_and_named(scene: Scene, make_topic: Callable[..., str]) -> None:
    small = make_topic(1, max_message_bytes=2_000)
    compacted = make_topic(1, cleanup_policy="compact")
    timed = make_topic(1, message_timestamp_before_max_ms=3_600_000)
    sources = json.dumps([small, compacted, timed])
    letter = DeadLetter("text", "empty", "a sentence")
    records = [
        Record(Origin(small, 0, 1, 0), b"k", b"1" * 3_000, NOW_MS),
        Record(Origin(small, 7, 2, 0), b"k", b"2", NOW_MS),
        Record(Origin(compacted, 0, 3, 0), None, b"3", NOW_MS),
        Record(Origin(timed, 0, 4, 0), b"k", b"4", NOW_MS - 7_200_000),
        *(Record(Origin(topic, 0, 5, 0), b"k", b"5", NOW_MS) for topic in (small, compacted, timed)),
    ]
    scene.fill(records, [letter] * len(records))
    code, out, err = scene.run("replay", "--source.topics", sources)
    assert code == 1
    assert out.startswith(f"replayed 3 dead letters of {scene.dead}")
    lines = err.splitlines()
    assert len(lines) == 5 and lines[-1] == "left  4 that do not fit their topic: mend it, or use --to"
    for origin, why in (
        (f"{small}/0/1", "takes 2,000 (max.message.bytes)"),
        (f"{small}/7/2", f"has no partition 7 any more (--to {small} sends it where its key goes)"),
        (f"{compacted}/0/3", f"it has no key, and topic {compacted} is compacted"),
        (f"{timed}/0/4", f"which topic {timed} refuses (message.timestamp.before.max.ms)"),
    ):
        assert any(f"from {origin}: " in line and why in line for line in lines), (why, err)
    for topic in (small, compacted, timed):
        assert [record.value for record in scene.read(topic)] == [b"5"]
    code, out, err = scene.run("replay", "--to", scene.documents)
    assert (code, err) == (0, "")
    assert out.startswith(f"replayed 4 dead letters of {scene.dead} (4 to {scene.documents}); 3 had been")
    assert {record.value[:1] for record in scene.read(scene.documents)} == {b"1", b"2", b"3", b"4"}


def test_only_the_pipelines_own_topics_are_written_to(scene: Scene) -> None:
    """A dead-letter topic may be shared, and hold what other tools wrote."""
    record = Record(Origin("another-teams", 0, 1, 0), b"k", b"0", NOW_MS - 8 * 86_400_000)
    scene.many(3)
    scene.fill([record], [DeadLetter("text", "empty", "")])
    with sink(scene.kafka, scene.dead, f"{scene.dead}.tool") as tool:
        tool.publish([Message(scene.dead, b"k", b"v", (("__connect.errors.topic", b"documents"),), NOW_MS)])
    code, out, _ = scene.run("replay")
    assert code == 0
    assert out.startswith(f"replayed 3 dead letters of {scene.dead} (3 to {scene.documents})\n")
    assert "left  1 of topic another-teams, which this pipeline does not read: --to says where to send them" in out
    assert "; 1 other records lie there\n" in scene.run("list")[1]
    out = scene.run("replay", "--to", scene.documents)[1]
    assert f"note  1 are older than topic {scene.documents} keeps records (retention.ms)" in out


def test_no_payload_unless_asked(scene: Scene, tmp_path: Path) -> None:
    scene.many(3)
    value = b"\x1b[2J\xff" + SECRET.encode()
    record = Record(Origin(scene.documents, 2, 77, 0), b"\xfe" + KEY.encode(), value, NOW_MS, (("trace", b"a\x1bb"),))
    hostile = DeadLetter("text", "empty\x1b[2J", "a\x1b]0;title\x07 sentence")
    scene.fill([record], [hostile])
    (place,) = (f"{one['partition']}/{one['offset']}" for one in scene.listed() if one["source"]["offset"] == 77)
    for command in (
        ["list"],
        ["list", "--json"],
        ["list", "--last", "100", "--replayed"],
        ["show", place],
        ["show", f"{scene.documents}/2/77"],
        ["replay", "--dry-run"],
    ):
        code, out, err = scene.run(*command)
        assert code == 0
        assert SECRET not in out + err and KEY not in out + err
        assert out.replace("\n", "").isprintable(), "nothing steers the terminal"
    assert KEY in scene.run("list", "--keys")[1]
    assert any(one["key"] == f"\\xfe{KEY}" for one in scene.listed("--keys"))
    code, out, _ = scene.run("show", place, "--payload")
    assert (code, out.replace("\n", "").isprintable()) == (0, True)
    assert out.splitlines() == [
        f"dead letter  {scene.dead}/{place}",
        f"source       {scene.documents}/2/77",
        out.splitlines()[2],
        "stage        text",
        "class        empty\ufffd[2J",
        "message      a\ufffd]0;title\ufffd sentence",
        "attempts     1",
        "replays      0 before it was refused",
        "fingerprint  ab12ab12ab12ab12",
        "headers      1",
        "             trace: a\\x1bb",
        f"key          {1 + len(KEY)} B",
        f"             \\xfe{KEY}",
        f"value        {len(value)} B",
        f"             \\x1b[2J\\xff{SECRET}",
    ]
    file = tmp_path / "value"
    code, out, _ = scene.run("show", place, "--out", str(file))
    assert (code, file.read_bytes()) == (0, value)
    assert SECRET not in out
    assert scene.run("replay", place)[0] == 0
    assert scene.run("show", place)[1].startswith(f"dead letter  {scene.dead}/{place}, replayed\n")


def test_what_is_wrong_is_one_sentence(scene: Scene, make_topic: Callable[..., str], tmp_path: Path) -> None:
    empty = make_topic(1)
    assert scene.run("list")[:2] == (0, f"{scene.dead}: 0 dead letters wait, 0 were replayed\n")
    assert scene.listed() == []
    assert scene.run("replay")[:2] == (0, f"replayed 0 dead letters of {scene.dead}\n")
    null = Record(Origin(scene.documents, 0, 1, 0), b"k", None, NOW_MS)
    scene.fill([null, null], [DeadLetter("output", "no_key", "a")] * 2)
    at = [f"{one['partition']}/{one['offset']}" for one in scene.listed()]
    for arguments, code, sentence in (
        (["list", "--dead_letter.topic", "nowhere"], 1, "topic nowhere does not exist"),
        (["show", "0/0", "--dead_letter.topic", "nowhere"], 1, "topic nowhere does not exist"),
        (["replay", "--dead_letter.topic", "nowhere"], 1, "topic nowhere does not exist"),
        (["replay", "--source.topics", "nowhere"], 1, "topic nowhere does not exist"),
        (["replay", "--to", "nowhere", "--dry-run"], 1, "topic nowhere does not exist"),
        (["show", "0/0", "--dead_letter.topic", empty], 1, f"topic {empty} holds no dead letter at 0/0"),
        (["show", "0/9999"], 1, f"topic {scene.dead} holds no dead letter at 0/9999"),
        (["show", "9/0"], 1, f"topic {scene.dead} has the partitions 0 to 1: there is no 9/0"),
        (["show", f"{scene.documents}/0/2"], 1, f"holds no dead letter of {scene.documents}/0/2"),
        (["show", at[0], "--out", "/nowhere/file"], 1, "the dead letter's value is null, there is nothing to write"),
        (["show", f"{scene.documents}/0/1", "--out", "x"], 2, f"these are {at[0]}, {at[1]}: name one of them"),
    ):
        found, out, err = scene.run(arguments[0], *arguments[1:])
        assert (found, out, err.count("\n")) == (code, "", 1), (arguments, out, err)
        assert sentence in err
