"""How the pipeline runs: what it promises, what it may hold, and how many actors it has."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from workers.settings.base import Section, parse_bytes, type_count, type_seconds


class DeliverySettings(Section):
    """The promise, and what it takes to keep it."""

    guarantee: Literal["exactly_once", "at_least_once"] = Field(
        "exactly_once",
        description="`exactly_once`: outputs, dead letters and offsets in one Kafka transaction. `at_least_once`: no "
        "transactions, records may repeat after a crash.",
    )
    commit_interval_s: type_seconds = Field(
        1.0, description="Seconds between commits while there is something to commit."
    )
    on_dead_letter: Literal["keep", "tombstone"] = Field(
        "keep",
        description="What happens to the older vector of a refused record's key: it stays, or a tombstone deletes it.",
    )
    allow_fingerprint_change: bool = Field(
        False, description="Write to an output whose latest records came from another model, prompt, dim or precision."
    )
    drain_timeout_s: type_seconds = Field(
        6.0, description="On SIGTERM: seconds to finish what is in flight; the rest is left for the next start."
    )
    cluster: str | None = Field(
        None,
        description="Name of this deployment in `transactional.id`; two that share a group need two names. Default: "
        "`RAY_CLUSTER_NAME`, else the host name.",
    )


class StateSettings(Section):
    """What the pipeline knows of what it has written."""

    topic: str | None = Field(
        None,
        description="A compacted topic in which the pipeline keeps a digest for each key that it has written (`topics create` "
        "makes it). Default: no state.",
    )
    unchanged: Literal["skip", "embed"] = Field(
        "skip",
        description="With a state: a record whose text, included fields, headers and fingerprints are what they were is not "
        "embedded and not written again, or is.",
    )


class LimitSettings(Section):
    """The ceiling of what one reader holds in memory."""

    records: type_count = Field(50_000, description="Records in flight per reader; then its partitions pause.")
    bytes: type_count = Field(
        256 << 20, description="Bytes of records in flight per reader (`256MiB`); then they pause."
    )

    @field_validator("bytes", mode="before")
    @classmethod
    def _units(cls, value: object) -> object:
        return parse_bytes(value)


class ReaderSettings(Section):
    """The members of the consumer group: CPU actors that read, tokenise, and write the results."""

    count: type_count = Field(
        1,
        description="Readers. They do not scale by themselves: each change moves partitions, and holds the stream up for "
        "seconds. More than the source has partitions are idle.",
    )
    cpus: Annotated[float, Field(ge=0)] = Field(0.5, description="CPUs that Ray reserves for a reader.")


class ScalingSettings(Section):
    """How many encoders there are between ``pool.min`` and ``pool.max``."""

    drain_target_s: Annotated[float, Field(ge=1)] = Field(
        60.0, description="Seconds in which a backlog should be gone, from when the replicas that it takes are ready."
    )
    idle_s: type_seconds = Field(300.0, description="Seconds without work after which the pool goes to `min`.")
    settle_s: type_seconds = Field(
        240.0,
        description="Seconds that a lower need must last before replicas go; far less is believed within a twelfth of that.",
    )
    start_s: type_seconds = Field(
        120.0, description="Seconds that a new replica takes, its node included, until one has been seen to start."
    )
    tokens_per_s: Annotated[float, Field(gt=0)] | None = Field(
        None, description="What a replica embeds in a second, until it is measured. Default: the first one shows it."
    )


class PoolSettings(Section):
    """The encoder replicas."""

    min: Annotated[int, Field(ge=0)] = Field(1, description="Fewest encoder replicas.")
    max: type_count = Field(1, description="Most encoder replicas; between `min` and this, `scaling` decides.")
    gpus_per_replica: Annotated[float, Field(ge=0)] | None = Field(
        None, description="GPUs per replica, fractions allowed. Default: 1 where the cluster has GPUs, else 0."
    )
    cpus_per_replica: Annotated[float, Field(ge=0)] = Field(1.0, description="CPUs that Ray reserves per replica.")
    max_batch_tokens: type_count | Literal["auto"] = Field(
        "auto", description="Token budget of one forward pass. `auto`: 4096 on CPU, 16384 on CUDA."
    )
    in_flight: type_count = Field(2, description="Calls under way per replica: one runs while the next waits.")
    linger_ms: Annotated[float, Field(ge=0)] = Field(
        10.0, description="Milliseconds that a call which is not full waits for more texts."
    )
    call_timeout_s: type_seconds = Field(
        120.0, description="A call without an answer for so long goes to another replica."
    )

    @model_validator(mode="after")
    def _min_max(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min ({self.min}) is larger than max ({self.max})")
        if self.gpus_per_replica is not None and self.gpus_per_replica > 1 and self.gpus_per_replica % 1:
            raise ValueError(f"gpus_per_replica is a fraction up to 1, or a whole number, not {self.gpus_per_replica}")
        return self

    def batch_tokens(self, *, cuda: bool) -> int:
        """``max_batch_tokens`` with ``auto`` resolved for the device."""
        if self.max_batch_tokens == "auto":
            return 16_384 if cuda else 4_096
        return self.max_batch_tokens


class RaySettings(Section):
    """Which Ray cluster ``run`` uses."""

    address: str | None = Field(
        None,
        description="A running cluster, `auto` or `host:6379`. Default: Ray is started on this machine.",
    )
    metrics_port: Annotated[int, Field(ge=1, le=65535)] | None = Field(
        None,
        description="Port on which a Ray that is started here serves its metrics to Prometheus. Default: one that is free.",
    )

    @model_validator(mode="after")
    def _ours(self) -> Self:
        if self.address is not None and self.metrics_port is not None:
            raise ValueError(
                "metrics_port is for a Ray that is started here; the nodes of a running cluster have theirs"
            )
        return self


class TelemetrySettings(Section):
    """What `run` tells of its work beside metrics and logs."""

    traces: bool = Field(
        False,
        description="Spans of OpenTelemetry, from record to commit, to the collector that `OTEL_EXPORTER_OTLP_ENDPOINT` names "
        "(`pip install 'stream-embedder[traces]'`).",
    )
