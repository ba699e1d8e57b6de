"""What a lane of the lab keeps from seed to seed: a broker, an S3 server behind a proxy, and a model without use.

Comes in: a folder. Goes out: servers that may be killed and started. Never here: a pipeline.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipelines.broker import Broker
from tests.lab.s3_proxy import S3Proxy
from tests.s3 import S3Server
from tests.tiny_model import make_tiny_bert

WIDTH = 64
MAX_TOKENS = 128


@dataclass(frozen=True, slots=True)
class Stage:
    """Servers of one lane. Pipelines reach the S3 server through the proxy, by this process's environment."""

    folder: Path
    model: Path
    broker: Broker
    s3: S3Server
    proxy: S3Proxy


@contextlib.contextmanager
def stage(folder: Path) -> Iterator[Stage]:
    """Start the servers; they end with the ``with``, or with this process."""
    folder.mkdir(parents=True, exist_ok=True)
    before = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    model = make_tiny_bert(folder / "model", width=WIDTH)
    with Broker(folder / "broker") as broker, S3Server(folder / "s3") as s3, S3Proxy(s3.port) as proxy:
        for name in before:
            del os.environ[name]
        os.environ.update(s3.environ | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{proxy.port}"})
        try:
            yield Stage(folder, model, broker, s3, proxy)
        finally:
            for name in s3.environ:
                os.environ.pop(name, None)
            os.environ.update(before)
