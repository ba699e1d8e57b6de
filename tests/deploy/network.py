"""Whether the tests have a network to themselves, that leads nowhere: their servers are then nobody's but theirs, and what needs
more than they have is seen to fail.
"""

from __future__ import annotations

import socket
from pathlib import Path


def is_apart() -> bool:
    """Whether this process is in a network namespace of its own, as ``make test-image`` starts it."""
    routes = Path("/proc/net/route").read_text().splitlines()[1:]
    return not routes and "eth0" not in {name for _, name in socket.if_nameindex()}
