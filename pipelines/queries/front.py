"""The HTTP of it: which path is what, who may ask, how much may be sent.

Comes in: a request of Starlette's. Goes out: a response, in OpenAI's shape whatever came in. Never here: what a model is, or a
piece of a request in the log.
"""

from __future__ import annotations

import asyncio
import hmac
import re
import time
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import numpy as np
import orjson
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from pipelines.queries import reply
from pipelines.queries.desk import Desk
from pipelines.queries.offer import Offer
from pipelines.queries.refusal import Refusal
from pipelines.queries.request import (
    MOST_BYTES,
    MOST_TOKENS,
    Asked,
    no_such_model,
    too_long,
    too_many_tokens,
    understood,
)
from pipelines.queries.room import Room, Share
from workers import log, metrics
from workers.deadline import Deadline
from workers.errors import PoisonError
from workers.outcomes import TextTokenizer
from workers.records import Tokens

LOG = log.get(__name__)

EMBEDDINGS, MODELS, HEALTH = "/v1/embeddings", "/v1/models", "/health"
# What all requests of a replica hold: bodies, and then vectors and what is written of them.
MOST_HELD_BYTES = 256 << 20
# Texts are tokenised so many at a time, that those of others come between.
TOGETHER = 64

type_done = TypeVar("type_done")


class Front:
    """Answers requests, all in one event loop; parsing, tokenising and writing in a thread beside it."""

    def __init__(
        self,
        offer: Offer,
        tokenizer: TextTokenizer,
        desk: Desk,
        meter: metrics.Metrics,
        *,
        api_key: str | None,
        timeout_s: float,
        ready: Callable[[], bool] = lambda: True,
    ) -> None:
        """``tokenizer``: used by one thread. ``ready``: whether there is an encoder, or may be one for who asks."""
        self._offer = offer
        self._tokenizer = tokenizer
        self._desk = desk
        self._meter = meter
        self._key = None if api_key is None else api_key.encode()
        self._timeout_s = timeout_s
        self._ready = ready
        self._room = Room(MOST_HELD_BYTES)
        self._since = int(time.time())
        self._answering = 0
        self._draining = False
        self._thread: Executor = ThreadPoolExecutor(1, thread_name_prefix="queries")

    async def __call__(self, request: Request) -> Response:
        """The response; raises nothing."""
        started = time.monotonic()
        path = request.scope["path"].removeprefix(request.scope.get("root_path", ""))
        try:
            response = await self._answer(path, request)
        except Refusal as refusal:
            response = _response(refusal.body, refusal.status, refusal.headers)
        except ClientDisconnect:
            response = _response(b"", 400)  # to nobody
        except Exception as error:  # noqa: BLE001 - a bug of ours; what it says may quote the request
            LOG.error("query failed %s", log.fields(error=type(error).__name__, at=_place(error)))
            wrong = Refusal(500, "this went wrong here, and not with the request", code="internal_error")
            response = _response(wrong.body, wrong.status)
        if path == EMBEDDINGS:
            self._meter.add(metrics.QUERIES, status=str(response.status_code))
            self._meter.observe(metrics.QUERY_SECONDS, time.monotonic() - started)
        return response

    async def drain(self, timeout_s: float) -> bool:
        """Refuse what comes from now on, and answer what is here; whether that fitted the time."""
        self._draining = True
        deadline = Deadline(timeout_s)
        while self._answering and not deadline.expired:
            await asyncio.sleep(0.05)
        return self._answering == 0

    async def _answer(self, path: str, request: Request) -> Response:
        if path == HEALTH:
            _require_method(request, "GET", "HEAD")
            if self._draining or not self._ready():
                raise Refusal(503, "no encoder runs", code="no_encoder", retry_s=5)
            return _response(b'{"status":"ok"}')
        if path == EMBEDDINGS:
            self._require_key(request)
            _require_method(request, "POST")
            return await self._embeddings(request)
        if path == MODELS or path.startswith(f"{MODELS}/"):
            self._require_key(request)
            _require_method(request, "GET", "HEAD")
            model = self._model()
            if path == MODELS:
                return _response(orjson.dumps({"object": "list", "data": [model]}))
            if path.removeprefix(f"{MODELS}/") == self._offer.model:
                return _response(orjson.dumps(model))
            raise no_such_model(self._offer)
        raise Refusal(404, f"there is nothing here; see {EMBEDDINGS}, {MODELS}, {HEALTH}", code="unknown_url")

    def _model(self) -> dict[str, Any]:
        offer = self._offer
        return {
            "id": offer.model,
            "object": "model",
            "created": self._since,
            "owned_by": "stream-embedder",
            "dimensions": offer.dim,
            "max_tokens": offer.max_tokens,
            "prompts": sorted(offer.prompts or ()),
        }

    def _require_key(self, request: Request) -> None:
        if self._key is None:
            return
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        # As bytes: compare_digest takes no other characters than ASCII's in a text, and a caller may send any.
        same = hmac.compare_digest(given.strip().encode(), self._key)
        if scheme.lower() != "bearer" or not same:
            raise Refusal(401, "the API key is missing or wrong", code="invalid_api_key")

    async def _embeddings(self, request: Request) -> Response:
        if self._draining:
            raise Refusal(503, "this server is about to stop; try again", code="stopping", retry_s=5)
        self._answering += 1
        try:
            return await self._embedded(request, Deadline(self._timeout_s))
        finally:
            self._answering -= 1

    async def _embedded(self, request: Request, deadline: Deadline) -> Response:
        with self._room.share() as share:
            body = await _body(request, share, deadline)
            asked = await self._beside(partial(understood, body, self._offer))
            # The texts are as large as the body was, and stay.
            size = len(body)
            del body
            tokens = await self._tokens(asked)
            count = sum(len(each.ids) for each in tokens)
            share.holds(size + 4 * count + len(asked) * self._offer.dim * reply.BYTES_PER_NUMBER)
            vectors = await self._desk.embed([each.ids for each in tokens], deadline)
            cut_short = {number for number, each in enumerate(tokens) if each.truncated}

            def written() -> bytes:
                found = reply.cut(vectors, asked.dimensions)
                if not np.isfinite(found).all():
                    message = f"a vector has no direction in {asked.dimensions} dimensions"
                    raise Refusal(400, message, code="no_direction", param="dimensions")
                return reply.written(
                    found, model=self._offer.model, tokens=count, truncated=cut_short, as_base64=asked.base64
                )

            answer = await self._beside(written)
        self._meter.add(metrics.QUERY_TEXTS, len(asked))
        self._meter.add(metrics.QUERY_TOKENS, count)
        self._meter.add(metrics.QUERY_TEXTS_TRUNCATED, len(cut_short))
        return _response(answer)

    async def _tokens(self, asked: Asked) -> list[Tokens]:
        """The tokens of each text, in order; ids that came as such are what they are."""
        found = [Tokens(ids, len(ids)) for ids in asked.ids]
        total = 0
        for start in range(0, len(asked.texts), TOGETHER):
            texts = asked.texts[start : start + TOGETHER]
            encoded = await self._beside(partial(self._tokenizer.encode, texts, [asked.prompt] * len(texts)))
            for tokens in encoded:
                if isinstance(tokens, PoisonError):
                    raise Refusal(400, tokens.message, code=tokens.reason, param="input")
                if len(tokens.ids) == 0:
                    raise Refusal(400, "the model's tokenizer makes nothing of a text", code="no_tokens", param="input")
                if tokens.truncated and self._offer.refuses_long:
                    raise too_long(tokens.total, self._offer)
                found.append(tokens)
                total += len(tokens.ids)
            if total > MOST_TOKENS:
                raise too_many_tokens(total)
        return found

    async def _beside(self, work: Callable[[], type_done]) -> type_done:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)


async def _body(request: Request, share: Share, deadline: Deadline) -> bytes:
    """The body, no more of which is read than may be sent."""
    coding = request.headers.get("content-encoding", "identity").strip().lower()
    if coding not in ("", "identity"):
        raise Refusal(415, "the body has to come as it is, without a Content-Encoding", code="unsupported_encoding")
    declared = request.headers.get("content-length", "0")
    if not re.fullmatch(r"[0-9]{1,20}", declared):
        raise Refusal(400, "Content-Length is no number", code="invalid_value")
    if int(declared) > MOST_BYTES:
        raise _too_large()
    parts, size = [], 0
    try:
        async with asyncio.timeout(deadline.remaining()):
            async for part in request.stream():
                size += len(part)
                if size > MOST_BYTES:
                    raise _too_large()
                share.holds(size)
                parts.append(part)
    except TimeoutError:
        raise Refusal(408, "the body has not come in time", code="timeout") from None
    return b"".join(parts)


def _too_large() -> Refusal:
    return Refusal(413, f"the body may have {MOST_BYTES >> 20} MiB", code="request_too_large")


def _require_method(request: Request, *allowed: str) -> None:
    if request.method not in allowed:
        said = " or ".join(allowed)
        raise Refusal(405, f"the method here is {said}", code="method_not_allowed", allow=", ".join(allowed))


def _response(body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(body, status, headers, media_type="application/json")


def _place(error: Exception) -> str:
    """Where in the code an error was raised."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "" if trace is None else f"{trace.tb_frame.f_code.co_filename.rpartition('/')[2]}:{trace.tb_lineno}"
