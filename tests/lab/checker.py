"""Compares what came out with what went in: lost, twice, out of order, altered, refused wrongly.

Comes in: the source topic as it is, and outputs as a read_committed reader and a plain glob see them. Goes out: findings.
Never here: a guess of what went in: the source topic says that, and the generator's list what must become of it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import tokenizers

from pipelines.stub import vectors_of
from tests.lab.documents import NUMBER, Document
from workers.records import Batch, type_ids, type_vectors

KINDS = ("lost", "twice", "out of order", "altered", "refused wrongly")
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Sent:
    """A record of the source topic, and what must become of it."""

    document: Document
    partition: int
    offset: int
    timestamp: int


@dataclass(frozen=True, slots=True)
class Found:
    """An outcome somewhere in an output: where it lies, and of which record it is."""

    number: int
    partition: int
    place: int
    content: Any


@dataclass
class Findings:
    """How many of each kind, with an example or three."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    def add(self, kind: str, where: str, records: Iterable[Any], note: str = "") -> None:
        """``records`` are of that kind in the output ``where``."""
        found = list(records)
        if found:
            self.counts[kind] += len(found)
            self.examples.append(f"{where}: {len(found)} {kind}, such as {found[:_SHOWN]}{note}")

    def __bool__(self) -> bool:
        return bool(self.counts)


class Oracle:
    """What the stub encoder makes of a text, by the model's own tokenizer file."""

    def __init__(self, folder: Path, max_tokens: int) -> None:
        self._tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._max = max_tokens

    def __call__(self, texts: Sequence[str], dim: int) -> tuple[type_vectors, list[int], list[bool]]:
        """Vectors float32 [n, dim], kept tokens, and whether each text was cut."""
        ids: list[type_ids] = []
        cut = []
        for encoding in self._tokenizer.encode_batch(list(texts)):
            whole = np.asarray(encoding.ids, np.int32)
            cut.append(len(whole) > self._max)
            # A text that is cut keeps its last special token.
            ids.append(np.append(whole[: self._max - 1], whole[-1:]) if cut[-1] else whole)
        return vectors_of(Batch.of(ids), dim), [len(each) for each in ids], cut


def source(records: Iterable[Any], documents: Sequence[Document], findings: Findings) -> dict[int, Sent]:
    """The source topic's records by number; one that is not as it was made is the lab's own fault, and said so."""
    sent: dict[int, Sent] = {}
    for record in records:
        number = number_of(record.headers)
        document = documents[number]
        if number in sent or (record.key, record.value) != (document.key, document.value):
            findings.add("altered", "the source itself", [number])
        sent[number] = Sent(document, record.partition, record.offset, record.timestamp)
    findings.add("lost", "the source itself", set(range(len(documents))) - set(sent))
    return sent


def number_of(headers: Iterable[tuple[str, bytes]]) -> int:
    """The number in a record's headers."""
    return next(int(value) for name, value in headers if name == NUMBER)


def check_output(
    name: str,
    sent: Mapping[int, Sent],
    found: Sequence[Found],
    same: Callable[[Sent, Found], bool],
    wanted: Callable[[Document], bool],
    findings: Findings,
) -> None:
    """Each wanted record once, as it must be, and those of a source partition in their order.

    ``found`` is in the order of each output partition; ``same`` compares an outcome with its record.
    """
    counts = Counter(each.number for each in found)
    expected = {number for number, each in sent.items() if wanted(each.document)}
    findings.add("lost", name, sorted(expected - set(counts)))
    findings.add("twice", name, sorted(number for number, count in counts.items() if count > 1))
    findings.add("refused wrongly", name, sorted(set(counts) - expected))
    findings.add("altered", name, [each.number for each in found if not same(sent[each.number], each)])
    last: dict[tuple[int, int], int] = defaultdict(lambda: -1)
    behind = []
    for each in found:
        origin = sent[each.number]
        way = (origin.partition, each.partition)
        if origin.offset < last[way]:
            behind.append(each.number)
        last[way] = max(last[way], origin.offset)
    findings.add("out of order", name, behind)


class Vectors:
    """What the vectors of an output must be, computed once for all records."""

    def __init__(self, sent: Mapping[int, Sent], oracle: Oracle, width: int, dim: int) -> None:
        """``width``: of the model's vectors; ``dim``: of the output's."""
        good = [each for each in sent.values() if each.document.outcome == "vector"]
        vectors, self._tokens, self._cut = oracle([each.document.text for each in good], width)
        # Cut, and scaled to unit length again: exact, since all numbers have one size.
        self._vectors = np.sign(vectors[:, :dim]) / np.float32(np.sqrt(dim))
        self._rows = {each.document.number: row for row, each in enumerate(good)}

    def holds(self, number: int, vector: np.ndarray[Any, Any], tokens: int, cut: bool) -> bool:
        """Whether an output's vector and its counts are the record's."""
        row = self._rows.get(number)
        return (
            row is not None
            and np.array_equal(self._vectors[row], vector)
            and (self._tokens[row], self._cut[row]) == (tokens, cut)
        )


def check_topic(
    sent: Mapping[int, Sent], records: Sequence[Any], form: str, vectors: Vectors, findings: Findings
) -> None:
    """An output topic in ``form`` json or binary, float32."""

    def same(origin: Sent, each: Found) -> bool:
        record, document = each.content, origin.document
        headers = [(name, value) for name, value in record.headers if not name.startswith("embedding-")]
        if (record.key, headers, record.timestamp) != (document.key, document.headers, origin.timestamp):
            return False
        if document.outcome == "tombstone":
            return record.value is None
        if record.value is None:
            return False
        if form == "binary":
            about = {name: value.decode() for name, value in record.headers if name.startswith("embedding-")}
            return about["embedding-source"].endswith(f"/{origin.partition}/{origin.offset}") and vectors.holds(
                each.number,
                np.frombuffer(record.value, "<f4"),
                int(about["embedding-tokens"]),
                about["embedding-truncated"] == "true",
            )
        value = orjson.loads(record.value)
        vector = np.asarray(value["embedding"], np.float32)
        return value["id"] == f"id-{each.number}" and vectors.holds(
            each.number, vector, value["tokens"], value["truncated"]
        )

    found = [Found(number_of(record.headers), record.partition, record.offset, record) for record in records]
    check_output("topic", sent, found, same, lambda document: document.outcome in ("vector", "tombstone"), findings)


def check_dead_letters(sent: Mapping[int, Sent], records: Sequence[Any], findings: Findings) -> None:
    """The dead-letter topic: each refused record byte for byte, with where it came from and the stage."""

    def same(origin: Sent, each: Found) -> bool:
        record, document = each.content, origin.document
        ours = {name: value.decode() for name, value in record.headers if name.startswith("embedding-error-")}
        headers = [(name, value) for name, value in record.headers if not name.startswith("embedding-error-")]
        return (record.key, record.value, headers, record.timestamp) == (
            document.key,
            document.value,
            document.headers,
            origin.timestamp,
        ) and (
            int(ours["embedding-error-partition"]),
            int(ours["embedding-error-offset"]),
            ours["embedding-error-stage"],
        ) == (origin.partition, origin.offset, document.outcome)

    found = [Found(number_of(record.headers), record.partition, record.offset, record) for record in records]
    check_output(
        "dead letters", sent, found, same, lambda document: document.outcome not in ("vector", "tombstone"), findings
    )


def check_files(sent: Mapping[int, Sent], table: Any, vectors: Vectors, findings: Findings) -> None:
    """Rows of a plain glob (a pyarrow table), file by file, these in the order of their names."""
    numbers = {(each.partition, each.offset): number for number, each in sent.items()}
    width = table.schema.field("embedding").type.list_size
    columns = {name: table.column(name).to_pylist() for name in table.column_names if name != "embedding"}
    column = table.column("embedding").combine_chunks()
    absent = column.is_null().to_pylist()
    # Slots of rows without a vector hold zeros, as Arrow's layout keeps their place.
    flat = np.asarray(column.values, np.float32).reshape(-1, width) if len(table) else np.empty((0, width), np.float32)
    found = []
    for row, place in enumerate(zip(columns["partition"], columns["offset"], strict=True)):
        number = numbers.get(place)
        if number is None:
            findings.add("altered", "files", [place], " (of no record)")
            continue
        found.append(Found(number, place[0], place[1], row))

    def same(origin: Sent, each: Found) -> bool:
        row, document = each.content, origin.document
        stamp = columns["timestamp"][row]
        if columns["key"][row] != document.key or round(stamp.timestamp() * 1000) != origin.timestamp:
            return False
        if document.outcome == "tombstone":
            return bool(columns["deleted"][row]) and bool(absent[row])
        return (
            not columns["deleted"][row]
            and not absent[row]
            and columns["id"][row] == f"id-{each.number}"
            and vectors.holds(each.number, flat[row], columns["tokens"][row], columns["truncated"][row])
        )

    check_output("files", sent, found, same, lambda document: document.outcome in ("vector", "tombstone"), findings)
