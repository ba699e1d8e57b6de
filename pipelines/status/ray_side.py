"""What Ray Serve says of a pipeline: replicas, the last decision of scaling, what the readers count.

``python -m pipelines.status.ray_side ADDRESS`` joins Ray and answers each line that it reads with a line of JSON, until its
input ends. It is a process of its own because joining Ray may hang, and losing it ends the process that has joined.

Comes in: an address. Goes out: facts. Never here: what is thought of them, or anything that changes the application.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from typing import Any

from pipelines.census import own_sentence
from pipelines.cluster import connected
from workers import log
from workers.deadline import Deadline
from workers.errors import StreamEmbedderError
from workers.settings import Settings

LOG = log.get(__name__)
ASK_S = 5.0
CONNECT_S = 3.0


class Serve:
    """One application, from a process that has joined Ray."""

    def __init__(self, application: str) -> None:
        """Nothing is asked yet."""
        self._application = application
        self._readers: Any = None

    def look(self) -> dict[str, Any] | None:
        """The application's state; None where Ray runs none of this name.

        ``readers`` and ``encoders``: replicas by state; ``said``: what Serve says of them; ``reports``: of each reader that
        answered, as :meth:`pipelines.stream.Reader.report` has it.
        """
        from ray import serve  # noqa: PLC0415 - heavy

        found = serve.status().applications.get(self._application)
        if found is None:
            return None
        parts = {name: found.deployments.get(name) for name in ("Reader", "Encoder")}
        states = {
            name: {str(getattr(state, "value", state)): count for state, count in part.replica_states.items()}
            for name, part in parts.items()
            if part is not None
        }
        return {
            "status": str(getattr(found.status, "value", found.status)),
            "readers": states.get("Reader", {}),
            "encoders": states.get("Encoder", {}),
            "said": _said([found.message, *(part.message for part in parts.values() if part is not None)]),
            "reports": self._reports() if states.get("Reader", {}).get("RUNNING") else [],
        }

    def _reports(self) -> list[dict[str, Any]]:
        """What the readers say that can; the others' word will do while one, or the controller, is being replaced."""
        from ray import serve  # noqa: PLC0415 - heavy

        deadline = Deadline(ASK_S)
        while not deadline.expired:
            try:
                if self._readers is None:
                    self._readers = serve.get_deployment_handle("Reader", self._application)
                found = self._readers.broadcast("report").results(
                    timeout_s=deadline.remaining(), return_exceptions=True
                )
                return [report for report in found if isinstance(report, dict)]
            except Exception as error:  # noqa: BLE001 - see above; a new handle may have heard of them a moment later
                LOG.debug("readers not asked %s", log.fields(error=type(error).__name__))
                self._readers = None
                time.sleep(0.2)
        return []


def _said(messages: list[str]) -> str | None:
    """Our own sentence among what Serve says, which may hold whole tracebacks; or its first line."""
    said = [message.strip() for message in messages if message and message.strip()]
    if not said:
        return None
    return own_sentence("\n".join(said)) or said[0].splitlines()[0][:300]


def _absent(address: str) -> str | None:
    """Why nothing can be there, which Ray takes a minute and a half to find out; None: something listens, or is looked for."""
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdecimal():
        return None
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()
    except (OSError, OverflowError) as error:
        return f"Ray cannot be reached at {address} ({type(error).__name__}): is it running there, and is ray.address right?"
    return None


def main(address: str) -> int:
    """Answer until standard input ends."""
    # What Ray prints is no answer.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)

    def answer(**found: Any) -> None:
        print(json.dumps(found), file=answers, flush=True)

    if (absent := _absent(address)) is not None:
        answer(error=absent)
        return 1
    from pipelines.stream import APP  # noqa: PLC0415 - heavy

    try:
        with connected(Settings.model_validate({"ray": {"address": address}})):
            application = Serve(APP)
            for _ in sys.stdin:
                try:
                    answer(application=application.look())
                except Exception as error:  # noqa: BLE001 - Serve's controller may be dead or starting
                    answer(error=f"Ray Serve at {address} does not answer ({type(error).__name__})")
    except StreamEmbedderError as error:
        hint = "" if "RAY_AUTH_MODE" in os.environ else "; if it asks for a token, set RAY_AUTH_MODE=token"
        answer(error=f"{error}{hint}")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
