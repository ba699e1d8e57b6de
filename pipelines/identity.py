"""What this deployment is called where Kafka needs a name that outlives a process.

Comes in: settings, and the names that the platform gives. Goes out: ids. Never here: anything random: a successor must find
its predecessor's transaction under the same id.
"""

from __future__ import annotations

import os
import socket

from workers.settings import Settings


def slot(settings: Settings, number: int | str) -> str:
    """A reader's ``transactional.id`` and, when members are static, its ``group.instance.id``.

    Deployments that share a group, as two do while one replaces the other, differ in the cluster's name: KubeRay gives each
    of its clusters one (``RAY_CLUSTER_NAME``); elsewhere the host's name serves.
    """
    cluster = settings.delivery.cluster or os.environ.get("RAY_CLUSTER_NAME") or socket.gethostname()
    return f"{cluster}.{settings.source.group}.{number}"
