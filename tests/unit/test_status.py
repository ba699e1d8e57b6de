"""``status``: what it makes of what it sees, in which words, and that nothing that is dead holds it up."""

from __future__ import annotations

import io
import json
import sys
import threading
import time
from typing import Any

import pytest

from pipelines.positions import Standing
from pipelines.status import page
from pipelines.status.command import RAY_AGAIN_S, Shown, Status
from pipelines.status.companion import Application, Companion, Replicas, Report
from pipelines.status.fingerprints import Fingerprint
from pipelines.status.judgement import Judgement, Patience, duration, judge, moved, unreachable, worked
from pipelines.status.kafka_side import Lane, Seen
from pipelines.status.looks import Looks
from pipelines.status.page import View
from workers import kafka_groups
from workers.errors import EnvironmentFault, RetryableError
from workers.kafka_groups import Group, Member
from workers.records import Position, TopicPartition
from workers.settings import Settings

CLIENT = "stream-embedder-here.embedder.0"
PATIENCE = Patience(10.0)


def lane(number: int = 0, at: int | None = 90, end: int = 100, *, waits: bool | None = True, **outputs: int) -> Lane:
    committed = None if at is None else Position(at, outputs)
    age = 12.0 if waits and (at or 0) < end else None
    return Lane(Standing(TopicPartition("documents", number), committed, 0, end), waits, age)


def group(*partitions: int, state: str = "Stable") -> Group:
    own = tuple(TopicPartition("documents", number) for number in partitions)
    return Group("embedder", state, (Member(CLIENT, "10.0.0.1", own),))


def seen(*lanes: Lane, at: float = 0.0, of: Group | None = None, why: str | None = None) -> Seen:
    return Seen(at, of or group(*range(len(lanes))), lanes, why)


def application(readers: int = 1, encoders: int = 1, starting: int = 0, **more: Any) -> Application:
    stats = {"tokens_encoded_total": 5.0, **more.pop("stats", {})}
    scaling = more.pop("scaling", {"target": 3, "need": 4, "reason": "backlog", "since": 940.0})
    reports = (Report(CLIENT, stats),)
    return Application("RUNNING", Replicas(readers, 0), Replicas(encoders, starting), None, reports, scaling, **more)


NOBODY = Group("embedder", "Empty")

# ---- the judgement


@pytest.mark.parametrize(
    ("look", "ray", "quiet_s", "sentence"),
    [
        (seen(lane(at=100)), None, 60, None),
        (seen(lane(at=100), of=NOBODY), None, 60, None),
        (seen(lane()), None, 9.9, None),
        (
            seen(lane()),
            None,
            10.0,
            "of 10 records that wait (the next one for 12 s) none was committed for 10 s, though",
        ),
        (seen(lane()), None, 10.0, "the readers' log says what refuses; stream-embedder check says what would"),
        # Marks of transactions are no records, and what could not be seen may be some.
        (seen(lane(waits=False)), None, 60, None),
        (seen(lane(waits=None)), None, 60, "of 10 records that wait none was committed for 60 s"),
        (
            seen(lane(), of=NOBODY),
            None,
            0,
            "nobody is in group embedder, and 10 records wait (the next one for 12 s): start",
        ),
        (seen(lane(at=None), of=NOBODY), None, 0, "of which none was ever committed: start the pipeline"),
        (seen(lane(), of=NOBODY), application(readers=0), 0, "the application on Ray is RUNNING with 0 readers"),
        (
            seen(lane(0), lane(1), of=group(0)),
            None,
            0,
            "nobody in group embedder reads documents/1: its members read other",
        ),
        (seen(lane(0), lane(1, at=100), of=group(0)), None, 0, None),
        (seen(lane(0), lane(1), of=group(0, state="PreparingRebalance")), None, 0, None),
        (seen(lane(), of=group(state="PreparingRebalance")), None, 10, "the group is in state PreparingRebalance"),
        (seen(lane()), application(readers=0), 10, "no reader runs on Ray"),
        (
            seen(lane()),
            application(encoders=0, starting=2),
            10,
            "no encoder is ready (3 wanted, 2 start): give it the time",
        ),
        (seen(lane()), application(encoders=0, scaling=None), 10, "no encoder is ready (0 start): give it"),
        (
            seen(lane()),
            application(stats={"commits_failed_total{x}": 2.0}),
            10,
            "2 commits have failed: brokers, rights",
        ),
        (
            seen(lane()),
            application(stats={"partitions_paused": 1.0}),
            10,
            "an output or the encoders that take nothing",
        ),
        (seen(lane()), application(), 10, "the readers' log says what refuses"),
    ],
)
def test_what_is_wrong_is_a_sentence_with_what_to_do(
    look: Seen, ray: Application | None, quiet_s: float, sentence: str | None
) -> None:
    found = judge(look, ray, quiet_s, PATIENCE)
    if sentence is None:
        assert (found.wrong, found.health, found.exit_code) == ((), "healthy", 0)
    else:
        assert len(found.wrong) == 1 and sentence in found.wrong[0]
        assert (found.health, found.exit_code) == ("stalled", 1)


def test_a_partition_that_nobody_reads_and_others_that_stand_still_are_two_faults() -> None:
    found = judge(seen(lane(0), lane(1), of=group(0)), None, 10, PATIENCE)
    assert ["reads documents/1" in found.wrong[0], "none was committed" in found.wrong[1]] == [True, True]
    many = judge(seen(*map(lane, range(9)), of=group(8)), None, 0, PATIENCE)
    assert "documents/4 and 3 more:" in many.wrong[0]


def test_outputs_that_are_files_commit_when_a_file_is_put() -> None:
    patience = Patience(10.0, files_s=310.0)
    young = judge(seen(lane()), application(), 100, patience)
    assert (young.health, len(young.notes)) == ("healthy", 1) and "--wait 310 tells" in young.notes[0]
    assert judge(seen(lane()), application(), 310, patience).health == "stalled"
    assert judge(seen(lane()), application(encoders=0), 10, patience).health == "stalled", "that is seen without a file"


def test_what_is_not_known_is_noted() -> None:
    assert judge(seen(lane(at=100), why="nothing to see"), None, 0, PATIENCE).notes == ("nothing to see",)
    assert "nobody is in group embedder" in judge(seen(lane(at=100), of=NOBODY), None, 0, PATIENCE).notes[0]
    assert (unreachable("gone").health, unreachable("gone").exit_code) == ("unreachable", 1)


def test_a_commit_of_any_output_is_a_move() -> None:
    before = seen(lane(0, 90, lake=50), lane(1))
    assert not moved(before, seen(lane(0, 90, end=150, lake=50), lane(1))), "records that arrive are none"
    assert moved(before, seen(lane(0, 90, lake=60), lane(1)))
    assert moved(before, seen(lane(0, 90, lake=50), lane(1, 91)))
    assert moved(seen(lane(at=None)), seen(lane(at=0)))
    assert not moved(before, seen(lane(2, 7))), "another partition's offset says nothing"


def test_an_encoder_that_answers_works_though_nothing_is_committed_yet() -> None:
    assert not worked(application(), application())
    assert worked(application(), application(stats={"tokens_encoded_total": 6.0}))
    assert worked(application(), application(stats={"commits_total": 1.0}))
    assert not worked(application(), application(stats={"tokens_encoded_total": 0.0})), "a reader was replaced"
    assert not worked(None, application())


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (119, "119 s"), (120, "2 min"), (7200, "2 h"), (172_800, "2 d")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


# ---- the page


def view(**changes: Any) -> View:
    stats = {"last_commit_timestamp_seconds": 998.0, "in_flight_records": 7.0, "dead_letters_total{decode,x}": 2.0}
    given: dict[str, Any] = {
        "now": 1000.0,
        "seen": seen(lane(0, 90, lake=80), lane(1, 100)),
        "judgement": Judgement(),
        "application": application(starting=1, stats=stats),
        "rate": 1234.5,
        "fixed": None,
        "members": 2,
        "fingerprints": [Fingerprint("kafka:vectors", "a" * 16, ("b" * 16,))],
    }
    return View(**(given | changes))


def test_the_page_says_all_that_is_known() -> None:
    text = "\n".join(page.lines(view()))
    head, table = text.split("partition  ")
    assert text.startswith("healthy\n  note: kafka:vectors holds vectors with fingerprint bbbb")
    assert "group embedder: Stable, 1 member; 10 records wait, the oldest for 12 s; 1,234 records/s committed" in head
    assert (
        "1 reader ready of 2 wanted; 1 encoder ready of 3 wanted, 1 starting (backlog, since 60 s); last commit 2.0 s ago"
        in head
    )
    (first,) = [line.split() for line in table.splitlines() if line.startswith("documents/0")]
    assert " ".join(first) == "documents/0 90 100 10 12 s 2.0 s ago here.embedder.0 lake at 80"
    (member,) = [line.split() for line in table.splitlines() if line.startswith("here.embedder.0")]
    assert member == ["here.embedder.0", "10.0.0.1", "2", "7", "0", "2"]
    assert table.splitlines()[-1].split() == ["kafka:vectors", "a" * 16, "b" * 16]


def test_the_page_of_kafka_alone() -> None:
    known = {"application": None, "without_ray": "nothing is known of replicas", "fingerprints": None, "rate": None}
    lines = page.lines(view(seen=seen(lane(0, None), of=NOBODY), judgement=Judgement(("sentence",)), **known))
    assert lines[:3] == ["stalled", "  sentence", "  note: nothing is known of replicas"]
    assert not any("application" in line or "last commit" in line for line in lines)
    (row,) = [line.split() for line in lines if line.startswith("documents/0")]
    assert " ".join(row) == "documents/0 none 100 100 12 s nobody"
    assert page.lines(view(seen=None, judgement=unreachable("no broker"), **known))[:2] == [
        "unreachable",
        "  no broker",
    ]


def test_a_page_with_less_room_shows_who_is_furthest_behind() -> None:
    text = "\n".join(page.lines(view(seen=seen(*(lane(n, 99 - n) for n in range(9)))), 2))
    assert ["documents/8" in text, "documents/7" in text, "documents/6" in text] == [True, True, False]
    assert "and 7 partitions that are no further behind" in text


def test_one_line() -> None:
    assert page.line(view()) == (
        "healthy group=embedder state=Stable members=1 lag=10 lag_s=12.0 records_per_s=1234.5 readers=1 encoders=1/3 "
        "reason=backlog last_commit_s=2.0"
    )
    short = view(seen=None, judgement=unreachable("no broker"), application=None)
    assert page.line(short) == 'unreachable wrong="no broker"'


def test_json_has_every_figure_and_null_for_what_is_not_known() -> None:
    made = json.loads(json.dumps(page.as_json(view(application=None, fixed=1))))
    assert made["replicas"] is made["last_commit_age_seconds"] is None
    made = json.loads(json.dumps(page.as_json(view())))
    assert (made["health"], made["lag"], made["lag_seconds"], made["last_commit_age_seconds"]) == (
        "healthy",
        10,
        12.0,
        2.0,
    )
    assert made["partitions"][0] == {
        "topic": "documents",
        "partition": 0,
        "committed": 90,
        "begin": 0,
        "end": 100,
        "lag": 10,
        "lag_seconds": 12.0,
        "outputs": {"lake": 80},
        "member": CLIENT,
        "last_commit_age_seconds": 2.0,
    }
    assert made["replicas"]["encoders"] == {"wanted": 3, "ready": 1, "starting": 1}
    assert made["replicas"]["readers"] == {"wanted": 2, "ready": 1, "starting": 0}
    assert made["replicas"]["scaling"] == {"reason": "backlog", "target": 3, "need": 4, "for_seconds": 60.0}
    assert made["group"]["members"][0]["partitions"] == ["documents/0", "documents/1"]
    assert made["fingerprints"] == [
        {"output": "kafka:vectors", "settings": "a" * 16, "latest": ["b" * 16], "why": None}
    ]
    assert set(json.loads(json.dumps(page.as_json(view(seen=None))))) == set(made)


# ---- looking


def test_a_look_that_hangs_is_waited_for_again_and_not_begun_anew() -> None:
    go, begun = threading.Event(), []

    def look() -> int:
        begun.append(1)
        go.wait(30)
        return 7

    looks, began = Looks(look, "Kafka at here"), time.monotonic()
    for _ in range(3):
        with pytest.raises(EnvironmentFault, match=r"^Kafka at here has not answered yet, after \d+ s$") as raised:
            looks.within(0.01)
        assert int(str(raised.value).split()[-2]) <= round(time.monotonic() - began), "0, but on a machine that stalls"
    assert looks.under_way
    go.set()
    assert (looks.within(30), looks.under_way, looks.within(30), len(begun)) == (7, False, 7, 2)


def test_what_a_look_raises_is_raised_where_it_is_waited_for() -> None:
    def look() -> int:
        raise TimeoutError("its own")

    looks = Looks(look, "Kafka")
    for _ in range(2):
        with pytest.raises(TimeoutError, match="its own"):
            looks.within(30)
        assert not looks.under_way


class World:
    """Looks that answer from a script, the last answer again and again, and a clock that only sleeping moves."""

    def __init__(self, *script: Any, ray: Any = None, wait_s: float = 10.0, **settings: Any) -> None:
        self.now, self.kafka, self.asked, self.ray = 100.0, list(script), [0, 0], ray
        self.out = io.StringIO()
        given = {
            "source": {"topics": ["documents"], "group": "embedder"},
            "outputs": [{"topic": "vectors"}],
            **settings,
        }
        self.status = Status(
            Settings.model_validate(given),
            Looks(self._kafka, "Kafka"),
            None if ray is None else Looks(self._ray, "Ray"),
            None,
            wait_s=wait_s,
            timeout_s=30.0,
            clock=lambda: self.now,
            sleep=self.sleep,
        )

    def _kafka(self) -> Seen:
        self.asked[0] += 1
        found = self.kafka.pop(0) if len(self.kafka) > 1 else self.kafka[0]
        if isinstance(found, Exception):
            raise found
        return Seen(self.now, found.group, found.lanes, found.why)

    def _ray(self) -> Any:
        self.asked[1] += 1
        if isinstance(self.ray, Exception):
            raise self.ray
        return self.ray

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def once(self) -> tuple[int, dict[str, Any]]:
        code = self.status.once(Shown(self.out, as_json=True))
        return code, json.loads(self.out.getvalue())


def test_where_nothing_waits_one_look_is_enough() -> None:
    world = World(seen(lane(at=100)))
    assert world.once()[0] == 0
    assert (world.asked, world.now) == ([1, 0], 100.0)


def test_a_lag_that_moves_is_seen_at_once() -> None:
    world = World(seen(lane()), seen(lane()), seen(lane(at=95, end=200)))
    code, made = world.once()
    assert (code, made["health"], world.asked[0], world.now) == (0, "healthy", 3, 102.0)
    assert made["records_per_second"] == 5.0


@pytest.mark.parametrize("ray", [None, application()])
def test_a_lag_that_stands_still_is_stalled_after_the_wait(ray: Application | None) -> None:
    world = World(seen(lane()), ray=ray)
    code, made = world.once()
    assert (code, made["health"], world.now) == (1, "stalled", 110.0)
    assert "none was committed for 10 s" in made["wrong"][0]


def test_a_group_that_is_joined_meanwhile_is_well() -> None:
    world = World(seen(lane(), of=NOBODY), seen(lane()), seen(lane(at=95)))
    assert world.once()[0] == 0
    assert World(seen(lane(), of=NOBODY), wait_s=1).once()[0] == 1


@pytest.mark.parametrize("error", [EnvironmentFault("no broker answers"), RetryableError("no broker answers")])
def test_a_broker_that_is_out_of_reach_is_a_sentence(error: Exception) -> None:
    world = World(error)
    code, made = world.once()
    assert (code, made["health"], made["group"], world.asked[0]) == (1, "unreachable", None, 1)
    assert made["wrong"] == [
        "no broker answers; nothing is known of the pipeline until that is mended (stream-embedder check says what it takes)"
    ]


def test_without_ray_there_is_kafkas_half_and_ray_is_not_tried_again_soon() -> None:
    world = World(seen(lane()), ray=EnvironmentFault("Ray is gone"), wait_s=RAY_AGAIN_S - 1)
    code, made = world.once()
    assert (code, made["replicas"], world.asked[1]) == (1, None, 1)
    assert "nothing is known of replicas: Ray is gone" in made["notes"]
    world.now += 2
    world.status._look()
    assert world.asked[1] == 2
    assert "nothing is known of replicas (--ray.address auto" in World(seen(lane(at=100))).once()[1]["notes"][0]


def test_outputs_of_files_have_as_long_as_a_file_takes() -> None:
    files = [{"kind": "parquet", "uri": "file:///lake", "rotate": {"seconds": 20}}]
    assert World(seen(lane()), outputs=files, delivery={"commit_interval_s": 0.5}).once()[1]["health"] == "healthy"
    assert World(seen(lane()), outputs=[*files, {"topic": "vectors"}]).once()[1]["health"] == "stalled"
    assert World(seen(lane()), outputs=files, wait_s=30).once()[1]["health"] == "stalled"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("out", [io.StringIO(), Terminal()], ids=["log", "terminal"])
def test_whoever_watches_gets_a_line_each_period_and_a_terminal_the_page(
    out: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.get_terminal_size", lambda: (40, 12))
    world = World(*(seen(*(lane(n, 90 + look) for n in range(20))) for look in range(3)))
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        world.now += seconds
        if len(slept) == 3:
            raise KeyboardInterrupt

    world.status._sleep = sleep
    with pytest.raises(KeyboardInterrupt):
        world.status.watch(Shown(out, watching=True))
    assert slept == [2.0, 2.0, 2.0]
    text = out.getvalue()
    if not out.isatty():
        lines = text.splitlines()
        assert [line.split(" lag=")[1].split()[0] for line in lines] == ["200", "180", "160"]
        assert "records_per_s=10.0" in lines[1]
        return
    pages = text.split("\x1b[H")[1:]
    assert len(pages) == 3 and all(shown.endswith("\x1b[J") for shown in pages)
    for shown in pages:
        rows = shown.replace("\x1b[K", "").removesuffix("\x1b[J").splitlines()
        assert rows[0] == "healthy" and len(rows) <= 11 and max(map(len, rows)) <= 40


# ---- the process that looks at Ray


def companion(code: str) -> Companion:
    return Companion("there", [sys.executable, "-c", code])


def test_what_the_companion_answers_is_understood() -> None:
    report = {"client": CLIENT, "stats": {"commits_total": 3.0}, "scaling": {"target": 2, "need": 1, "since": 5.0}}
    older = {"client": "another", "stats": {}, "scaling": {"target": 9, "need": 9, "since": 4.0}}
    found = {
        "status": "RUNNING",
        "readers": {"RUNNING": 2},
        "encoders": {"RUNNING": 1, "STARTING": 2, "STOPPING": 4},
        "said": None,
        "reports": [report, older, {"client": "third", "stats": {}, "scaling": None}],
    }
    asked = companion(
        "import json, sys\n"
        "for n, _ in enumerate(sys.stdin):\n"
        f"    print(json.dumps({{'application': {found!r} if n else None}}), flush=True)"
    )
    try:
        assert asked.ask() is None
        application = asked.ask()
        assert application is not None
        assert (application.readers, application.encoders) == (Replicas(2, 0), Replicas(1, 2))
        assert application.scaling == report["scaling"]
        assert application.last_commit is None
    finally:
        asked.close()


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        ('print(\'{"error": "Ray cannot be reached"}\')', "Ray cannot be reached"),
        ("raise SystemExit(3)", "the look at Ray ended"),
        ("print('no JSON')", "the look at Ray ended"),
    ],
)
def test_a_companion_that_ends_is_a_sentence_and_started_again(code: str, sentence: str) -> None:
    asked = companion(code)
    for _ in range(2):
        with pytest.raises(EnvironmentFault, match=sentence):
            asked.ask()
    asked.close()


def test_an_address_where_nothing_is_is_said_without_waiting_for_ray() -> None:
    asked = Companion("127.0.0.1:9")
    with pytest.raises(EnvironmentFault) as caught:
        asked.ask()
    assert str(caught.value).startswith("Ray cannot be reached at 127.0.0.1:9 (ConnectionRefusedError): is it running")
    asked.close()


def test_a_companion_that_hangs_is_ended() -> None:
    asked = companion("import time\ntime.sleep(600)")
    looks = Looks(asked.ask, "Ray")
    with pytest.raises(EnvironmentFault, match="not answered yet"):
        looks.within(0.05)
    deadline = time.monotonic() + 30
    while asked._process is None:
        assert time.monotonic() < deadline
    process = asked._process
    asked.close()
    assert process.poll() is not None


# ---- the group


class Admin:
    def __init__(self, **found: Any) -> None:
        self.found = found

    def describe_groups(self, names: list[str]) -> dict[str, Any]:
        return {names[0]: {"error": None, "group_state": "Stable", "members": [], **self.found}}


def described(**found: Any) -> Group:
    return kafka_groups.describe(Admin(**found), "g")  # type: ignore[arg-type]


def test_a_group_is_described() -> None:
    assigned = {"assigned_partitions": [{"topic": "b", "partitions": [1, 0]}, {"topic": "a", "partitions": [2]}]}
    joining = {"client_id": "z", "client_host": "/10.0.0.2", "member_assignment": ""}
    reading = {"client_id": "c", "client_host": "/10.0.0.1", "member_assignment": assigned}
    found = described(members=[joining, reading])
    partitions = (TopicPartition("a", 2), TopicPartition("b", 0), TopicPartition("b", 1))
    assert found.members == (Member("c", "10.0.0.1", partitions), Member("z", "10.0.0.2"))


def test_a_group_that_is_not_there_or_not_shown() -> None:
    absent = described(error="[Error 69] GroupIdNotFoundError: none", group_state="Dead")
    assert (absent.state, absent.members) == ("Dead", ())
    with pytest.raises(EnvironmentFault, match="grant Read on it"):
        described(error="[Error 30] GroupAuthorizationFailedError: ")
    with pytest.raises(RetryableError, match="NotCoordinatorError"):
        described(error="[Error 16] NotCoordinatorError: ")
