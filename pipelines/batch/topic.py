"""Topics as the input of a batch job: offsets that are fixed once, and cut into pieces and parts by their numbers.

Comes in: settings, and the outputs, which keep what was fixed. Goes out: pieces, and a piece's records part by part. Never
here: a consumer group, or an offset that is committed.

What a job reads is fixed when it starts for the first time, as ``_offsets-<topic>.json`` beside the files of each output: with
the same settings it goes on with those. A part is a range of offsets, and not a number of records: whatever is compacted or
deleted between two runs, each record belongs to the same part.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from pipelines.batch.outlets import BatchOutlet, batch_outlets
from pipelines.batch.rows import Part
from pipelines.model import Model
from pipelines.topic_ranges import PartitionRange, Ranges, batch_ranges, named_topics
from pipelines.windows import Windows
from workers.errors import EnvironmentFault, SettingsError
from workers.kafka_ranges import RangeReader
from workers.kafka_topics import TopicIds
from workers.object_store import ObjectStore
from workers.records import Record, TopicPartition
from workers.settings import BatchSettings, KafkaSettings, ParquetOutput, Settings

# Read one after another without a seek in between; few enough that the last pieces of a job end together.
PIECE_PARTS = 4
# How heavy records are is seen in so many places of so many offsets.
_LOOKS, _LOOK_OFFSETS = 20, 200
_LOOK_BYTES = 256 << 10


@dataclass(frozen=True, slots=True)
class TopicPiece:
    """Offsets ``start`` to ``stop`` (exclusive) of a partition, in parts of ``step`` offsets.

    ``digest`` names the partition in the names of its files, ``version`` what was fixed. ``weight``: how much work it is, as
    :attr:`pipelines.batch.pieces.Piece.weight`, and here in offsets.
    """

    partition: TopicPartition
    start: int
    stop: int
    step: int
    digest: str
    version: str

    @property
    def weight(self) -> int:
        """Its offsets."""
        return self.stop - self.start

    @property
    def uri(self) -> str:
        """Whose records they are."""
        return str(self.partition)

    def __str__(self) -> str:
        return f"{self.partition} from offset {self.start}"


def topic_pieces(settings: Settings, outlets: Sequence[BatchOutlet]) -> list[TopicPiece]:
    """The pieces of the source's topics, by what was fixed when the job first started, which may be now.

    Raises:
        EnvironmentFault: a topic is not there, has no such offsets, was made anew, or was read with other settings before; or
            an output's store does not answer.
        RetryableError: the broker does not answer now.
    """
    topics = named_topics(settings)
    ids = TopicIds(settings.kafka)
    fixed = {name: _stored(outlets, name) for name in topics}
    if any(content is None for content in fixed.values()):
        ranges = batch_ranges(settings)
        for name in topics:
            if fixed[name] is None:
                content = _content(settings, name, ids(name), ranges)
                fixed[name] = _keep(outlets[:1], name, content)  # another job may have been first
    pieces: list[TopicPiece] = []
    for name, stored in fixed.items():
        assert stored is not None  # it was there, or has just been put
        found = _understood(stored, outlets[0], name)
        _require_same(settings, found, ids(name), outlets[0], name)
        _keep(outlets, name, stored)
        pieces += _cut(name, found, hashlib.sha256(stored).hexdigest()[:8])
    return pieces


def batch_ends(settings: Settings) -> dict[TopicPartition, int]:
    """Where the job of these settings ends in each partition that it reads: the first offset that is not its own.

    Raises:
        SettingsError: no output is of files.
        EnvironmentFault: no such job has been started, or a topic was made anew since; or the store does not answer.
        RetryableError: the broker does not answer now.
    """
    files = tuple(output for output in settings.outputs if isinstance(output, ParquetOutput))
    if not files:
        raise SettingsError("a batch has outputs of kind parquet, and these settings have none")
    (outlet, *_) = batch_outlets(Model.open(settings.model_copy(update={"outputs": files})))
    store, ids = ObjectStore(outlet.location), TopicIds(settings.kafka)
    ends: dict[TopicPartition, int] = {}
    for name in named_topics(settings):
        stored = _read(store, _path(outlet, name))
        if stored is None:
            raise EnvironmentFault(
                f"{outlet.location} holds nothing of a batch of these settings over topic {name}: run stream-embedder batch first"
            )
        found = _understood(stored, outlet, name)
        _require_same(settings, found, ids(name), outlet, name)
        ends.update((TopicPartition(name, int(number)), stop) for number, (_, stop) in found["offsets"].items())
    return ends


def topic_parts(piece: TopicPiece, reader: RangeReader, wanted: Callable[[int], bool]) -> Iterator[Part]:
    """A piece's parts; those that are not ``wanted``, by their number, are not read, and have no records.

    Errors as :meth:`workers.kafka_ranges.RangeReader.read`.
    """
    for number, start in enumerate(range(piece.start, piece.stop, piece.step)):
        stop = min(start + piece.step, piece.stop)
        rows: list[Record] = []
        gone = 0
        if wanted(number):
            for records in reader.read(piece.partition, start, stop):
                rows += records
            gone = reader.gone
        share = (stop - start) / (piece.stop - piece.start)
        yield Part(number, rows, last=stop == piece.stop, share=share, gone=gone)


def _cut(topic: str, found: Mapping[str, Any], version: str) -> Iterator[TopicPiece]:
    step = found["step"]
    for number, (start, stop) in sorted((int(name), bounds) for name, bounds in found["offsets"].items()):
        partition = TopicPartition(topic, number)
        digest = _digest(f"kafka:{partition}")
        for at in range(start, stop, step * PIECE_PARTS):
            yield TopicPiece(partition, at, min(at + step * PIECE_PARTS, stop), step, digest, version)


# ---- what was fixed


def _content(settings: Settings, topic: str, topic_id: str, ranges: Ranges) -> bytes:
    mine = [each for each in ranges.partitions if each.partition.topic == topic]
    told = {
        "v": 1,
        "topic": topic,
        "id": topic_id,
        "read": _reading(settings, topic),
        "step": _step(mine, settings.batch, settings.kafka),
        "offsets": {str(each.partition.partition): [each.start, each.stop] for each in mine},
    }
    return orjson.dumps(told, option=orjson.OPT_INDENT_2)


def _reading(settings: Settings, topic: str) -> dict[str, str]:
    """What decides which records are read, and as what; the rest is in the folder's name."""
    source = settings.of(settings.source.mapping_of(topic)).source
    return {
        "batch.start": settings.batch.start,
        "batch.end": settings.batch.end,
        "source.format": source.format,
        "source.envelope": source.envelope,
    }


def _step(ranges: Sequence[PartitionRange], batch: BatchSettings, kafka: KafkaSettings) -> int:
    """Offsets of a part: ``batch.rows``, or as many as have ``batch.bytes`` where records are heaviest."""
    windows = Windows([(each.start, each.stop) for each in ranges], _LOOK_OFFSETS)
    heaviest = 0.0
    with contextlib.closing(RangeReader(kafka, fetch_bytes=_LOOK_BYTES)) as reader:
        for window in windows.draw(_LOOKS):
            read = reader.read(ranges[window.part].partition, window.start, window.stop)
            held = sum(record.size for records in read for record in records)
            heaviest = max(heaviest, held / window.width)
    return max(1, min(batch.rows, int(batch.bytes / heaviest))) if heaviest else batch.rows


def _require_same(settings: Settings, found: Mapping[str, Any], topic_id: str, outlet: BatchOutlet, topic: str) -> None:
    """Refuse to add to what other settings, or another topic of the name, have made: its rows would be there twice."""
    path = f"{outlet.location}/{_path(outlet, topic)}"
    if found["id"] != topic_id:
        raise EnvironmentFault(
            f"{path} is of a topic {topic} that was deleted and made anew since: remove that folder, or choose another uri"
        )
    for name, value in _reading(settings, topic).items():
        if (before := found["read"].get(name)) != value:
            raise EnvironmentFault(
                f"{path} says that topic {topic} was read with {name} {before}, and it is {value} now, so rows would be there "
                f"twice: set it as it was to go on, or choose another uri"
            )


def _stored(outlets: Sequence[BatchOutlet], topic: str) -> bytes | None:
    """What was fixed of a topic, by the first output that knows it."""
    for outlet in outlets:
        if (content := _read(outlet.store, _path(outlet, topic))) is not None:
            return content
    return None


def _keep(outlets: Sequence[BatchOutlet], topic: str, content: bytes) -> bytes:
    """Store it in each output where nothing is; what is there then."""
    there = content
    for outlet in outlets:
        path = _path(outlet, topic)
        if not outlet.store.put_if_absent(path, content):
            there = _read(outlet.store, path) or content
            if there != content and len(outlets) > 1:
                raise EnvironmentFault(
                    f"{outlet.location}/{path} says other offsets of topic {topic} than {outlets[0].location} does: give one of "
                    "these outputs another uri"
                )
    return there


def _read(store: ObjectStore, path: str) -> bytes | None:
    stored = store.stat(path)
    return None if stored is None else bytes(store.read(stored, 0, stored.size))


def _understood(content: bytes, outlet: BatchOutlet, topic: str) -> Mapping[str, Any]:
    try:
        found: Mapping[str, Any] = orjson.loads(content)
        match found:
            case {"v": 1, "id": str(), "read": dict(), "step": int(), "offsets": dict()}:
                return found
    except ValueError:
        pass
    raise EnvironmentFault(
        f"{outlet.location}/{_path(outlet, topic)} is no file that this version of batch has written: move it away"
    )


def _path(outlet: BatchOutlet, topic: str) -> str:
    # Engines pass over what begins with an underscore.
    return f"{outlet.folder}/_offsets-{_digest(f'kafka:{topic}')}.json"


def _digest(told: str) -> str:
    return hashlib.sha256(told.encode()).hexdigest()[:16]
