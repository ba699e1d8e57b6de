"""What the fault lab makes of an end: exits, crashes in logs and lost readers that nobody caused fail a seed, others do not."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.integration.pipeline import wait_until
from tests.lab import inquest, logs, memory
from tests.lab.checker import Findings
from tests.lab.chronicle import Chronicle, Outage
from tests.lab.documents import POISON, documents, without_text
from tests.lab.inquest import Inquest
from tests.lab.logs import Crash, Session, crashes
from tests.lab.plan import ALONE, TOPIC_FAULTS, WHAT, Plan
from tests.lab.report import meanings
from tests.lab.supervised import Exit, Supervised

BROKER = "stand_in: no Kafka broker answers at 127.0.0.1:21956 (connection refused): is one running there?"
STORE = "s3://bucket-1/vectors: it does not answer in time"
AT = 1_000_000.0


def asked(
    *outages: Outage, killed: set[int] | None = None, short: set[int] | None = None, poison: bool = False
) -> Inquest:
    return Inquest(Chronicle(killed=killed or set(), outages=list(outages)), short or set(), poison)


DOWN = Outage("broker", AT - 5, AT + 3)
EARLIER = Outage("broker", AT - 100, AT - 50)
GONE = Outage("store", AT, AT + 3)


@pytest.mark.parametrize(
    ("code", "words", "outages", "explained"),
    [
        (1, BROKER, [DOWN], True),
        (1, BROKER, [Outage("broker", AT + 5, math.inf)], True),
        (1, BROKER, [EARLIER], False),
        (1, BROKER, [GONE], False),
        (1, BROKER, [], False),
        (2, BROKER, [DOWN], False),
        (0, BROKER, [DOWN], False),
        (-9, "", [DOWN], False),
        (-6, "INFO stream_embedder.live starting the readers and encoders", [DOWN], False),
        (1, "Traceback (most recent call last)", [DOWN], False),
        (1, f"{BROKER}\n{STORE}", [DOWN, GONE], True),
        (1, f"{BROKER}\n{STORE}", [DOWN], False),
        (1, "stand_in: the application did not start: RuntimeError", [DOWN, GONE], False),
        (1, "stand_in: the application did not start: RuntimeError", [Outage("memory", AT, AT + 1)], True),
        (1, "stand_in: topic out-1, partition 3 holds vectors with fingerprint 17", [DOWN], False),
        (1, "stand_in: Kafka at 127.0.0.1:21956: KafkaTimeoutError: Timeout after waiting", [DOWN], True),
        (1, f"{BROKER}\nException ignored in: <function X>", [DOWN], False),
    ],
)
def test_an_exit_is_explained_by_what_fails_while_it_starts(
    code: int, words: str, outages: list[Outage], explained: bool
) -> None:
    assert asked(*outages).exit(Exit(code, AT, AT + 11, words)) is explained


def crash(text: str, file: str = "worker-17.err", at: float | None = AT) -> Crash:
    return Crash(file, 3, 17, at, text)


STACK = f'{logs.TRACEBACK}:\n  File "/x/workers/reader.py", line 7, in run\n    step()\n'
DIED = (
    f"ERROR controller 5 -- Exception when allocating Replica(id='x', deployment='{{0}}'):\n{STACK}"
    "ray.exceptions.ActorDiedError: The actor died unexpectedly before finishing this task.\n"
    "\tclass_name: ServeReplica:stream-embedder:{0}\n\tpid: 1329\n"
)
FAILED = 'ERROR stream_embedder.reader reader failed error="no Kafka broker answers at 127.0.0.1:1"'


@pytest.mark.parametrize(
    ("found", "by", "explained"),
    [
        (crash(STACK + "ValueError: 7"), asked(DOWN), False),
        (crash(FAILED), asked(DOWN), False),
        (crash(DIED.format("Reader")), asked(), False),
        (crash(DIED.format("Reader")), asked(killed={1329}), True),
        (crash(DIED.format("Reader")), asked(killed={17}), False),
        (crash(DIED.format("Reader")), asked(short={1329}), True),
        (crash(DIED.format("Reader")), asked(poison=True), False),
        (crash(DIED.format("Encoder")), asked(poison=True), True),
        (crash(f"{STACK}workers.errors.EnvironmentFault: {BROKER}"), asked(DOWN), True),
        (crash(f"{STACK}workers.errors.EnvironmentFault: {BROKER}"), asked(EARLIER), False),
        (crash(f"{STACK}workers.errors.EnvironmentFault: {BROKER}", at=None), asked(DOWN), False),
        (crash(f"{STACK}kafka.errors.KafkaError: {BROKER}"), asked(DOWN), False),
        (crash(f"{STACK}OSError: attempting to bind on address 1", "dashboard_agent.log"), asked(), True),
        (crash(f"{STACK}OSError: attempting to bind on address 1"), asked(), False),
        (crash("[2026] (raylet) a.cc:1:  Check failed: x", "raylet.out"), asked(DOWN), False),
        (
            crash("[2026] (raylet) node_manager.cc:3: Check failed: statussetor3.has_value()", "raylet.err"),
            asked(),
            True,
        ),
        (crash("[2026] (raylet) node_manager.cc:3: Check failed: node.has_value()", "raylet.err"), asked(DOWN), False),
        (crash(f"Failed to check gcs aliveness\n{STACK}RpcError: CANCELLED", "dashboard.log"), asked(), True),
        (crash(f"Failed to check gcs aliveness\n{STACK}RpcError: CANCELLED", "gcs_server.err"), asked(), False),
    ],
)
def test_a_crash_is_explained_by_a_kill_an_outage_or_ray(found: Crash, by: Inquest, explained: bool) -> None:
    assert by.crash(found) is explained


LOG = f"""2026-11-26 09:13:37,024 INFO stream_embedder.sources.kafka assigned partition=in/0 offset=0
2026-11-26 09:13:56,968 ERROR stream_embedder.reader reader failed error="in/0 is committed up to 9"
{logs.TRACEBACK}:
  File "/x/workers/reader.py", line 178, in run
    step()
    ^^^^^^
KeyError: 'a'

During handling of the above exception, another exception occurred:

{logs.TRACEBACK}:
  File "/x/workers/reader.py", line 180, in run
    raise
  File "/x/site-packages/kafka/client.py", line 9, in poll
    assert False
ValueError: 12 stream text vector
and more of it
2026-11-26 09:13:58,000 INFO stream_embedder.live running
Exception ignored in: <function Reader.__del__ at 0x7f>
2026-11-26 09:13:59,000 INFO stream_embedder.live draining
(ServeReplica:stream-embedder:Reader pid=22207) {logs.TRACEBACK}:
"""


def test_crashes_are_found_whole_and_shown_without_text(tmp_path: Path) -> None:
    file = tmp_path / f"worker-{'ab' * 20}-01000000-22207.err"
    file.write_text(LOG)
    first, second = crashes(file, file.name, LOG.index("(ServeReplica"))
    assert (first.pid, first.line, first.at) == (22207, 2, time.mktime((2026, 11, 26, 9, 13, 56, 0, 0, -1)))
    assert first.text.count(logs.TRACEBACK) == 2 and "and more of it" in first.text
    assert first.shown == "worker-01000000-22207.err:2 at workers/reader.py:180: ValueError: …"
    assert second.said.startswith("Exception ignored in")
    # What a driver repeats of others stands in their own logs.
    assert len(crashes(file, "run.log")) == 3 and len(crashes(file, "run.log", driver=True)) == 2
    assert crashes(file, file.name, LOG.index("2026-11-26 09:13:56")) == []


def test_what_ray_and_serve_tell_of_a_start_that_failed_is_one_crash_and_its_last_words_count(tmp_path: Path) -> None:
    """Serve makes a traceback the message of an exception, and Ray gives one from another process a head of its own."""
    log = tmp_path / "controller_5.log"
    frame = '  File "/x/site-packages/y.py", line 7, in z\n    z()\n'
    elsewhere = (
        "\x1b[36mray::ServeReplica:stream-embedder:Reader.initialize_and_get_metadata()\x1b[39m (pid=1329, ip=1)\n"
    )
    log.write_text(
        f"ERROR 2026-11-26 16:19:12,932 controller 5 -- Exception in Replica(id='x')\n{logs.TRACEBACK}:\n{frame}"
        f"ray.exceptions.RayTaskError(RuntimeError): {elsewhere}{frame}"
        f"RuntimeError: {logs.TRACEBACK}:\n{frame}kafka.errors.KafkaTimeoutError: Unable to bootstrap\n\n"
        f"The above exception was the direct cause of the following exception:\n\n{elsewhere}{frame}"
        f"workers.errors.EnvironmentFault: {BROKER}\n"
        "INFO 2026-11-26 16:19:13,000 controller 5 -- Replica(id='x') is stopped.\n"
    )
    (found,) = crashes(log, log.name)
    assert found.said == f"workers.errors.EnvironmentFault: {BROKER}" and found.pids == {5, 1329}
    assert found.at is not None
    assert asked(Outage("broker", found.at - 5, found.at)).crash(found) and not asked().crash(found)


def test_no_piece_of_a_record_is_shown() -> None:
    for document in documents(2_000, 3, poison=True, long=True):
        if document.text:
            piece = " ".join(document.text.split()[:30])
            assert without_text(f"ValueError: cannot take '{piece}' of seed-1-in/0") == (
                "ValueError: cannot take '…' of seed-1-in/0"
            ), piece
    assert without_text(f"a {POISON}") == "a …"
    line = 'stream_embedder.reader reader failed error="no Kafka broker answers at 127.0.0.1:1"'
    assert without_text(line) == line


RAYLET = """[t] (raylet) worker_pool.cc:564: Started worker process with pid 11 worker_id=aa
[t] (raylet) worker_pool.cc:564: Started worker process with pid 12 worker_id=bb
[t] (raylet) worker_pool.cc:564: Started worker process with pid 13 worker_id=cc
[t] (raylet) node_manager.cc:1477: Disconnecting worker, graceful=false, disconnect_type=0 worker_id=aa job_id=01
Selected to kill: (Actor(0f): job ID=01, task name=A.__init__, required resources={CPU: 0.1}, pid=12, actual memory used=0.06GB)
[t] (raylet) node_manager.cc:1477: Disconnecting worker, graceful=false, disconnect_type=0 worker_id=bb job_id=01
[t] (raylet) node_manager.cc:1484: Disconnecting driver, graceful=true, disconnect_type=3 worker_id=01
[t] (raylet) node_manager.cc:1477: Disconnecting worker, graceful=false, disconnect_type=0 worker_id=cc job_id=01
"""


def session(folder: Path) -> Session:
    (folder / "logs").mkdir(parents=True)
    (folder / "logs" / "raylet.out").write_text(RAYLET)
    for pid, title in ((11, "Reader"), (12, "Reader"), (13, "Reader"), (14, "Encoder")):
        (folder / "logs" / f"worker-{pid}{pid}-01-{pid}.out").write_text(
            f":job_id:01\n:actor_name:ServeReplica:stream-embedder:{title}\n"
        )
    (folder / "logs" / "worker-1111-01-11.err").write_text(f"{STACK}ValueError: 7\n")
    return Session(folder, {})


def test_a_session_says_which_workers_ended_before_their_driver_and_why(tmp_path: Path) -> None:
    found = session(tmp_path)
    assert found.actors("ServeReplica:stream-embedder:Reader") == {11, 12, 13}
    assert found.ended() == {11, 12} and found.short_of_memory() == {12}
    [crash] = found.crashes()
    assert (crash.pid, crash.said) == (11, "ValueError: 7")
    # What was written after the lab had begun to kill does not count.
    raylet = tmp_path / "logs" / "raylet.out"
    assert Session(tmp_path, {raylet: RAYLET.index("Selected")}).ended() == {11}


def test_a_reader_that_a_dead_controller_left_half_built_is_replaced_rightly(tmp_path: Path) -> None:
    found = session(tmp_path)
    (tmp_path / "logs" / "serve").mkdir()
    (tmp_path / "logs" / "serve" / "controller_9.log").write_text(
        "WARNING 2026-11-26 10:36:12,443 controller 9 -- Replica(id='x') was found alive but never finished its initial setup;\n"
    )
    for pid, at in ((11, "10:36:12"), (12, "10:30:00")):
        (tmp_path / "logs" / f"python-core-worker-ab_{pid}.log").write_text(
            f"[2026-11-26 {at},900 I {pid}] Worker exits: it was killed by `ray.kill`.\n"
        )
    assert found.unfinished() == {11}


def test_what_nobody_did_fails_the_seed_and_what_the_lab_did_does_not(tmp_path: Path) -> None:
    chronicle = Chronicle()
    # A command that ends at once, by itself.
    with Supervised(tmp_path, {}, "json.tool --no-such-option", chronicle) as pipeline:
        session(pipeline.ray / "ray" / "session_2026")
        wait_until(lambda: len(pipeline.exits) > 0, 30, pipeline.tail)
    first = pipeline.exits[0]
    assert first.code == 2 and "no-such-option" in first.words and first.began <= first.ended

    findings = Findings()
    inquest.examine([pipeline], chronicle, poison=False, findings=findings)
    assert findings.counts["died"] == len(pipeline.exits)
    assert findings.counts["reader replaced"] == 1  # of the two, one was Ray's
    assert findings.counts["crash logged"] == 1
    assert any("pid 11, " in each and "ValueError: 7" in each for each in findings.examples)

    # A reader that starts while there is no broker gives up, and is replaced.
    log = pipeline.ray / "ray" / "session_2026" / "logs" / "controller_5.log"
    now = time.strftime("%Y-%m-%d %H:%M:%S")
    log.write_text(
        f"ERROR {now},000 controller 5 -- Exception in Replica:\n{logs.TRACEBACK}:\n"
        f'  File "/x/pipelines/guard.py", line 1, in refuse (pid=11, ip=192.0.2.2)\nworkers.errors.EnvironmentFault: {BROKER}\n'
    )
    for outages, replaced in (([], 1), ([Outage("broker", time.time() - 20, time.time())], 0)):
        findings = Findings()
        inquest.examine([pipeline], Chronicle(outages=outages), poison=False, findings=findings)
        assert (findings.counts["reader replaced"], findings.counts["crash logged"]) == (replaced, 1 + replaced)

    chronicle.killed.add(11)
    findings = Findings()
    inquest.examine([pipeline], chronicle, poison=False, findings=findings)
    assert findings.counts["reader replaced"] == 0

    pipeline.drop_logs(tmp_path / "kept")
    assert (tmp_path / "kept" / "session_2026" / "raylet.out").exists() and not pipeline.ray.exists()


def test_a_pipeline_that_the_lab_kills_has_no_exit(tmp_path: Path) -> None:
    with Supervised(tmp_path, {}, "http.server 0 --directory", Chronicle()) as pipeline:
        wait_until(lambda: bool(pipeline.parts("http.server")), 30, pipeline.tail)
        pipeline.kill_everything()
        time.sleep(1)
    assert pipeline.exits == []
    pipeline.drop_logs()


def test_a_balloon_is_no_larger_than_the_machine_can_spare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used = 8 * memory.GIB
    monkeypatch.setattr(memory, "total_and_used", lambda: (10 * memory.GIB, used))
    limit = memory.Limit(tmp_path)
    assert float(limit.environment()["RAY_memory_usage_threshold"]) == pytest.approx(0.95, abs=0.001)
    assert limit.press(lambda: 0).startswith("skipped: 1.6 GiB would be needed, and 2.0 GiB are free")
    used = 5 * memory.GIB
    limit.environment()
    used = 2 * memory.GIB
    assert limit.press(lambda: 0).startswith("skipped: ")
    assert list(tmp_path.iterdir()) == [tmp_path / "balloon"]


def test_a_balloon_is_held_until_ray_kills(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    total = 100 * memory.GIB
    monkeypatch.setattr(memory, "total_and_used", lambda: (total, 4 * memory.GIB))
    monkeypatch.setattr(memory, "PIPELINE_BYTES", 0)
    monkeypatch.setattr(memory, "SLACK_BYTES", 0)
    limit = memory.Limit(tmp_path)
    limit.environment()
    monkeypatch.setattr(memory, "SETTLE_S", 0.1)
    answers = iter([1, 1, 3, 4])
    assert limit.press(lambda: next(answers)) == "0.1 GiB taken, and Ray killed 3"
    assert not limit.others_press(4)
    assert limit.others_press(5) and not limit.others_press(5)


def test_memory_is_counted() -> None:
    total, used = memory.total_and_used()
    assert 0 < used < total


def test_faults_that_look_for_their_moment_fall_alone_and_each_is_described() -> None:
    steps = [step for seed in range(200) for step in Plan.of(seed).steps]
    drawn = {fault for step in steps for fault in step.faults}
    assert drawn >= set(ALONE)
    assert all(len(step.faults) == 1 for step in steps if set(ALONE) & set(step.faults))
    assert all(not TOPIC_FAULTS.keys() & set(Plan.of(seed, "files").faults) for seed in range(50))
    assert len(meanings()) == len(WHAT) + 2 and all(what.endswith(".") for what in WHAT.values())


@pytest.mark.parametrize(("seeds", "long"), [("", True), ("SEEDS=7", False)])
def test_make_soak_with_seeds_runs_those_alone(seeds: str, long: bool) -> None:
    root = Path(__file__).parents[2]
    words = ["make", "--dry-run", "--no-print-directory", f"PYTHON={sys.executable}", "soak", *filter(None, [seeds])]
    said = subprocess.run(words, cwd=root, capture_output=True, text=True, check=True).stdout
    assert "-m tests.lab" in said and ("-m pytest -m soak" in said) is long and ("--seeds 7" in said) is not long
