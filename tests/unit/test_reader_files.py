"""The loop with an output of files beside the topic: each of the two has every outcome once, whatever dies between them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.fakes import DIM, FakeSink, Group, Pause, Rebalance, type_step
from tests.unit.test_files import failing
from tests.unit.test_reader import DEAD, OUT, P0, Stream, text, texts
from workers import intake, metrics
from workers.codecs.parquet import ParquetRenderer
from workers.encoder.quantize import Projection
from workers.outlets import FileOutlet
from workers.records import Position, Record
from workers.settings import LimitSettings, Rotation
from workers.sinks.chain import Chain
from workers.sinks.files import FileOutput

RENDERER = ParquetRenderer(DIM, "float32", "m", "f" * 16)


class Lake:
    """Streams that write into one folder, one after the other, as one group."""

    def __init__(self, folder: Path, *names: str, **rotation: Any) -> None:
        self.folder = folder
        self.names = names or ("lake",)
        self.group = Group()
        self.rotation = Rotation(**{"rows": 1 << 30, "seconds": 3600.0, **rotation})
        self.chains = {name: failing(folder / name) for name in self.names}

    def stream(self, steps: Sequence[type_step], **options: Any) -> Stream:
        def outlets(meter: metrics.Metrics) -> list[FileOutlet]:
            return [
                FileOutlet(Projection(DIM), RENDERER, self._output(name, chain, meter))
                for name, chain in self.chains.items()
            ]

        return Stream(steps, group=self.group, files=outlets, **options)

    def _output(self, name: str, chain: Chain, meter: metrics.Metrics) -> FileOutput:
        return FileOutput(name, f"{name}#f", chain, RENDERER, self.rotation, most_bytes=1 << 20, meter=meter)

    def ids(self, name: str = "lake") -> list[str]:
        files = sorted((self.folder / name).rglob("*.parquet"))
        return [row["id"] for file in files for row in pq.read_table(file, partitioning=None).to_pylist()]


def ids(records: Sequence[Record]) -> list[str]:
    return [(record.value or b"").decode() for record in records]


def rows_wait(stream: Stream, count: int) -> bool:
    """Whether so many rows wait for their file, and nothing else is in flight."""
    return stream.reader._intake.ledger.records == 0 and stream.reader._intake.held() == count


def test_both_outputs_have_everything_after_a_drain_and_the_group_says_so(tmp_path: Path):
    lake, records = Lake(tmp_path), texts(100)
    stream = lake.stream(records).start()
    stream.wait_committed(100)
    assert lake.ids() == [], "no file is full"
    assert lake.group.positions[P0].offset == 0, "the file's output has nothing yet"
    stream.finish()
    assert lake.ids() == stream.values() == ids(records)
    assert lake.group.positions[P0] == Position(100, {f"kafka:{OUT}": 100, f"kafka:{DEAD}": 100, "lake#f": 100})


def test_files_that_fill_move_the_group_on_without_new_records(tmp_path: Path):
    lake = Lake(tmp_path, rows=1)  # a file takes all rows that wait: with more, the last ones might not fill theirs
    stream = lake.stream(texts(100)).start()
    stream.wait(lambda: lake.group.positions.get(P0, Position(0)).offset == 100)
    assert len(lake.ids()) == 100
    stream.finish()


def test_what_the_topic_has_and_the_files_have_not_is_read_again_for_the_files_alone(tmp_path: Path):
    lake, records = Lake(tmp_path), texts(60)
    first = lake.stream(records[:40]).start()
    first.wait_committed(40)
    first.reader.stop()  # as kill -9 would: rows that wait are gone
    assert first.ended() and lake.ids() == []
    assert first.reader.left == 40
    second = lake.stream(records).start()
    second.wait_committed(20)
    second.finish()
    assert lake.ids() == ids(records)
    assert first.values() + second.values() == ids(records), "the topic has each once"
    assert [stream.meter.value(metrics.RECORDS_COMMITTED) for stream in (first, second)] == [40, 20]
    assert second.reader.left == 0


def test_a_file_that_was_put_before_anybody_heard_of_it_is_not_put_again(tmp_path: Path):
    """The reader dies between the file and the commit that tells of it."""
    lake, records = Lake(tmp_path, rows=20), texts(30)
    first = lake.stream(records[:20])

    def silent_once_all_is_committed() -> None:
        if len(first.sink.committed) == 20:
            first.sink.script("commit", "fail")

    first.sink.on_commit = silent_once_all_is_committed
    first.start().wait(lambda: len(lake.ids()) == 20)
    first.reader.stop()
    assert first.ended()
    assert lake.group.positions[P0].outputs["lake#f"] == 0
    second = lake.stream(records).start()
    second.wait(lambda: len(first.values()) + len(second.values()) == 30)
    second.finish()
    assert lake.ids() == first.values() + second.values() == ids(records)


def test_dead_letters_and_deletions_are_in_the_chain_as_nothing_and_as_rows(tmp_path: Path):
    lake = Lake(tmp_path)
    steps = [
        text(0, "a"),
        text(1, "decode!"),
        text(2, "b"),
        Record(text(3, "").origin, b"gone", None, 0),
        text(4, "nan!"),
    ]
    stream = lake.stream(steps).start()
    stream.wait_committed(5)
    stream.finish()
    files = sorted(tmp_path.rglob("*.parquet"))
    table = [row for file in files for row in pq.read_table(file, partitioning=None).to_pylist()]
    assert [(row["offset"], row["id"], row["deleted"]) for row in table] == [
        (0, "a", False),
        (2, "b", False),
        (3, "gone", True),
    ]
    assert lake.group.positions[P0].offset == 5
    assert stream.letters() == [("decode", "invalid"), ("encode", "not_finite")]


def test_outputs_that_are_files_do_not_wait_for_each_other(tmp_path: Path):
    lake, records = Lake(tmp_path, "quick", "slow", rows=1), texts(50)
    lake.chains["slow"].script = ["ok"] + ["down"] * 10_000
    stream = lake.stream(records).start()
    stream.wait_committed(50)
    stream.wait(lambda: len(lake.ids("quick")) == 50)
    assert lake.ids("slow") == [] and lake.group.positions[P0].offset == 0
    lake.chains["slow"].script = []
    stream.finish()
    assert lake.ids("slow") == lake.ids("quick") == ids(records)


def test_outputs_that_are_at_different_places_when_all_dies_have_each_record_once(tmp_path: Path):
    lake, records = Lake(tmp_path, "quick", "slow", rows=7), texts(50)
    lake.chains["slow"].script = ["ok"] + ["down"] * 10_000
    first = lake.stream(records[:40]).start()
    first.wait_committed(40)
    first.wait(lambda: len(lake.ids("quick")) > 0)
    first.reader.stop()
    assert first.ended() and lake.ids("slow") == []
    lake.chains["slow"].script = []
    second = lake.stream(records).start()
    second.wait_committed(10)
    second.finish()
    assert lake.ids("slow") == lake.ids("quick") == ids(records)
    assert first.values() + second.values() == ids(records)


def test_a_store_that_is_away_pauses_reading_at_the_limit_and_nothing_is_lost(tmp_path: Path):
    lake, records = Lake(tmp_path, bytes=2000), texts(400)
    stream = lake.stream(records, limits=LimitSettings(records=50, bytes=20_000)).start()
    stream.wait(lambda: bool(lake.group.positions))
    lake.chains["lake"].script = ["down"] * 10_000
    stream.wait(lambda: stream.source.full_polls > 20, "reading pauses")
    held = len(stream.values())
    assert held < 400
    lake.chains["lake"].script = []
    stream.wait_committed(400)
    stream.finish()
    assert lake.ids() == stream.values() == ids(records)


def test_a_chain_that_cannot_be_looked_up_is_waited_for(tmp_path: Path):
    lake, records = Lake(tmp_path), texts(20)
    lake.chains["lake"].script = ["down"] * 3
    stream = lake.stream(records).start()
    stream.wait_committed(20)
    stream.finish()
    assert lake.ids() == ids(records)


def test_a_partition_that_is_lost_takes_along_what_waits_and_it_is_read_again(tmp_path: Path):
    lake, records = Lake(tmp_path), texts(30)
    pause = Pause()
    stream = lake.stream([*records, pause, Rebalance([P0], back=True, lost=True)]).start()
    stream.wait_committed(30)
    pause.go.set()
    stream.wait(stream.source.handed_over.is_set)
    stream.wait(lambda: rows_wait(stream, 30), "all are read and settled again")
    assert stream.meter.value(metrics.RECORDS_COMMITTED) == 30, "each is counted once"
    assert lake.ids() == []
    stream.finish()
    assert lake.ids() == stream.values() == ids(records)


def test_a_partition_that_is_revoked_leaves_its_files_behind(tmp_path: Path):
    lake, records = Lake(tmp_path), texts(30)
    pause = Pause()
    stream = lake.stream([*records, pause, Rebalance([P0])]).start()
    stream.wait(lambda: stream.meter.value(metrics.RECORDS_COMMITTED) == 30, "all rows are handed over")
    pause.go.set()
    stream.wait(stream.source.handed_over.is_set)
    assert lake.ids() == ids(records), "nobody has to embed them again"
    stream.finish()


def test_a_revocation_does_not_wait_long_for_a_store_that_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(intake, "PARTING_S", 0.2)
    lake, records = Lake(tmp_path), texts(30)
    pause = Pause()
    stream = lake.stream([*records, pause, Rebalance([P0], back=True)]).start()
    stream.wait(lambda: stream.meter.value(metrics.RECORDS_COMMITTED) == 30, "all rows are handed over")
    lake.chains["lake"].script = ["down"] * 10_000
    pause.go.set()
    # What the source has is gone before its files are parted with; the ledger's end comes after them.
    stream.wait(lambda: stream.reader._intake.ledger.epochs.get(P0) != 1, "it is taken away")
    lake.chains["lake"].script = []
    stream.wait(stream.source.handed_over.is_set)
    stream.wait(lambda: rows_wait(stream, 30))
    stream.finish()
    assert lake.ids() == stream.values() == ids(records)


def test_a_commit_in_doubt_that_had_happened_gives_the_files_their_rows(tmp_path: Path):
    lake, records = Lake(tmp_path), texts(30)
    stream = lake.stream(records, sink=lambda group: FakeSink(group, commits=("happened", "ok"))).start()
    stream.wait_committed(30)
    stream.finish()
    assert lake.ids() == stream.values() == ids(records)


def test_a_chain_of_another_group_ends_the_reader(tmp_path: Path):
    lake = Lake(tmp_path)
    stream = lake.stream(texts(5)).start()
    stream.wait_committed(5)
    stream.finish()
    lake.group = Group()
    other = lake.chains["lake"]
    other._group = "other"
    second = lake.stream(texts(5)).start()
    assert second.ended()
    assert "was written by group g, and ours is other" in str(second.error)
