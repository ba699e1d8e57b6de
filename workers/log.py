"""One way to log: ``event key=value …`` lines on standard error. Never a record's text, key or value; never a secret."""

from __future__ import annotations

import logging
import sys


def fields(**values: object) -> str:
    """Format ``key=value`` pairs; values with spaces are quoted."""
    parts = []
    for key, value in values.items():
        text = f"{value:.3f}" if isinstance(value, float) else str(value)
        parts.append(f'{key}="{text}"' if " " in text else f"{key}={text}")
    return " ".join(parts)


def get(name: str) -> logging.Logger:
    """The logger of a room, such as ``workers.reader``."""
    return logging.getLogger(f"stream_embedder.{name.removeprefix('workers.').removeprefix('pipelines.')}")


def configure(level: int = logging.INFO) -> None:
    """Send this process's log to standard error. Kafka's client reports its reconnects at ERROR only."""
    root = logging.getLogger("stream_embedder")
    root.setLevel(level)
    root.propagate = False
    if not root.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
        root.addHandler(handler)
    logging.getLogger("kafka").setLevel(logging.CRITICAL)
