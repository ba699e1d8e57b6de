"""The model in a Ray Data pipeline of one's own: tables in, the same tables with vectors as columns out.

Comes in: a table, and what settings say of model and outputs. Goes out: the table with a column for each output, and how each
row went. Never here: Ray; the class works in any process.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import ValidationError

from pipelines.batch.embed import RowEmbedder
from pipelines.batch.encoding import LocalEncoder
from pipelines.batch.parquet_file import plain_rows
from pipelines.batch.pieces import Fields
from pipelines.batch.rows import FileRow, decoder_of, row
from pipelines.fit import output_against_model
from pipelines.model import Model
from workers import log
from workers.codecs.base import type_vector
from workers.codecs.parquet_vectors import vector_array, vector_type
from workers.encoder.quantize import Projection
from workers.errors import DeviceLost, EnvironmentFault, PoisonError, RetryableError, SettingsError
from workers.records import DeadLetter, Embedding, Record
from workers.settings import Settings, Vectors

_ONE = {"embedding": dict[str, object]()}


@dataclass(frozen=True, slots=True)
class _Column:
    """One output; its rows are vectors with their scales. A :class:`workers.outlets.RowOutlet`, and its renderer."""

    name: str
    projection: Projection

    @property
    def renderer(self) -> _Column:
        """Itself."""
        return self

    @property
    def whole(self) -> None:
        """Chunks are refused."""

    def row(
        self, record: Record, embedding: Embedding, vector: type_vector, scale: np.float32 | None
    ) -> tuple[type_vector, np.float32 | None]:
        """The vector, in the output's precision."""
        return vector, scale

    def deletion(self, record: Record) -> object:
        """There is none in a table."""
        raise NotImplementedError


class Encode:
    """For ``ds.map_batches(Encode, …, batch_format="pyarrow")``; or called with a ``pyarrow.Table``, without Ray.

    To each row it adds, for each output, a column with its vector, as a fixed-size list of the precision's type, and with
    precision ``int8`` a column ``<output>_scale``; and ``tokens``, ``truncated`` and ``embedding_error``. Every row comes
    back, in its place: one without a vector has nulls, and the reason in ``embedding_error`` (``text/empty: …``), else null.
    """

    def __init__(
        self,
        *,
        text: str = "text",
        outputs: Mapping[str, Mapping[str, object]] | None = None,
        model: Mapping[str, object] | None = None,
        source: Mapping[str, object] | None = None,
        pool: Mapping[str, object] | None = None,
        device: str = "auto",
    ) -> None:
        r"""Load the model, warm it up and test it, once for each actor.

        Args:
            text: the column with the text, or a template over columns: ``"{title}\n{body}"``.
            outputs: for each new column its ``dim``, ``precision`` and ``ranges``, as settings of an output; default: one column
                ``embedding``, of the model's own dim, in float32.
            model: settings of section ``model``: ``name``, ``revision``, ``prompt``, ``max_tokens``, ``overflow``, ``dtype``, …
            source: of section ``source``: ``empty``.
            pool: of section ``pool``: ``max_batch_tokens``, the budget of one forward pass.
            device: ``cuda``, ``cpu``; auto: CUDA where there is one, which in an actor is one that was asked for (``num_gpus``).

        Raises:
            SettingsError: they contradict each other, or the model.
            EnvironmentFault: the model does not work here.
        """
        log.configure()
        if device not in ("auto", "cuda", "cpu"):
            raise SettingsError(f"device is auto, cuda or cpu, not {device!r}")
        settings, wanted = _settings(text, outputs or _ONE, model or {}, source or {}, pool or {})
        if settings.model.chunked:
            raise SettingsError(
                "model.overflow chunk makes several vectors of a text, and a table keeps one row for each: choose truncate or "
                "reject, cut the texts before, or let stream-embedder batch write a row for each chunk"
            )
        opened = Model.open(settings)
        for name, output in wanted.items():
            for mistake in output_against_model(output, opened.layout, settings.model.name, f"outputs.{name}."):
                raise SettingsError(mistake)
        self._columns = [_Column(name, opened.projection(output)) for name, output in wanted.items()]
        self._fields = Fields(settings)
        self._fault: Exception | None = None
        self._tokenizer = opened.tokenizer()
        widest = max(column.projection.dim for column in self._columns)
        self._encoder = LocalEncoder(opened, widest, cuda=None if device == "auto" else device == "cuda", threads=None)
        cuda = self._encoder.load()
        self._pool = self._encoder.pool(self._tokenizer.canary(), self._lost)
        self._embedder = RowEmbedder(
            settings,
            decoder_of(settings, opened.layout.prompts, of_files=True),
            self._columns,
            self._pool,
            settings.pool.batch_tokens(cuda=cuda),
        )
        self.fingerprints = {column.name: opened.fingerprint_of(column.projection) for column in self._columns}

    def __call__(self, table: pa.Table) -> pa.Table:
        """The table with the columns of the class.

        Raises:
            SettingsError: the table lacks a column of the text, or has one of those that are added.
            EnvironmentFault: the encoder fails at every text.
        """
        names = table.column_names
        if (missing := self._fields.missing(names)) is not None and table.num_rows:
            raise SettingsError(f"the table has no column {missing}; it has {', '.join(names) or 'none'}")
        if taken := [name for name in self.names if name in names]:
            raise SettingsError(
                f"the table has a column {taken[0]} already; call the output otherwise, or drop that one"
            )
        rows: list[FileRow] = []
        for found in plain_rows(table.select([name for name in self._fields.names if name in names])):
            if isinstance(found, PoisonError):
                rows.append(row("table", len(rows), None, refused=found))
            else:
                rows.append(row("table", len(rows), None, fields=found))
        try:
            vectors, settled = self._embedder.embed(rows, self._tokenizer)
        except RetryableError as error:
            raise EnvironmentFault(
                f"the encoder fails at every text ({type(self._fault or error).__name__})"
            ) from error
        outcomes = [entry.outcome for entry in settled]
        for name, column in self._added(vectors, outcomes):  # type: ignore[arg-type]
            table = table.append_column(name, column)
        return table

    @property
    def names(self) -> list[str]:
        """What the columns are called that it adds, in their order."""
        return [name for name, _ in self._added([[] for _ in self._columns], [])]

    def _added(
        self, vectors: Sequence[Sequence[tuple[type_vector, np.float32 | None]]], outcomes: Sequence[object]
    ) -> list[tuple[str, pa.Array]]:
        good = [number for number, outcome in enumerate(outcomes) if isinstance(outcome, Embedding)]
        added: list[tuple[str, pa.Array]] = []
        for column, made in zip(self._columns, vectors, strict=True):
            values: list[type_vector | None] = [None] * len(outcomes)
            scales: list[np.float32 | None] = [None] * len(outcomes)
            for number, (vector, scale) in zip(good, made, strict=True):
                values[number], scales[number] = vector, scale
            projection = column.projection
            added.append((column.name, vector_array(vector_type(projection.precision, projection.dim), values)))
            if projection.precision == "int8":
                added.append((f"{column.name}_scale", pa.array(scales, pa.float32())))
        embedded = [outcome if isinstance(outcome, Embedding) else None for outcome in outcomes]
        errors = [_said(outcome) if isinstance(outcome, DeadLetter) else None for outcome in outcomes]
        return [
            *added,
            ("tokens", pa.array([None if each is None else each.tokens for each in embedded], pa.int32())),
            ("truncated", pa.array([None if each is None else each.truncated for each in embedded], pa.bool_())),
            ("embedding_error", pa.array(errors, pa.string())),
        ]

    def _lost(self, error: Exception) -> None:
        """The encoder is of no more use. An actor ends, for Ray to start another; elsewhere the call that waits fails."""
        if isinstance(error, DeviceLost) and _is_actor():
            os._exit(1)
        self._fault = error
        self._pool.close()


def _settings(
    text: str,
    outputs: Mapping[str, Mapping[str, object]],
    model: Mapping[str, object],
    source: Mapping[str, object],
    pool: Mapping[str, object],
) -> tuple[Settings, dict[str, Vectors]]:
    try:
        wanted = {name: Vectors.model_validate(dict(about)) for name, about in outputs.items()}
        return Settings.model_validate({"model": model, "source": {**source, "text": text}, "pool": pool}), wanted
    except ValidationError as error:
        found = []
        for detail in error.errors(include_url=False, include_input=False):
            place = ".".join(map(str, detail["loc"]))
            message = detail["msg"].removeprefix("Value error, ")
            found.append(f"{place}: {message}" if place else message)
        raise SettingsError("\n".join(found)) from None


def _said(letter: DeadLetter) -> str:
    return f"{letter.stage}/{letter.reason}: {letter.message}".encode("utf-8", "replace").decode()


def _is_actor() -> bool:
    """Whether this process is one of Ray's actors."""
    ray: Any = sys.modules.get("ray")
    return ray is not None and ray.is_initialized() and ray.get_runtime_context().get_actor_id() is not None
