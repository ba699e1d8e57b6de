"""The loop over fakes: every record's outcome is committed once and in order, whatever fails on the way."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import pytest

from tests.fakes import (
    CANARY,
    DIM,
    TOPIC,
    Crash,
    FakeChunker,
    FakeDecoder,
    FakeRenderer,
    FakeSink,
    FakeSource,
    FakeTokenizer,
    Group,
    Pause,
    Rebalance,
    fake_encode,
    record,
    texts_of,
    type_step,
)
from workers import intake, metrics, pool, reader
from workers.checkpoint import Checkpoint
from workers.codecs.base import Decoder
from workers.encoder.quantize import Projection
from workers.errors import EnvironmentFault, PoisonError, RetryableError, StreamEmbedderError
from workers.otel.carrying import Carrying
from workers.outlets import DeadLetterOutlet, FileOutlet, Outlet
from workers.pool import Failure, RetryingPool, timed
from workers.reader import ReaderOptions, StreamReader
from workers.records import Batch, Computed, Document, Message, Position, Record, Tokens, TopicPartition, type_vectors
from workers.settings import LimitSettings
from workers.trace import UNTRACED, Trace
from workers.window import CALL_SECONDS

P0, P1 = TopicPartition(TOPIC, 0), TopicPartition(TOPIC, 1)
OUT, DEAD = "vectors", "documents.dead"
WAIT_S = 15.0


def text(offset: int, value: str, partition: int = 0, key: bytes | None = b"key") -> Record:
    return record(offset, value.encode(), partition=partition, key=key)


def texts(count: int, partition: int = 0, start: int = 0) -> list[Record]:
    return [text(n, f"{partition}-{n:04}" + "x" * (n % 7), partition) for n in range(start, start + count)]


class Stream:
    """A reader over fakes, running in a thread."""

    def __init__(
        self,
        steps: Sequence[type_step],
        *,
        encode: Callable[[Batch], type_vectors] = fake_encode,
        call: Callable[[Batch], Computed] | None = None,
        sink: Callable[[Group], FakeSink] = FakeSink,
        reject_overflow: bool = False,
        limits: LimitSettings | None = None,
        decoder: Decoder | None = None,
        most_tokens: int = 64,
        chunks: bool = False,
        group: Group | None = None,
        files: Callable[[metrics.Metrics], list[FileOutlet]] = lambda _: [],
        at: Callable[[str], None] = lambda _: None,
        trace: Trace = UNTRACED,
    ) -> None:
        self.group = group or Group()
        self.source = FakeSource(self.group, steps)
        self.sink = sink(self.group)
        self.meter = metrics.Metrics()
        self.pool = RetryingPool(
            call or partial(timed, encode),
            dim=DIM,
            canary=CANARY,
            classify=lambda _: Failure.RAISED,
            capacity=lambda: 3,
            meter=self.meter,
            trace=trace,
        )
        renderer = FakeRenderer(OUT)
        told = renderer if trace is UNTRACED else Carrying(renderer, trace, self.sink.refuses)
        outlets = [Outlet(f"kafka:{OUT}", OUT, Projection(DIM), told)]
        lakes = files(self.meter)
        dead = DeadLetterOutlet(DEAD, "f", False)
        self.reader = StreamReader(
            self.source,
            decoder or FakeDecoder(),
            FakeChunker(most_tokens) if chunks else FakeTokenizer(most_tokens),
            self.pool,
            ReaderOptions(
                limits=limits or LimitSettings(),
                max_batch_tokens=64,
                reject_overflow=reject_overflow,
                commit_interval_s=0.02,
                linger_s=0.002,
            ),
            self.meter,
            lambda ledger, lock: Checkpoint(
                ledger, lock, self.source, self.sink, outlets, dead, self.meter, at, files=lakes, trace=trace
            ),
            topics=[f"kafka:{OUT}", f"kafka:{DEAD}"],
            files=[lake.output for lake in lakes],
            trace=trace,
        )
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        try:
            self.reader.run()
        except BaseException as error:
            self.error = error

    def start(self) -> Stream:
        self.thread.start()
        return self

    def wait(self, condition: Callable[[], bool], what: str = "") -> None:
        deadline = time.monotonic() + WAIT_S
        while not condition():
            assert time.monotonic() < deadline, f"not within {WAIT_S:.0f} s: {what}"
            assert self.thread.is_alive() or condition(), f"the reader ended: {self.error!r}"
            time.sleep(0.005)

    def wait_committed(self, count: int) -> None:
        self.wait(lambda: len(self.sink.committed) >= count, f"{count} records, {len(self.sink.committed)} are there")

    def ended(self) -> bool:
        self.thread.join(WAIT_S)
        return not self.thread.is_alive()

    def finish(self) -> None:
        """Drain, and see that the end was a clean one."""
        assert self.reader.drain(2.0)
        assert self.ended()
        assert self.error is None
        assert self.source.left

    def values(self, topic: str = OUT) -> list[str]:
        return [(message.value or b"").decode() for message in self.sink.committed if message.topic == topic]

    def letters(self) -> list[tuple[str, str]]:
        dead = [message for message in self.sink.committed if message.topic == DEAD]
        return [(_header(message, "stage"), _header(message, "class")) for message in dead]


def _header(message: Message, name: str) -> str:
    return (dict(message.headers)[f"embedding-error-{name}"] or b"").decode()


type_stream = Callable[..., Stream]


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch) -> Iterator[type_stream]:
    monkeypatch.setattr(pool, "BACKOFF_S", (0.001, 0.01))
    made: list[Stream] = []

    def make(steps: Sequence[type_step], **options: object) -> Stream:
        made.append(Stream(steps, **options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for each in made:
        each.reader.stop()
        if each.thread.ident is not None:
            assert each.ended(), "stop() must end run()"
        each.pool.close()


def values_of(records: Sequence[Record]) -> list[str]:
    return [(each.value or b"").decode() for each in records]


def slow(seconds: float) -> Callable[[Batch], type_vectors]:
    """Calls that finish out of order."""

    def encode(batch: Batch) -> type_vectors:
        time.sleep(seconds * (int(batch.ids.sum()) % 7) / 7)
        return fake_encode(batch)

    return encode


def test_every_outcome_is_committed_once_and_in_the_order_of_its_partition(stream: type_stream):
    zero, one = texts(300, 0), texts(300, 1)
    running = stream([each for pair in zip(zero, one, strict=True) for each in pair], encode=slow(0.02)).start()
    running.wait_committed(600)
    running.finish()
    by_partition = [[v for v in running.values() if v.startswith(f"{n}-")] for n in (0, 1)]
    assert by_partition == [values_of(zero), values_of(one)]
    assert {p: position.offset for p, position in running.group.positions.items()} == {P0: 300, P1: 300}
    assert running.meter.value(metrics.RECORDS_COMMITTED, outcome="embedding") == 600
    assert running.meter.value(metrics.OUTCOMES_DROPPED) == 0


def test_each_text_gets_its_own_vector(stream: type_stream, monkeypatch: pytest.MonkeyPatch):
    """Texts are sorted by length on their way; rows must find back."""
    from tests.fakes import fake_vector

    seen: dict[str, np.ndarray] = {}
    original = FakeRenderer.render

    def render(self: FakeRenderer, held: Record, embedding: object, vector: np.ndarray, scale: object) -> Message:
        message = original(self, held, embedding, vector)
        seen[(message.value or b"").decode()] = vector
        return message

    monkeypatch.setattr(FakeRenderer, "render", render)
    running = stream(texts(100)).start()
    running.wait_committed(100)
    for value, vector in seen.items():
        np.testing.assert_allclose(vector, fake_vector(value), atol=1e-6)


def test_poison_becomes_dead_letters_and_its_neighbours_are_embedded(stream: type_stream):
    records = texts(30)
    records[3] = text(3, "raise!")
    records[4] = text(4, "nan!")
    records[5] = text(5, "decode!")
    records[6] = text(6, "render!")
    running = stream(records).start()
    running.wait_committed(30)
    running.finish()
    assert running.values() == values_of(records[:3] + records[7:])
    assert running.letters() == [
        ("encode", "encoder_raised"),
        ("encode", "not_finite"),
        ("decode", "invalid"),
        ("output", "unrenderable"),
    ]
    assert [m.value for m in running.sink.committed if m.topic == DEAD] == [each.value for each in records[3:7]]


def test_equal_texts_are_encoded_once_and_each_record_has_its_own_outcome(stream: type_stream):
    """Also where the text is poison: each record that has it is a dead letter."""
    kinds = ("first text", "nan!", "second text", "raise!", "first text")
    records = [text(n, kinds[n % 5], n % 2, key=b"%d" % n) for n in range(200)]
    encoded: list[str] = []

    def encode(batch: Batch) -> type_vectors:
        # Meanwhile all that is in none of the first three calls waits side by side.
        running.wait(lambda: running.meter.value(metrics.RECORDS_PREPARED) == len(records))
        encoded.extend(texts_of(batch))
        return fake_encode(batch)

    running = stream(records, encode=encode).start()
    running.wait_committed(200)
    running.finish()
    sound = [each for each in records if not (each.value or b"").endswith(b"!")]
    assert {(m.key, m.value) for m in running.sink.committed if m.topic == OUT} == {(e.key, e.value) for e in sound}
    assert len(running.values()) == len(sound)
    for partition in (0, 1):
        for topic in (OUT, DEAD):
            keys = [int(m.key or b"") for m in running.sink.committed if m.topic == topic]
            ours = [key for key in keys if key % 2 == partition]
            assert ours == sorted(ours)
    assert Counter(running.letters()) == {("encode", "not_finite"): 40, ("encode", "encoder_raised"): 40}
    # Some were out before the rest came, and those beside a text that raises are tried again; alone they would be 120.
    assert encoded.count("first text") + encoded.count("second text") < 60
    tokens = running.meter.value(metrics.TOKENS_ENCODED), running.meter.value(metrics.TOKENS_SHARED)
    assert sum(tokens) == sum(len(each.value or b"") for each in records)
    assert tokens[0] < tokens[1] / 3
    assert running.meter.value(metrics.TOKENS_PREPARED) == tokens[0]
    assert running.meter.value(metrics.ENCODER_SECONDS) > 0


@pytest.mark.parametrize("scale", [0.0, 0.9, 1.1, np.inf])
def test_a_vector_of_the_wrong_length_is_a_dead_letter(stream: type_stream, scale: float):
    def encode(batch: Batch) -> type_vectors:
        vectors = fake_encode(batch)
        vectors[batch.lengths == 9] *= np.float32(scale)
        return vectors

    running = stream([text(0, "a"), text(1, "ninechars"), text(2, "c")], encode=encode).start()
    running.wait_committed(3)
    assert running.values() == ["a", "c"]
    assert running.letters() == [("encode", "not_finite")]


def test_tombstones_pass_in_order_and_without_a_key_are_dead_letters(stream: type_stream):
    steps = [text(0, "a", key=b"k"), record(1, None, key=b"k"), record(2, None, key=None), text(3, "b", key=b"k")]
    running = stream(steps).start()
    running.wait_committed(4)
    assert [(m.key, m.value) for m in running.sink.committed if m.topic == OUT] == [
        (b"k", b"a"),
        (b"k", None),
        (b"k", b"b"),
    ]
    assert running.letters() == [("decode", "invalid")]


def test_a_document_brings_its_own_prompt(stream: type_stream, monkeypatch: pytest.MonkeyPatch):
    given: list[tuple[str, str | None]] = []
    encode = FakeTokenizer.encode

    def spy(self: FakeTokenizer, texts: Sequence[str], prompts: Sequence[str | None]) -> list[Tokens]:
        given.extend(zip(texts, prompts, strict=True))
        return encode(self, texts, prompts)

    monkeypatch.setattr(FakeTokenizer, "encode", spy)
    running = stream([text(0, "titled:a"), text(1, "b")]).start()
    running.wait_committed(2)
    assert given == [("a", "a title, "), ("b", None)]


def test_a_text_without_a_single_token_is_refused(stream: type_stream):
    running = stream([text(0, "a"), text(1, ""), text(2, "b")]).start()
    running.wait_committed(3)
    assert running.values() == ["a", "b"]
    assert running.letters() == [("tokenize", "no_tokens")]


def test_a_text_that_the_tokenizer_refuses_is_a_dead_letter(stream: type_stream, monkeypatch: pytest.MonkeyPatch):
    encode = FakeTokenizer.encode

    def refusing(
        self: FakeTokenizer, texts: Sequence[str], prompts: Sequence[str | None]
    ) -> Sequence[Tokens | PoisonError]:
        error = PoisonError("tokenize", "tokenizer_raised", "the tokenizer fails")
        return [
            error if text == "x" else found for text, found in zip(texts, encode(self, texts, prompts), strict=True)
        ]

    monkeypatch.setattr(FakeTokenizer, "encode", refusing)
    running = stream([text(0, "a"), text(1, "x"), text(2, "b")]).start()
    running.wait_committed(3)
    assert running.values() == ["a", "b"]
    assert running.letters() == [("tokenize", "tokenizer_raised")]


@pytest.mark.parametrize("reject", [False, True])
def test_a_text_above_the_limit_is_cut_and_counted_or_refused(stream: type_stream, reject: bool):
    running = stream([text(0, "x" * 9), text(1, "y" * 8)], most_tokens=8, reject_overflow=reject).start()
    running.wait_committed(2)
    running.wait(lambda: running.meter.value(metrics.RECORDS_COMMITTED) == 2)
    assert running.values() == (["y" * 8] if reject else ["x" * 9, "y" * 8])
    assert running.letters() == ([("tokenize", "too_long")] if reject else [])
    assert running.meter.value(metrics.TEXTS_TRUNCATED) == (0 if reject else 1)


@pytest.mark.parametrize(
    "limits",
    [LimitSettings(records=10), LimitSettings(bytes=10 * 9)],
    ids=["records", "bytes"],
)
def test_a_limit_pauses_the_source_and_loses_nothing(stream: type_stream, limits: LimitSettings):
    go = threading.Event()

    def encode(batch: Batch) -> type_vectors:
        assert go.wait(WAIT_S)
        return fake_encode(batch)

    records = [text(n, f"{n:06}") for n in range(50)]  # 9 bytes each with the key
    running = stream(records, encode=encode, limits=limits).start()
    running.wait(lambda: running.source.full_polls > 20, "the source is not told to pause")
    assert running.meter.value(metrics.IN_FLIGHT_RECORDS) == 10
    assert running.meter.value(metrics.IN_FLIGHT_BYTES) == 90
    go.set()
    running.wait_committed(50)
    running.finish()
    assert running.values() == values_of(records)


# ---- commits that fail


@pytest.mark.parametrize(
    ("opens", "writes", "commits"),
    [
        ("ok", "fail ok fail ok", "ok"),
        ("ok", "ok", "fail ok fail ok"),
        ("ok", "ok", "happened ok happened ok"),
        ("ok", "ok", "happened fail happened ok"),
        ("ok fail fail ok", "ok", "ok happened ok fail ok"),
        ("fail fail ok", "fail ok", "happened ok"),
    ],
)
def test_whatever_a_commit_comes_to_each_outcome_is_there_once(
    stream: type_stream, opens: str, writes: str, commits: str
):
    zero, one = texts(60, 0), texts(60, 1)
    running = stream(
        [each for pair in zip(zero, one, strict=True) for each in pair],
        sink=lambda group: FakeSink(group, opens=opens.split(), writes=writes.split(), commits=commits.split()),
        limits=LimitSettings(records=12),  # so that there are many commits
    )
    running.source.silent_coordinator = 1
    running.start()
    running.wait_committed(120)
    running.finish()
    assert Counter(running.values()) == Counter(values_of(zero + one))
    assert [v for v in running.values() if v.startswith("0-")] == values_of(zero)
    assert running.meter.value(metrics.RECORDS_COMMITTED) == 120


def test_while_the_sink_is_down_nothing_is_lost_and_nothing_floods(stream: type_stream):
    records = texts(40)
    running = stream(
        records, sink=lambda group: FakeSink(group, writes=("fail",)), limits=LimitSettings(records=20)
    ).start()
    running.wait(lambda: running.sink.calls.count("write") >= 3)
    assert running.sink.committed == []
    assert running.source.full_polls > 0, "the limit holds the source back"
    running.sink.script("write", "ok")
    running.wait_committed(40)
    assert running.values() == values_of(records)
    assert running.letters() == []


# ---- rebalances


def test_of_a_partition_that_is_revoked_in_flight_nothing_is_written(stream: type_stream):
    go = threading.Event()
    sizes: list[int] = []

    def encode(batch: Batch) -> type_vectors:
        sizes.append(len(batch))
        assert go.wait(WAIT_S)
        return fake_encode(batch)

    revoked = Pause()
    running = stream(
        [*texts(20, 0), *texts(20, 1), (before := Pause()), Rebalance([P1], lost=True), revoked], encode=encode
    ).start()
    assert before.reached.wait(WAIT_S)
    running.wait(lambda: len(sizes) >= 3)
    before.go.set()
    assert revoked.reached.wait(WAIT_S)
    go.set()
    running.wait_committed(20)
    time.sleep(0.1)
    revoked.go.set()
    running.finish()
    assert running.values() == values_of(texts(20, 0))
    assert P1 not in running.group.positions
    assert running.meter.value(metrics.OUTCOMES_DROPPED, why="lost") == 20
    stale = running.meter.value(metrics.OUTCOMES_DROPPED, why="stale")
    assert sum(sizes) == 20 + stale < 40, "what was not sent yet is not sent for nothing"


def test_a_partition_that_comes_back_is_read_again_and_written_once(stream: type_stream):
    """What was under way for the first assignment comes back late, and must not count for the second."""
    release, began = threading.Event(), threading.Event()
    first = True
    lock = threading.Lock()

    def encode(batch: Batch) -> type_vectors:
        nonlocal first
        with lock:
            late, first = first, False
        if late:
            began.set()
            assert release.wait(WAIT_S)
        return fake_encode(batch)

    records = texts(40)
    pause = Pause()
    running = stream([*records[:20], pause, Rebalance([P0], back=True), *records[20:]], encode=encode).start()
    assert began.wait(WAIT_S)
    pause.go.set()
    running.wait_committed(40)
    release.set()
    running.finish()
    assert running.values() == values_of(records)


def test_rebalances_at_any_time_write_each_outcome_once(stream: type_stream):
    records = texts(200)
    steps: list[type_step] = []
    for n, each in enumerate(records):
        steps.append(each)
        if n % 17 == 0:
            steps.append(Rebalance([P0], back=True))
    running = stream(
        steps,
        encode=slow(0.005),
        sink=lambda group: FakeSink(group, commits=("ok", "happened", "ok", "fail", "ok", "happened", "ok")),
    ).start()
    running.wait_committed(200)
    running.finish()
    assert running.values() == values_of(records)


def test_a_partition_that_goes_while_its_commit_is_recovered_is_no_error(stream: type_stream):
    gone = Pause()
    running = stream(
        [*texts(5), gone, Rebalance([P0], back=True), *texts(5, start=5)],
        sink=lambda group: FakeSink(group, commits=("happened", "ok")),
    )
    running.source.silent_coordinator = 2
    running.start()
    assert gone.reached.wait(WAIT_S)
    gone.go.set()
    running.wait_committed(10)
    running.finish()
    assert running.values() == values_of(texts(10))


def test_calls_grow_by_what_encoders_compute_and_not_by_how_long_they_are_waited_for(stream: type_stream):
    sent: list[int] = []
    rate = 8_000.0

    def call(batch: Batch) -> Computed:
        sent.append(batch.tokens)
        time.sleep(3 * batch.tokens / rate)
        return Computed(fake_encode(batch), batch.tokens / rate)

    records = [text(n, f"{n:032}") for n in range(500)]
    running = stream(records, call=call).start()
    running.wait_committed(500)
    running.finish()
    assert CALL_SECONDS * rate - 32 <= max(sent) <= CALL_SECONDS * rate, "a third of it, with the wait for them in it"


def test_a_text_that_is_refused_says_nothing_of_how_fast_encoders_are(stream: type_stream):
    sent: list[int] = []
    rate, bad = 2_000.0, "b" * 300

    def call(batch: Batch) -> Computed:
        if bad in texts_of(batch):
            raise RuntimeError
        sent.append(batch.tokens)
        time.sleep(batch.tokens / rate)
        return Computed(fake_encode(batch), batch.tokens / rate)

    records = [text(n, bad if n == 20 else f"{n:032}") for n in range(400)]
    running = stream(records, call=call, most_tokens=300).start()
    running.wait_committed(400)
    running.finish()
    assert max(sent) <= CALL_SECONDS * rate


# ---- ends


def test_a_drain_commits_what_was_sent_and_gives_up_the_rest(stream: type_stream):
    go, out = threading.Event(), threading.Event()

    def encode(batch: Batch) -> type_vectors:
        out.set()
        assert go.wait(WAIT_S)
        return fake_encode(batch)

    records = [text(n, f"{n:064}") for n in range(200)]  # each a call of its own, three calls at a time
    running = stream(records, encode=encode).start()
    assert out.wait(WAIT_S)
    assert running.source.handed_over.wait(WAIT_S)
    running.wait(lambda: running.meter.value(metrics.CALLS_IN_FLIGHT) == 3)
    drained: list[bool] = []
    draining = threading.Thread(target=lambda: drained.append(running.reader.drain(5.0)))
    draining.start()
    running.wait(running.reader._draining.is_set)
    time.sleep(0.1)
    assert running.thread.is_alive(), "it waits for the calls that are out"
    go.set()
    draining.join(WAIT_S)
    assert drained == [True]
    assert running.ended()
    assert running.error is None
    assert len(running.sink.committed) == 3
    assert running.group.positions[P0].offset == 3, "the rest is read again"
    assert running.reader.left == 197
    assert running.source.left


def test_a_drain_with_nothing_in_flight_is_quick(stream: type_stream):
    running = stream(texts(3)).start()
    running.wait_committed(3)
    started = time.monotonic()
    assert running.reader.drain(WAIT_S)
    assert time.monotonic() - started < WAIT_S / 2
    running.finish()
    assert running.reader.left == 0


def test_a_drain_does_not_wait_for_an_encoder_for_ever(stream: type_stream):
    go, out = threading.Event(), threading.Event()

    def encode(batch: Batch) -> type_vectors:
        out.set()
        go.wait(WAIT_S)
        return fake_encode(batch)

    running = stream(texts(10), encode=encode).start()
    assert out.wait(WAIT_S) and running.source.handed_over.wait(WAIT_S)
    started = time.monotonic()
    assert running.reader.drain(0.3)
    assert 0.3 <= time.monotonic() - started < 3
    assert running.ended()
    assert running.error is None
    assert running.sink.committed == []
    assert running.reader.left == 10
    go.set()


@pytest.mark.parametrize("down", ["write", "commit", "open"])
def test_a_drain_while_the_sink_is_down_ends_in_bounded_time(stream: type_stream, down: str):
    running = stream(texts(10)).start()
    running.wait_committed(10)
    running.sink.script(down, "fail")
    if down == "open":
        running.sink.script("write", "fail")
    running.reader._intake.received(texts(5, start=10))  # as the poll thread would
    started = time.monotonic()
    assert running.reader.drain(0.5)
    assert time.monotonic() - started < 5
    assert running.ended()
    assert running.error is None
    assert running.values() == values_of(texts(10))
    assert running.reader.left == 5


def test_a_drain_before_the_sink_was_ever_open_ends_too(stream: type_stream):
    running = stream(texts(10), sink=lambda group: FakeSink(group, opens=("fail",))).start()
    running.wait(lambda: "open" in running.sink.calls)
    assert running.reader.drain(0.2)
    assert running.ended()
    assert running.error is None


def test_what_breaks_the_poll_thread_ends_the_reader_with_it(stream: type_stream):
    running = stream([*texts(3), Crash(StreamEmbedderError("Kafka refuses us"))]).start()
    assert running.ended()
    assert str(running.error) == "Kafka refuses us"
    with pytest.raises(StreamEmbedderError, match="Kafka refuses us"):
        running.reader.check()


def test_a_defect_in_the_work_thread_ends_the_reader_without_what_a_library_quotes(
    stream: type_stream, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def quotes(*_: object) -> None:
        raise ValueError("could not convert 'text of a user'")

    monkeypatch.setattr(FakeTokenizer, "encode", quotes)
    running = stream(texts(1)).start()
    assert running.ended()
    assert isinstance(running.error, StreamEmbedderError)
    said = str(running.error) + caplog.text
    assert "a defect of this program: ValueError at " in said and ": ValueError at" in caplog.text
    assert "quotes" in said and "of a user" not in said


def test_a_defect_in_the_pool_ends_the_reader_and_is_not_swallowed(
    stream: type_stream, monkeypatch: pytest.MonkeyPatch
):
    """Its texts would otherwise stay in flight for ever, and their partition with them."""
    running = stream(texts(1))
    monkeypatch.setattr(running.pool, "_encode", lambda *_: 1 / 0)
    running.start()
    assert running.ended()
    assert "ZeroDivisionError" in str(running.error)


def test_a_stop_under_load_is_clean(stream: type_stream):
    """The pool closes while the work thread sends; that is no failure."""
    for _ in range(5):
        running = stream(texts(300), encode=slow(0.003)).start()
        running.wait_committed(20)
        running.reader.stop()
        assert running.ended()
        assert running.error is None
        values = running.values()
        assert values == values_of(texts(300))[: len(values)]


def test_check_raises_when_nothing_was_polled_for_long(stream: type_stream, monkeypatch: pytest.MonkeyPatch):
    running = stream([stuck := Pause()]).start()
    assert stuck.reached.wait(WAIT_S)
    running.reader.check()
    monkeypatch.setattr(reader, "STALL_S", -1.0)
    with pytest.raises(StreamEmbedderError, match="has not polled"):
        running.reader.check()
    stuck.go.set()
    running.finish()
    running.reader.check()


def test_a_successor_goes_on_where_a_stopped_reader_had_committed(stream: type_stream):
    records = texts(120)
    first = stream(records, encode=slow(0.01), limits=LimitSettings(records=30)).start()
    first.wait_committed(10)
    first.reader.stop()
    assert first.ended()
    done = len(first.values())
    second = stream(records)
    second.group.positions[P0] = first.group.positions.get(P0, Position(0))
    second.start()
    second.wait_committed(120 - done)
    second.finish()
    assert first.values() + second.values() == values_of(records)


class NeedsRegistry(FakeDecoder):
    """Cannot decode ``needs…`` while the registry is down."""

    def __init__(self, error: Exception | None = None) -> None:
        self.down = threading.Event()
        self.down.set()
        self.error = error or RetryableError("the schema registry does not answer")

    def decode(self, record: Record) -> Document:
        if self.down.is_set() and (record.value or b"").startswith(b"needs"):
            raise self.error
        return super().decode(record)


@pytest.mark.parametrize("error", [None, EnvironmentFault("the token cannot be read")])
def test_records_whose_schema_is_out_of_reach_wait_in_order(
    stream: type_stream, monkeypatch: pytest.MonkeyPatch, error: Exception | None
):
    monkeypatch.setattr(intake, "SHORTEST_WAIT_S", 0.01)
    monkeypatch.setattr(intake, "LONGEST_WAIT_S", 0.03)
    decoder = NeedsRegistry(error)
    records = [*texts(20), text(20, "needs a schema"), *texts(40, start=21)]
    running = stream(records, decoder=decoder, limits=LimitSettings(records=15)).start()
    running.wait_committed(20)
    running.wait(lambda: running.meter.value(metrics.DECODING_POSTPONED) >= 3 and running.source.full_polls > 0)
    assert running.values() == values_of(records[:20]), "what came before goes on; what comes after waits, and pauses"
    running.reader.check()
    decoder.down.clear()
    running.wait_committed(61)
    running.finish()
    assert running.values() == values_of(records)
    assert not running.letters()


def test_a_drain_does_not_wait_for_a_schema(stream: type_stream):
    records = [*texts(5), text(5, "needs a schema")]
    running = stream(records, decoder=NeedsRegistry()).start()
    running.wait_committed(5)
    running.wait(lambda: running.meter.value(metrics.DECODING_POSTPONED) > 0)
    running.finish()
    assert running.values() == values_of(records[:5])
    assert running.group.positions[P0].offset == 5


def test_a_partition_that_goes_while_its_schema_is_waited_for_is_read_again(
    stream: type_stream, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(intake, "SHORTEST_WAIT_S", 0.01)
    decoder, pause = NeedsRegistry(), Pause()
    records = [text(0, "needs a schema"), *texts(5, start=1)]
    running = stream([*records, pause, Rebalance([P0], back=True)], decoder=decoder).start()
    running.wait(lambda: pause.reached.is_set() and running.meter.value(metrics.DECODING_POSTPONED) > 0)
    pause.go.set()
    running.wait(running.source.handed_over.is_set)
    decoder.down.clear()
    running.wait_committed(6)
    running.finish()
    assert running.values() == values_of(records)


@pytest.mark.parametrize("gone", [False, True])
def test_what_waits_for_its_schema_goes_with_its_assignment(gone: bool):
    """It is read again, and would be there twice."""
    held = intake.Intake([], [], LimitSettings(), metrics.Metrics())
    held.assigned(P0, 1, Position(0))
    held.received(texts(3))
    with held.lock:
        records = held.take()
    with held.holding(records):
        if gone:
            held.revoked([P0], lost=False)
        raise RetryableError("the schema registry does not answer")
    assert list(held.inbox) == ([] if gone else [records])
    assert not held.ready, "not before its time"
