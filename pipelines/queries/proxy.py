"""Serve's HTTP proxy: whether there is one, and where it listens.

Comes in: settings. Goes out: Serve, started, or as it is where it runs already. Never here: what is answered.
"""

from __future__ import annotations

import errno
import socket
from typing import Any

from workers import log
from workers.errors import EnvironmentFault
from workers.settings import Settings

LOG = log.get(__name__)
LOOPBACK = ("127.0.0.1", "::1", "localhost")


def address(settings: Settings) -> str:
    """Where a client finds the API."""
    queries = settings.queries
    host = f"[{queries.host}]" if ":" in queries.host else queries.host
    return f"http://{host}:{queries.port}/v1"


def start(settings: Settings, logging_config: Any) -> None:
    """Start Serve, with a proxy if there are queries to answer.

    Raises:
        EnvironmentFault: the port is taken, or Serve runs on this cluster already without such a proxy.
    """
    from ray import serve  # noqa: PLC0415 - heavy
    from ray.serve.context import _get_global_client  # noqa: PLC0415

    queries = settings.queries
    if not queries.enabled:
        serve.start(proxy_location="Disabled", logging_config=logging_config)
        return
    if queries.api_key is None and queries.host not in LOOPBACK:
        LOG.warning("whoever reaches the port may ask: set queries.api_key %s", log.fields(port=queries.port))
    runs = settings.ray.address is not None and _get_global_client(raise_if_no_controller_running=False) is not None
    if not runs:
        if settings.ray.address is None:
            _require_free(queries.host, queries.port)
        serve.start(
            proxy_location="EveryNode",
            http_options={"host": queries.host, "port": queries.port},
            logging_config=logging_config,
        )
        return
    there = _get_global_client().http_config
    if not serve.status().proxies or (there.host, there.port) != (queries.host, queries.port):
        raise EnvironmentFault(
            f"queries.port: Serve runs on this cluster already, and not with a proxy at {queries.host}:{queries.port}; "
            "serve shutdown ends it, with all that runs on it"
        )


def _require_free(host: str, port: int) -> None:
    """Raise EnvironmentFault where nobody could listen."""
    try:
        with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET):
            pass
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        said = "somebody listens there already" if taken else (error.strerror or type(error).__name__)
        raise EnvironmentFault(f"queries.port: nothing can listen at {host}:{port}: {said}") from None
