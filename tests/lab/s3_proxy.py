"""A proxy before a real S3 server that fails as object stores do.

``proxy.fault = "…"`` sets what it does from now on to half of the requests, or to all where half would be no fault. It
passes requests on as they are, so that their signatures hold.
"""

from __future__ import annotations

import asyncio
import random
import threading

from pipelines.loopback import HOST, free_port

FAULTS = ("refuse", "lose the answer", "deny what was done", "slow", "full")
_REFUSED = b"<?xml version='1.0'?><Error><Code>InternalError</Code><Message>We are sorry</Message></Error>"
_FULL = b"<?xml version='1.0'?><Error><Code>InsufficientStorage</Code><Message>The disk is full</Message></Error>"


class S3Proxy:
    """Listens on ``port`` and passes on to ``upstream``, another port of this machine."""

    def __init__(self, upstream: int, seed: int = 0) -> None:
        self.port = free_port()
        self.fault: str | None = None
        self.done: dict[str, int] = dict.fromkeys(FAULTS, 0)
        self._upstream = upstream
        self._random = random.Random(seed)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="s3-proxy", daemon=True)
        self._server: asyncio.Server | None = None

    def start(self) -> None:
        self._thread.start()
        future = asyncio.run_coroutine_threadsafe(asyncio.start_server(self._serve, HOST, self.port), self._loop)
        self._server = future.result(10)

    def stop(self) -> None:
        async def close() -> None:
            assert self._server is not None
            self._server.close()
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(close(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def __enter__(self) -> S3Proxy:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request a connection: the answer says that it closes."""
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            fields = {
                name.strip().lower(): value.strip()
                for name, _, value in (line.partition(b":") for line in head.split(b"\r\n")[1:])
            }
            if fields.get(b"expect", b"").lower() == b"100-continue":
                writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            body = await reader.readexactly(int(fields.get(b"content-length", b"0")))
            fault = self._fault(head)
            if fault is not None:
                self.done[fault] += 1
            if fault == "refuse":
                writer.write(_answer(b"500 Internal Server Error", _REFUSED))
            elif fault == "full":
                writer.write(_answer(b"507 Insufficient Storage", _FULL))
            else:
                if fault == "slow":
                    await asyncio.sleep(self._random.uniform(1, 4))
                answer = await self._ask(head, body)
                if fault == "deny what was done":
                    writer.write(_answer(b"500 Internal Server Error", _REFUSED))
                elif fault != "lose the answer":
                    writer.write(answer)
            await writer.drain()
        except (OSError, EOFError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # a peer has gone, which is what the other then sees
        finally:
            writer.close()

    def _fault(self, head: bytes) -> str | None:
        if self.fault == "full":
            return "full" if head.startswith((b"PUT", b"POST")) else None
        return self.fault if self.fault is not None and self._random.random() < 0.5 else None

    async def _ask(self, head: bytes, body: bytes) -> bytes:
        lines = [line for line in head[:-4].split(b"\r\n") if not line.lower().startswith((b"connection:", b"expect:"))]
        upstream, ask = await asyncio.open_connection(HOST, self._upstream)
        try:
            ask.write(b"\r\n".join([*lines, b"Connection: close", b"", b""]) + body)
            await ask.drain()
            return await upstream.read()
        finally:
            ask.close()


def _answer(status: bytes, body: bytes) -> bytes:
    return b"HTTP/1.1 %s\r\nContent-Type: application/xml\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s" % (
        status,
        len(body),
        body,
    )
