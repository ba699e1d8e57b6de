"""How many replicas a batch job has: pure functions of what is left to do, and of what there is room for.

Comes in: the work that is left, what a replica does in a second, and how long one takes to start. Goes out: how many there
should be, or may be. Never here: Ray, or a clock.
"""

from __future__ import annotations

from collections.abc import Mapping

from workers.errors import EnvironmentFault
from workers.settings import PoolSettings

# A replica that is started works at least so many times as long as it took to start: its start is paid, too.
WORTH = 4.0


def wanted(*, now: int, fewest: int, most: int, pieces: int, left_s: float | None, start_s: float) -> int:
    """How many replicas there should be.

    Args:
        now: how many there are.
        fewest: ``pool.min``; a job has one at least.
        most: ``pool.max``.
        pieces: those that are not done; a replica needs one.
        left_s: seconds that the work would take one replica; None: not known yet.
        start_s: seconds that a replica takes to start.

    Returns:
        No less than ``now``, unless there are fewer pieces: a job grows, and lets its replicas go at its end.
    """
    paid = 0 if left_s is None else int(left_s / (WORTH * max(start_s, 1e-3)))
    return min(pieces, most, max(1, fewest, now, paid))


def fits(pool: PoolSettings, here: Mapping[str, float] | None) -> int:
    """How many replicas there may be: ``pool.max``, and where this machine alone has them, no more than it has room for.

    ``here``: its CPUs and GPUs, as Ray counts them; None: there is a cluster.

    Raises:
        EnvironmentFault: there is no room for ``pool.min``, or for one.
    """
    if here is None:
        return pool.max
    needs = {"CPU": pool.cpus_per_replica, "GPU": pool.gpus_per_replica or 0.0}
    room = min([pool.max, *(int(here.get(name, 0) / need) for name, need in needs.items() if need > 0)])
    if room < max(1, pool.min):
        has = ", ".join(f"{here.get(name, 0):g} {name}s" for name in needs)
        raise EnvironmentFault(
            f"this machine has {has}, too few for {max(1, pool.min)} replicas of pool.cpus_per_replica "
            f"{pool.cpus_per_replica:g} and pool.gpus_per_replica {needs['GPU']:g}: lower those, or name a cluster with "
            "ray.address"
        )
    return room
