"""What ``make test-image`` takes, got while there is a network: ``python -m tests.deploy.needs``.

Goes out: Kafka and the image in their caches, or why they cannot be had, in one sentence.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

from pipelines.broker_jars import fetch_kafka, find_java
from tests.deploy import image, tools
from workers.errors import EnvironmentFault

PROGRAMS = ("unshare", "nsenter", "setpriv", "ip", "mount")


def _kafka() -> Path:
    find_java(os.environ)
    return fetch_kafka(os.environ)


NEEDS: dict[str, Callable[[], object]] = {"Kafka": _kafka, "the image": image.build}


def main() -> int:
    """Get everything; 1 with a sentence where something is not to be had."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if os.geteuid() != 0:
        return _refused("it makes namespaces and mounts, which takes root, and this is another user")
    if missing:
        return _refused(f"{', '.join(missing)} not on the PATH")
    for name, get in NEEDS.items():
        began = time.monotonic()
        try:
            get()
        except (tools.NoTool, EnvironmentFault) as reason:
            return _refused(str(reason))
        if time.monotonic() - began > 5:
            print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)
    return 0


def _refused(reason: str) -> int:
    print(f"make test-image does not run here: {reason}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
