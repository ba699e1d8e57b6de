"""The bounded job: files in, Parquet out; and :class:`Encode`, the same model in a Ray Data pipeline of one's own."""

from pipelines.batch.columns import Encode

__all__ = ["Encode"]
