"""Every metric, named once.

Comes in: counts, levels and durations from the rooms. Goes out: a snapshot for the live panel and the tests, and each
update to an exporter that the composition root binds (Ray's metrics in a cluster). Never here: labels without a bound.

Names follow ``[noun]_[unit][_total]``; exporters put ``stream_embedder_`` before them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

PREFIX = "stream_embedder_"


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric: what it is called, what it means, and the labels that it always carries."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)

RECORDS_READ = Metric("records_read_total", "counter", "Records read from the source.", ("topic",))
# Each record is counted by the reader that saw its commit, once: not when it is read again for files that were behind, and
# not at all where the reader died, or lost the partition, between a commit and its answer.
RECORDS_COMMITTED = Metric(
    "records_committed_total",
    "counter",
    "Records whose outcome is committed to the topics, each once, however often it was read.",
    ("outcome",),
)
TOKENS_COMMITTED = Metric("tokens_committed_total", "counter", "Tokens of the embeddings among them.")
TOKENS_UNCHANGED = Metric(
    "tokens_unchanged_total",
    "counter",
    "Tokens of records whose key already had the vector of the same text, fields and headers.",
)
TEXTS_TRUNCATED = Metric(
    "texts_truncated_total", "counter", "Committed embeddings of texts that were cut to the model's limit."
)
CHUNKS_COMMITTED = Metric(
    "chunks_committed_total", "counter", "Chunks of the texts among them, where texts are cut into chunks."
)
DEAD_LETTERS = Metric("dead_letters_total", "counter", "Committed dead letters.", ("stage", "reason"))
DECODING_POSTPONED = Metric(
    "decoding_postponed_total",
    "counter",
    "Times that records waited because what decodes them, such as the schema registry, was out of reach.",
)
OUTCOMES_DROPPED = Metric(
    "outcomes_dropped_total",
    "counter",
    "Outcomes not written: their partition had moved on, another reader has them.",
    ("why",),
)
CALLS_RETRIED = Metric("calls_retried_total", "counter", "Encoder calls sent again, by cause.", ("cause",))
BATCHES_BISECTED = Metric("batches_bisected_total", "counter", "Encoder calls halved to find a poison record.")
COMMITS = Metric("commits_total", "counter", "Commits that took effect.")
COMMITS_FAILED = Metric(
    "commits_failed_total", "counter", "Commits that failed or were in doubt, by cause.", ("cause",)
)
COMMIT_SECONDS = Metric("commit_seconds", "histogram", "Duration of a commit.", (), _SECONDS)
ENCODE_SECONDS = Metric(
    "encode_call_seconds", "histogram", "Duration of an encoder call, seen by the caller.", (), _SECONDS
)
CALL_TOKENS = Metric(
    "encode_call_tokens",
    "histogram",
    "Tokens in an encoder call.",
    (),
    (64, 256, 1024, 2048, 4096, 8192, 16384, 65536, 262144),
)
IN_FLIGHT_RECORDS = Metric("in_flight_records", "gauge", "Records read and not yet committed.")
IN_FLIGHT_BYTES = Metric("in_flight_bytes", "gauge", "Bytes of records read and not yet committed.")
ENCODERS_RUNNING = Metric("encoders_running", "gauge", "Encoder replicas that run, as this reader last heard.")
ENCODERS_UNAVAILABLE = Metric(
    "encoders_unavailable_seconds",
    "gauge",
    "For how long no encoder has run; what was read waits meanwhile, and the reader stays in its group. 0: one runs.",
)
CALLS_IN_FLIGHT = Metric("encode_calls_in_flight", "gauge", "Encoder calls under way.")
CALL_SECONDS = Metric(
    "encode_calls_in_flight_seconds_total", "counter", "Time that encoder calls were under way, side by side."
)
TOKENS_ENCODED = Metric("tokens_encoded_total", "counter", "Tokens of encoder calls that were answered.")
ENCODER_SECONDS = Metric(
    "encoder_seconds_total", "counter", "Time that encoders have computed for this reader's calls."
)
TOKENS_SHARED = Metric(
    "tokens_shared_total",
    "counter",
    "Tokens that were not encoded, because a text that waited beside theirs was equal.",
)
RECORDS_PREPARED = Metric("records_prepared_total", "counter", "Records decoded and tokenised.")
TOKENS_PREPARED = Metric("tokens_prepared_total", "counter", "Tokens of the texts among them, of equal texts once.")
PREPARED_AT_SPEED = Metric(
    "tokens_prepared_at_speed_total", "counter", "Tokens prepared while many records were at hand."
)
PREPARING_SECONDS = Metric("preparing_at_speed_seconds_total", "counter", "Time that these took the reader.")
BACKLOG_RECORDS = Metric(
    "backlog_records", "gauge", "Records without a committed outcome in this reader's partitions: held and unread."
)
RECORDS_ARRIVED = Metric("records_arrived_total", "counter", "Offsets by which this reader's partitions have grown.")
PARTITIONS_ASSIGNED = Metric("partitions_assigned", "gauge", "Partitions that this reader owns.")
PARTITIONS_PAUSED = Metric("partitions_paused", "gauge", "Partitions paused because a limit is reached.")
REBALANCES = Metric("rebalances_total", "counter", "Assignments and revocations, by kind.", ("kind",))
OFFSETS_SKIPPED = Metric(
    "offsets_skipped_total", "counter", "Offsets that the source no longer had when their turn came (retention)."
)
LOGS_CUT = Metric(
    "logs_cut_total",
    "counter",
    "Times a partition's log ended before what was read of it, or was another from there on (unclean leader election).",
)
BATCHES_UNREADABLE = Metric(
    "batches_unreadable_total",
    "counter",
    "Attempts to read a batch that the Kafka client cannot parse; its partition waits, and is tried again.",
    ("topic",),
)
CLIENTS_REPLACED = Metric(
    "clients_replaced_total", "counter", "Kafka consumers replaced because they delivered nothing of what there was."
)
TIMESTAMPS_CLAMPED = Metric("timestamps_clamped_total", "counter", "Records dated further off than the topic allows.")
LAST_COMMIT = Metric("last_commit_timestamp_seconds", "gauge", "Unix time of the last commit.")
ENCODER_TOKENS = Metric("encoder_tokens_total", "counter", "Tokens that this encoder replica has embedded.")
ENCODER_PADDING = Metric(
    "encoder_padding_tokens_total", "counter", "Padding that this encoder replica has computed beside them."
)
ENCODER_HALVED = Metric(
    "encoder_passes_halved_total", "counter", "Forward passes that ran out of memory and were done in halves."
)
MODEL_LOADS_FAILED = Metric(
    "model_loads_failed_total", "counter", "Attempts to load the model that failed, by who tried.", ("actor",)
)
MODEL_LOAD_SECONDS = Metric("model_load_seconds", "gauge", "Duration of loading, warming and testing the model.")

ENCODERS_TARGET = Metric("encoders_target", "gauge", "Encoder replicas that scaling wants.")
ENCODERS_NEED = Metric(
    "encoders_need", "gauge", "Encoder replicas that the figures ask for, before limits and patience."
)
SCALING_DECISIONS = Metric("scaling_decisions_total", "counter", "Decisions on the number of encoders.", ("reason",))
SCALING_TOKEN_BACKLOG = Metric("scaling_backlog_tokens", "gauge", "Tokens that wait, as scaling sees them.")
SCALING_ARRIVALS = Metric("scaling_arrivals_tokens_per_second", "gauge", "Tokens that arrive in a second, smoothed.")
SCALING_RATE = Metric("scaling_replica_tokens_per_second", "gauge", "Tokens that a busy replica embeds in a second.")
SCALING_AGE = Metric("scaling_figures_age_seconds", "gauge", "Age of the figures that scaling goes by.")

QUERIES = Metric(
    "queries_total", "counter", "Queries over HTTP that were answered, by the answer's status.", ("status",)
)
QUERY_SECONDS = Metric("query_seconds", "histogram", "From a query's arrival to its answer.", (), _SECONDS)
QUERY_TEXTS = Metric("query_texts_total", "counter", "Texts of queries that were embedded.")
QUERY_TOKENS = Metric("query_tokens_total", "counter", "Tokens of these texts.")
QUERY_TEXTS_TRUNCATED = Metric(
    "query_texts_truncated_total", "counter", "Texts among them that were cut to the model's limit."
)
QUERIES_WAITING = Metric("queries_waiting", "gauge", "Queries that wait for their vectors.")
QUERY_CALLS = Metric("query_calls_in_flight", "gauge", "Encoder calls under way for queries.")
QUERY_ENCODER_SECONDS = Metric(
    "query_encoder_seconds_total", "counter", "Time that encoders have computed for queries."
)

FILES_PUT = Metric("files_put_total", "counter", "Files that an output has added to its chains.", ("output",))
FILE_BYTES_PUT = Metric("file_bytes_put_total", "counter", "Bytes of those files.", ("output",))
FILES_LOST = Metric(
    "files_lost_total", "counter", "Files dropped because another reader had put theirs first.", ("output",)
)
FILE_PUTS_FAILED = Metric("file_puts_failed_total", "counter", "Attempts to put a file that failed.", ("output",))
FILE_BYTES_WAITING = Metric("file_bytes_waiting", "gauge", "Bytes of rows that wait for their file.", ("output",))

SPANS_LOST = Metric("spans_lost_total", "counter", "Spans of traces that no collector took.")

type_exporter = Callable[[Metric, float, dict[str, str]], None]


class Metrics:
    """Where the rooms report to. Thread-safe; ``export`` is called with every update, outside the lock."""

    def __init__(self, export: type_exporter | None = None) -> None:
        """``export`` gets (metric, amount or level or observation, labels)."""
        self._export = export
        self._lock = threading.Lock()
        self._values: dict[tuple[str, tuple[str, ...]], float] = {}

    def add(self, metric: Metric, amount: float = 1, **labels: str) -> None:
        """Raise a counter."""
        key = (metric.name, tuple(labels[name] for name in metric.labels))
        with self._lock:
            self._values[key] = self._values.get(key, 0) + amount
        if self._export is not None:
            self._export(metric, amount, labels)

    def set(self, metric: Metric, level: float, **labels: str) -> None:
        """Set a gauge."""
        key = (metric.name, tuple(labels[name] for name in metric.labels))
        with self._lock:
            self._values[key] = level
        if self._export is not None:
            self._export(metric, level, labels)

    def observe(self, metric: Metric, value: float) -> None:
        """Add an observation to a histogram; the snapshot keeps ``_sum`` and ``_count``."""
        with self._lock:
            for suffix, amount in (("_sum", value), ("_count", 1.0)):
                key = (metric.name + suffix, ())
                self._values[key] = self._values.get(key, 0) + amount
        if self._export is not None:
            self._export(metric, value, {})

    def value(self, metric: Metric, **labels: str) -> float:
        """The counter or gauge now; with fewer labels than it has, the sum over the others."""
        with self._lock:
            return sum(
                value
                for (name, values), value in self._values.items()
                if name == metric.name
                and all(values[metric.labels.index(label)] == wanted for label, wanted in labels.items())
            )

    def snapshot(self) -> dict[str, float]:
        """All values as ``name{label=value,…}`` → number, for another process to read."""
        with self._lock:
            items = list(self._values.items())
        return {f"{name}{{{','.join(values)}}}" if values else name: value for (name, values), value in items}
