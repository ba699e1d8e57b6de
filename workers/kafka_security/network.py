"""kafka-python's connections, with their failures kept: a client that cannot start says why, and leaves nothing behind.

Comes in: ``KafkaSettings``; kafka-python calls :meth:`Network.client`. Goes out: the ``Refusal`` of each broker. Never here: what
a failure means (``refusals``).

What kafka-python 3.0 does by itself, and what is done here instead:

- the cause of a failed connection goes to its log, and the caller gets a timeout after ten seconds: here it is kept, and once
  every bootstrap server has refused us for good, nobody waits any longer;
- a broker's last answer is dropped when the broker closes the connection behind it, as it does after a wrong password: here it
  is read;
- a TLS handshake that a frozen broker never answers is waited for without end: here it has a bound;
- a client that cannot start leaves its I/O thread and its sockets: here they are closed;
- a password that was changed, or a certificate that expired, while a client runs is silence: here it is a line in the log.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import time
from typing import Any

from kafka import errors as kafka_errors
from kafka.net.compat import KafkaNetClient
from kafka.net.inet import create_connection
from kafka.net.manager import KafkaConnectionManager
from kafka.net.selector import NetworkSelector
from kafka.net.transport import KafkaSSLTransport, KafkaTCPTransport

from workers import log
from workers.kafka_security.refusals import Refusal, Stage, refusal
from workers.settings import KafkaSettings

LOG = log.get(__name__)
SAY_AGAIN_S = 30.0
HANDSHAKE_S = 10.0

# At DEBUG this logger writes whole requests, and a SASL request is the password.
logging.getLogger("kafka.net.connection").setLevel(logging.INFO)


class Refused(kafka_errors.KafkaError):  # type: ignore[misc]
    """Every bootstrap server has refused us for good."""


class Network:
    """The network side of one client."""

    def __init__(self, kafka: KafkaSettings) -> None:
        self._kafka = kafka
        self._made: KafkaNetClient | None = None
        self._refusals: dict[object, Refusal] = {}
        self._in_a_row: dict[object, int] = {}
        self._said_at = -SAY_AGAIN_S

    def client(self, **configs: Any) -> KafkaNetClient:
        """What kafka-python's clients take as ``kafka_client``."""
        net = NetworkSelector(**configs)
        self._made = KafkaNetClient(net=net, manager=_Manager(self, net, **configs), **configs)
        return self._made

    def close(self) -> None:
        """End what a constructor that failed has left."""
        if self._made is not None:
            with contextlib.suppress(kafka_errors.KafkaError, OSError, RuntimeError):
                self._made._net.stop(timeout_ms=2_000)
                self._made.close()

    @property
    def sentence(self) -> str | None:
        """The most telling refusal so far."""
        found = sorted(self._refusals.items(), key=lambda item: self._final(item[0]))
        return found[-1][1].sentence if found else None

    def refused_by(self, nodes: set[object]) -> bool:
        """Whether each of these brokers has refused us for good."""
        return bool(nodes) and all(self._final(node) for node in nodes)

    def _final(self, node: object) -> bool:
        found = self._refusals.get(node)
        return found is not None and found.final_after is not None and self._in_a_row[node] >= found.final_after

    def failed(self, node: Any, stage: Stage, error: BaseException, *, starting: bool) -> None:
        """A connection failed or was lost."""
        found = refusal(self._kafka, f"{node.host}:{node.port}", stage, error)
        if starting:
            again = self._refusals.get(node.node_id) == found
            self._refusals[node.node_id] = found
            self._in_a_row[node.node_id] = self._in_a_row.get(node.node_id, 0) + 1 if again else 1
        elif found.final_after == 1 and time.monotonic() - self._said_at > SAY_AGAIN_S:
            self._said_at = time.monotonic()
            LOG.warning("connection refused %s", log.fields(error=found.sentence))


class _Manager(KafkaConnectionManager):  # type: ignore[misc]
    """Keeps what became of each connection."""

    def __init__(self, network: Network, net: NetworkSelector, **configs: Any) -> None:
        self._network = network
        self._started = False
        super().__init__(net, **configs)

    def get_connection(self, node_id: Any, *args: Any, **kwargs: Any) -> Any:
        """As its parent's; ends the bootstrap when all its servers have refused us."""
        if not self._started:
            self._started = self.bootstrapped
            servers = {node.node_id for node in self.cluster.bootstrap_brokers()}
            if not self._started and self._network.refused_by(servers):
                raise Refused
        return super().get_connection(node_id, *args, **kwargs)

    async def _connect(self, node: Any, conn: Any, **kwargs: Any) -> None:
        conn.close_future.add_errback(lambda error: self._lost(node, conn, error))
        await super()._connect(node, conn, **kwargs)

    def _lost(self, node: Any, conn: Any, error: BaseException) -> None:
        if conn.init_future.succeeded():
            stage = Stage.TALKING
        elif conn.parser is None:
            stage = Stage.REACHING
        elif conn.broker_version_data is None:
            stage = Stage.GREETING
        else:
            stage = Stage.AUTHENTICATING if conn.sasl_enabled else Stage.GREETING
        self._network.failed(node, stage, error, starting=not (self._started or self.bootstrapped))

    async def _build_transport(self, node: Any, timeout_at: float | None = None) -> Any:
        sock = await create_connection(
            self._net, node.host, node.port, self.config["socket_options"], timeout_at=timeout_at
        )
        if self.ssl_enabled:
            transport = KafkaSSLTransport(self._net, sock, host=node.host, ssl_context=self.config["ssl_context"])
        else:
            transport = KafkaTCPTransport(self._net, sock, host=node.host)
        deadline = timeout_at if timeout_at is not None else time.monotonic() + HANDSHAKE_S
        late: list[bool] = []

        def hang_up() -> None:
            late.append(True)
            _hang_up(transport)

        timer, failure = self._net.call_at(deadline, hang_up), None
        try:
            await transport.handshake()
        except (OSError, ValueError) as error:
            failure = error
        finally:
            self._net.cancel(timer)
        if late or failure is not None:
            transport.close()
            if late:
                raise kafka_errors.KafkaConnectionError("it does not answer to TLS in time")
            raise kafka_errors.KafkaConnectionError(f"TLS handshake failed: {failure}") from failure
        receive = transport._sock_recv

        def keep_last_words() -> tuple[bytes, BaseException | None]:
            data, error = receive()
            # What came with the end is read first; the next call finds the end again.
            return (data, None) if data else (data, error)

        transport._sock_recv = keep_last_words
        return transport


def _hang_up(transport: Any) -> None:
    """End a handshake that takes too long: whoever waits for the socket sees its end."""
    if transport._sock is not None:
        with contextlib.suppress(OSError):
            # The plain socket's: that of an SSLSocket forgets TLS, and the handshake would not see an end.
            socket.socket.shutdown(transport._sock, socket.SHUT_RDWR)
