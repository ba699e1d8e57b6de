"""What ``make test-image`` takes, got while there is a network: ``python -m tests.deploy.needs``; with ``cluster``, what
``make test-cluster`` does.

Goes out: Kafka, the image and the programs in their caches, or why they cannot be had, in one sentence.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

from pipelines.broker_jars import fetch_kafka, find_java
from tests.deploy import image, schemas, tools
from tests.s3 import NoServer, gateway
from workers.errors import EnvironmentFault

PROGRAMS = ("unshare", "nsenter", "setpriv", "ip", "mount", "umount", "hostname", "openssl")


def _kafka() -> Path:
    find_java(os.environ)
    return fetch_kafka(os.environ)


NEEDS: dict[str, Callable[[], object]] = {"Kafka": _kafka, "the image": image.build}
CLUSTER: dict[str, Callable[[], object]] = {
    "helm": tools.helm,
    "etcd": tools.etcd,
    "the API server": tools.api_server,
    "Kubernetes' controllers": tools.controllers,
    "its scheduler": tools.scheduler,
    "KubeRay's operator": tools.operator,
    "custom resources": schemas.custom_definitions,
    "Redis": tools.redis,
    "Prometheus": tools.prometheus,
    "the S3 server": gateway,
}


def main(arguments: list[str]) -> int:
    """Get everything; 1 with a sentence where something is not to be had."""
    target, needs = ("test-cluster", {**CLUSTER, **NEEDS}) if "cluster" in arguments else ("test-image", NEEDS)
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if os.geteuid() != 0:
        return _refused(target, "it makes namespaces and mounts, which takes root, and this is another user")
    if missing:
        return _refused(target, f"{', '.join(missing)} not on the PATH")
    for name, get in needs.items():
        began = time.monotonic()
        try:
            get()
        except (tools.NoTool, NoServer, EnvironmentFault) as reason:
            return _refused(target, str(reason))
        if time.monotonic() - began > 5:
            print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)
    return 0


def _refused(target: str, reason: str) -> int:
    print(f"make {target} does not run here: {reason}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
