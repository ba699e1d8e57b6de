"""Queries without Ray: what a request means, who waits for whom, what is refused and how, and that no byte of it is repeated."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import random
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from pydantic import ValidationError
from starlette.requests import Request

from pipelines.fit import against_model
from pipelines.model import Model
from pipelines.queries import desk as desks
from pipelines.queries import front as fronts
from pipelines.queries import proxy, reply
from pipelines.queries.desk import Desk
from pipelines.queries.front import Front
from pipelines.queries.line import Line, Waiting
from pipelines.queries.offer import Offer, prompts_for
from pipelines.queries.refusal import Refusal
from pipelines.queries.request import MOST_BYTES, MOST_TEXTS, understood
from pipelines.queries.room import Room
from tests.fakes import CANARY, DIM, FakeTokenizer, fake_encode, fake_vector
from workers import metrics
from workers.deadline import Deadline
from workers.encoder.layout import Layout
from workers.errors import EnvironmentFault, PoisonError, SettingsError
from workers.pool import Answer, PoolClosed, RetryingPool, local_pool
from workers.records import Batch, Tokens
from workers.settings import QueriesSettings, Settings

PROMPTS = {"query": "q: ", "document": "d: ", "none": ""}
OFFER = Offer("tiny", DIM, 64, PROMPTS["query"], PROMPTS, vocabulary=1 << 20)
KEY = "s3cret"
TEXT = "Xylophone-of-the-caller"


class World:
    """A front over a pool in this process."""

    def __init__(
        self,
        pool: Any = None,
        *,
        offer: Offer = OFFER,
        tokenizer: Any = None,
        dim: int = DIM,
        api_key: str | None = None,
        timeout_s: float = 20.0,
        ready: Callable[[], bool] = lambda: True,
    ) -> None:
        self.meter = metrics.Metrics()
        self.pool = pool or local_pool(fake_encode, dim=dim, canary=CANARY, meter=self.meter)
        self.desk = Desk(self.pool, dim=dim, budget=128, meter=self.meter)
        self.front = Front(
            offer,
            tokenizer or FakeTokenizer(),
            self.desk,
            self.meter,
            api_key=api_key,
            timeout_s=timeout_s,
            ready=ready,
        )

    async def ask(
        self, body: Any = b"", method: str = "POST", path: str = fronts.EMBEDDINGS, **headers: str
    ) -> tuple[int, dict[str, str], Any]:
        """Status, headers and JSON of an answer; ``body``: bytes, chunks of them, or what is sent as JSON."""
        if isinstance(body, dict):
            body = json.dumps(body).encode()
        chunks = [body] if isinstance(body, bytes) else list(body)
        if isinstance(body, bytes):
            headers = {"content_length": str(len(body))} | headers
        messages = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
        messages.append({"type": "http.request", "body": b"", "more_body": False})

        async def receive() -> Any:
            return messages.pop(0) if messages else {"type": "http.disconnect"}

        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "query_string": b"",
            "headers": [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in headers.items()],
        }
        response = await self.front(Request(scope, receive))
        await response(scope, receive, send)
        found = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
        answer = b"".join(message.get("body", b"") for message in sent[1:])
        return sent[0]["status"], found, orjson.loads(answer)

    def asks(self, *arguments: Any, **more: Any) -> tuple[int, dict[str, str], Any]:
        return asyncio.run(self.ask(*arguments, **more))


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    made.pool.close()


def vector(text: str) -> np.ndarray:
    return fake_vector("q: " + text)


# ---- what is right


def test_a_text_gets_its_vector_behind_the_prompt_for_queries(world: World) -> None:
    status, headers, answer = world.asks({"model": "tiny", "input": "moon"})
    assert (status, headers["content-type"]) == (200, "application/json")
    assert {**answer, "data": None} == {
        "object": "list",
        "data": None,
        "model": "tiny",
        "usage": {"prompt_tokens": 7, "total_tokens": 7},
    }
    (item,) = answer["data"]
    assert (item["object"], item["index"], set(item)) == ("embedding", 0, {"object", "index", "embedding"})
    assert np.array_equal(np.array(item["embedding"], np.float32), vector("moon"))


def test_many_texts_come_back_in_their_order_and_those_that_were_cut_say_so(world: World) -> None:
    texts = [*(f"text {n}" for n in range(300)), "x" * 100]
    status, _, answer = world.asks({"model": "tiny", "input": texts, "user": "somebody"})
    assert status == 200
    found = np.array([item["embedding"] for item in answer["data"]], np.float32)
    assert np.array_equal(found[:300], np.stack([vector(text) for text in texts[:300]]))
    assert [item["index"] for item in answer["data"]] == list(range(301))
    assert [item["index"] for item in answer["data"] if item.get("truncated")] == [300]
    assert answer["usage"]["prompt_tokens"] == sum(min(64, 3 + len(text)) for text in texts)
    assert world.meter.value(metrics.QUERY_TEXTS) == 301
    assert world.meter.value(metrics.QUERY_TEXTS_TRUNCATED) == 1
    assert world.meter.value(metrics.QUERIES, status="200") == 1
    assert world.meter.value(metrics.QUERIES_WAITING) == world.meter.value(metrics.QUERY_CALLS) == 0


def test_base64_holds_the_bytes_of_little_endian_float32(world: World) -> None:
    _, _, answer = world.asks({"model": "tiny", "input": ["a", "b"], "encoding_format": "base64"})
    found = [np.frombuffer(base64.b64decode(item["embedding"]), "<f4") for item in answer["data"]]
    assert np.array_equal(found, [vector("a"), vector("b")])


@pytest.mark.parametrize("dim", [1, 3, DIM])
def test_dimensions_are_cut_and_made_unit_vectors_again(world: World, dim: int) -> None:
    _, _, answer = world.asks({"model": "tiny", "input": "a", "dimensions": dim, "encoding_format": "float"})
    found = np.array(answer["data"][0]["embedding"])
    assert found == pytest.approx(vector("a")[:dim] / np.linalg.norm(vector("a")[:dim]), abs=1e-6)
    assert np.linalg.norm(found) == pytest.approx(1, abs=1e-6)


def test_a_cut_that_leaves_nothing_is_refused(world: World) -> None:
    assert np.isnan(reply.cut(np.array([[0, 1]], np.float32), 1)).all()


@pytest.mark.parametrize("name", [*PROMPTS, None])
def test_a_prompt_is_named_or_is_the_one_for_queries(world: World, name: str | None) -> None:
    _, _, answer = world.asks({"model": "tiny", "input": "a", "prompt_name": name})
    expected = fake_vector((PROMPTS["query"] if name is None else PROMPTS[name]) + "a")
    assert np.array_equal(np.array(answer["data"][0]["embedding"], np.float32), expected)


@pytest.mark.parametrize("given", [[97, 98], [[97, 98], [99]]])
def test_token_ids_are_embedded_as_they_are(world: World, given: Any) -> None:
    _, _, answer = world.asks({"model": "tiny", "input": given})
    expected = ["ab"] if given == [97, 98] else ["ab", "c"]
    found = np.array([item["embedding"] for item in answer["data"]], np.float32)
    assert np.array_equal(found, [fake_vector(text) for text in expected])
    assert answer["usage"]["total_tokens"] == sum(map(len, expected))


def test_models_are_listed_and_told(world: World) -> None:
    status, _, listed = world.asks(method="GET", path="/v1/models")
    (model,) = listed["data"]
    assert (status, listed["object"], model["id"], model["object"]) == (200, "list", "tiny", "model")
    assert (model["dimensions"], model["max_tokens"], model["prompts"]) == (DIM, 64, ["document", "none", "query"])
    assert world.asks(method="GET", path="/v1/models/tiny")[2] == model
    status, _, said = world.asks(method="GET", path="/v1/models/other")
    assert (status, said["error"]["code"]) == (404, "model_not_found")


def test_ready_is_who_has_an_encoder_or_may_have_one() -> None:
    there = [True]
    world = World(ready=lambda: there[0], api_key=KEY)
    assert world.asks(method="GET", path="/health")[0] == 200, "without a key"
    there[0] = False
    status, headers, said = world.asks(method="GET", path="/health")
    assert (status, headers["retry-after"], said["error"]["type"]) == (503, "5", "server_error")
    world.pool.close()


# ---- who may ask


def test_a_key_is_asked_for_where_there_is_one() -> None:
    world = World(api_key=KEY)
    right = {"model": "tiny", "input": "a"}
    for given in (None, "Bearer", f"Basic {KEY}", "Bearer wrong", f"Bearer {KEY}x", "Bearer sécret", KEY):
        status, headers, said = world.asks(right, **({} if given is None else {"authorization": given}))
        assert (status, said["error"]["code"]) == (401, "invalid_api_key")
        assert headers["www-authenticate"] == "Bearer"
        assert KEY not in json.dumps(said)
    assert world.asks(method="GET", path="/v1/models")[0] == 401
    assert world.asks(right, authorization=f"Bearer {KEY}")[0] == 200
    assert world.asks(right, authorization=f"bearer  {KEY} ")[0] == 200
    world.pool.close()


# ---- what is wrong

RIGHT = {"model": "tiny", "input": TEXT}


@pytest.mark.parametrize(
    ("body", "status", "code", "param"),
    [
        (b"", 400, "invalid_json", None),
        (b"{", 400, "invalid_json", None),
        (b'{"input": "\xff"}', 400, "invalid_json", None),
        (b'{"model": "tiny", "input": "\\ud800"}', 400, "invalid_json", None),
        (b"[" * 100_000, 400, "invalid_json", None),
        (b'{"model": "tiny", "input": "a", "dimensions": NaN}', 400, "invalid_json", None),
        (b"[]", 400, "invalid_value", None),
        ({"input": TEXT}, 400, "invalid_value", "model"),
        ({"model": TEXT, "input": TEXT}, 404, "model_not_found", "model"),
        ({"model": 7, "input": TEXT}, 400, "invalid_value", "model"),
        ({"model": "tiny"}, 400, "invalid_value", "input"),
        ({"model": "tiny", "input": ""}, 400, "invalid_value", "input"),
        ({"model": "tiny", "input": []}, 400, "invalid_value", "input"),
        ({"model": "tiny", "input": [TEXT, ""]}, 400, "invalid_value", "input"),
        ({"model": "tiny", "input": [TEXT, 1]}, 400, "invalid_value", "input"),
        ({"model": "tiny", "input": [1, TEXT]}, 400, "invalid_value", "input"),
        ({"model": "tiny", "input": [[1], TEXT]}, 400, "invalid_value", "input"),
        ({"model": "tiny", "input": [[1], []]}, 400, "invalid_value", "input"),
        ({"model": "tiny", "input": [True]}, 400, "invalid_value", "input"),
        ({"model": "tiny", "input": [1, True]}, 400, "invalid_value", "input"),
        ({"model": "tiny", "input": [-1]}, 400, "invalid_value", "input"),
        ({"model": "tiny", "input": [1 << 20]}, 400, "invalid_value", "input"),
        ({"model": "tiny", "input": [10**30]}, 400, "invalid_value", "input"),
        ({"model": "tiny", "input": [1.5]}, 400, "invalid_value", "input"),
        ({"model": "tiny", "input": {"text": TEXT}}, 400, "invalid_value", "input"),
        ({"model": "tiny", "input": [1] * 65}, 400, "context_length_exceeded", "input"),
        ({"model": "tiny", "input": ["a"] * (MOST_TEXTS + 1)}, 400, "too_many_texts", "input"),
        (RIGHT | {"dimensions": 0}, 400, "invalid_value", "dimensions"),
        (RIGHT | {"dimensions": DIM + 1}, 400, "invalid_value", "dimensions"),
        (RIGHT | {"dimensions": True}, 400, "invalid_value", "dimensions"),
        (RIGHT | {"dimensions": 2.0}, 400, "invalid_value", "dimensions"),
        (RIGHT | {"encoding_format": "int8"}, 400, "invalid_value", "encoding_format"),
        (RIGHT | {"encoding_format": ["float"]}, 400, "invalid_value", "encoding_format"),
        (RIGHT | {"prompt_name": TEXT}, 400, "invalid_value", "prompt_name"),
        (RIGHT | {"prompt_name": ["query"]}, 400, "invalid_value", "prompt_name"),
        ({"model": "tiny", "input": [1], "prompt_name": "query"}, 400, "invalid_value", "prompt_name"),
        (RIGHT | {"input_type": "query"}, 400, "unknown_argument", "input_type"),
        (RIGHT | {TEXT + " and more": 1}, 400, "unknown_argument", None),
    ],
    ids=str,
)  # fmt: skip
def test_what_a_caller_gets_wrong_is_said_in_openais_shape(
    world: World, body: Any, status: int, code: str, param: str | None
) -> None:
    found, _, said = world.asks(body)
    assert set(said) == {"error"}
    assert set(said["error"]) == {"message", "type", "param", "code"}
    assert (found, said["error"]["code"], said["error"]["param"]) == (status, code, param)
    assert said["error"]["type"] == "invalid_request_error"
    assert TEXT not in json.dumps(said)


def test_tokens_of_all_texts_together_have_a_limit(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fronts, "MOST_TOKENS", 640)
    assert world.asks({"model": "tiny", "input": ["x" * 80] * 10})[0] == 200
    status, _, said = world.asks({"model": "tiny", "input": ["x" * 80] * 11})
    assert (status, said["error"]["code"]) == (400, "too_many_tokens")


def test_a_long_text_is_refused_where_the_stream_refuses_it() -> None:
    world = World(offer=Offer("tiny", DIM, 64, refuses_long=True))
    status, _, said = world.asks({"model": "tiny", "input": "x" * 65})
    assert (status, said["error"]["code"], said["error"]["param"]) == (400, "context_length_exceeded", "input")
    assert world.asks({"model": "tiny", "input": "x" * 64})[0] == 200
    world.pool.close()


def test_a_text_that_its_tokenizer_or_its_model_fails_at_is_its_callers_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing(FakeTokenizer):
        def encode(self, texts: Sequence[str], prompts: Sequence[str | None]) -> Any:
            if "bad" in texts:
                return [PoisonError("tokenize", "tokenizer_raised", "the model's tokenizer fails at the text")]
            return [Tokens(np.empty(0, np.int32), 0)] if "none" in texts else super().encode(texts, prompts)

    monkeypatch.setattr("workers.pool.BACKOFF_S", (0.001, 0.002))
    world = World(offer=Offer("tiny", DIM, 64), tokenizer=Failing())
    for text, code in (
        ("bad", "tokenizer_raised"),
        ("none", "no_tokens"),
        ("nan!", "not_finite"),
        ("raise!", "encoder_raised"),
    ):
        status, _, said = world.asks({"model": "tiny", "input": text})
        assert (status, said["error"]["code"]) == (400, code)

    async def beside() -> list[Any]:
        return await asyncio.gather(*(world.ask({"model": "tiny", "input": text}) for text in ("a", "raise!", "b")))

    assert [answer[0] for answer in asyncio.run(beside())] == [200, 400, 200]
    world.pool.close()


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/embeddings", 405),
        ("DELETE", "/v1/models", 405),
        ("POST", "/health", 405),
        ("POST", "/v1/completions", 404),
        ("GET", "/", 404),
        ("GET", "/v1/embeddings/" + TEXT, 404),
    ],
)
def test_other_paths_and_methods_are_refused(world: World, method: str, path: str, status: int) -> None:
    found, headers, said = world.asks(b"", method, path)
    assert found == status
    assert ("allow" in headers) == (status == 405)
    assert TEXT not in json.dumps(said)


def test_bodies_that_are_too_large_or_packed_are_not_read(world: World) -> None:
    read = 0

    def endless() -> Iterator[bytes]:
        nonlocal read
        for _ in range(40):
            read += 1
            yield b"x" * (1 << 20)

    assert world.asks(b"{}", content_length=str(MOST_BYTES + 1))[0] == 413
    assert world.asks(b"{}", content_length="-1")[0] == 400
    assert world.asks(b"{}", content_encoding="gzip")[0] == 415
    status, _, said = world.asks(list(endless()))
    assert (status, said["error"]["code"]) == (413, "request_too_large")
    assert world.front._room.taken == 0


def test_a_body_that_does_not_come_is_not_waited_for() -> None:
    world = World(timeout_s=0.05)

    async def silent() -> int:
        async def receive() -> Any:
            await asyncio.sleep(30)

        scope = {"type": "http", "method": "POST", "path": fronts.EMBEDDINGS, "query_string": b"", "headers": []}
        return (await world.front(Request(scope, receive))).status_code

    assert asyncio.run(silent()) == 408
    world.pool.close()


def test_a_bug_of_ours_says_where_it_is_and_not_what_was_asked(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(body: bytes, offer: Offer) -> None:
        raise KeyError(body.decode())

    monkeypatch.setattr(fronts, "understood", broken)
    status, _, said = world.asks(RIGHT)
    assert (status, said["error"]["type"], said["error"]["code"]) == (500, "server_error", "internal_error")
    assert "query failed error=KeyError at=test_queries.py:" in caplog.text
    assert TEXT not in caplog.text + json.dumps(said)


def wrong(draw: random.Random) -> tuple[Any, dict[str, Any]]:
    """A request that is wrong in one way or another: a body, and the rest."""
    junk = [
        None, True, -1, 0, 1.5, 10**20, "", TEXT, [], {}, [TEXT, None], [[TEXT]], [[1], 2], [[]], [1, "a"], [{}],
        "\x00", [True], {"a": [TEXT]}, [""], [2**31], [[2**40]], [1e300],
    ]  # fmt: skip
    right = json.dumps(RIGHT).encode()
    match draw.randrange(9):
        case 0:
            return draw.randbytes(draw.randrange(200)), {}
        case 1:
            return right[: draw.randrange(len(right))], {}
        case 2:
            at = draw.randrange(len(right))
            return right[:at] + bytes([draw.randrange(128, 256)]) + right[at:], {}
        case 3:
            return RIGHT | {"input": draw.choice([each for each in junk if each not in (TEXT, "\x00")])}, {}
        case 4:
            # null is as if it were not there.
            name = draw.choice(["model", "dimensions", "encoding_format", "prompt_name"])
            return RIGHT | {name: draw.choice(junk[1:])}, {}
        case 5:
            return RIGHT | {draw.choice(["truncate", "Input", TEXT, "", "\u2028"]): draw.choice(junk)}, {}
        case 6:
            path = "/" + "/".join(
                draw.choices(["v1", "embeddings", "models", "..", TEXT, "%00"], k=draw.randrange(1, 5))
            )
            return right, {"path": path if path not in (fronts.EMBEDDINGS, "/v1/models") else "/v2"}
        case 7:
            return right, {"method": draw.choice(["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "TRACE", "X"])}
        case _:
            headers = draw.choice([{"content_length": str(10**9)}, {"content_length": "²"}, {"content_encoding": "br"}])
            return right, headers | {"authorization": f"Bearer {TEXT}"}


def test_a_thousand_wrong_requests_get_4xx_and_nothing_else(world: World, caplog: pytest.LogCaptureFixture) -> None:
    draw = random.Random(11)
    caplog.set_level(logging.DEBUG)

    async def all_of_them() -> list[tuple[int, Any]]:
        found = []
        for number in range(1000):
            body, more = wrong(draw)
            status, _, said = await world.ask(body, **more)
            found.append((status, said))
            if number % 100 == 0:
                assert (await world.ask(RIGHT))[0] == 200, "a right one in between"
        return found

    found = asyncio.run(all_of_them())
    assert {status for status, _ in found} == {400, 404, 405, 413, 415}
    for _, said in found:
        assert set(said["error"]) == {"message", "type", "param", "code"}
        assert TEXT not in json.dumps(said)
    assert TEXT not in caplog.text
    assert not any(TEXT in name for name in world.meter.snapshot())
    assert world.front._room.taken == 0


# ---- who waits


class Held:
    """A pool that answers when it is told to; it keeps what it was sent."""

    def __init__(self, capacity: int = 1) -> None:
        self.sent: list[tuple[Batch, Future[Answer]]] = []
        self.most = capacity

    def submit(self, batch: Batch, deadline: Deadline | None = None) -> Future[Answer]:
        self.sent.append((batch, Future()))
        return self.sent[-1][1]

    def capacity(self) -> int:
        return self.most

    def answer(self, number: int) -> None:
        batch, future = self.sent[number]
        future.set_result(Answer(fake_encode(batch)))

    def close(self) -> None:
        pass


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.001)


def test_while_a_call_is_under_way_the_next_one_gathers_and_a_small_request_passes_a_large_one() -> None:
    pool = Held()
    world = World(pool, offer=Offer("tiny", DIM, 64))

    async def play() -> list[Any]:
        first = asyncio.create_task(world.ask({"model": "tiny", "input": ["x" * 60, *["y" * 60] * 9]}))
        await until(lambda: len(pool.sent) == 1)
        assert [len(batch) for batch, _ in pool.sent] == [2], "a budget of 128"
        small = [asyncio.create_task(world.ask({"model": "tiny", "input": f"s{n}"})) for n in range(3)]
        await until(lambda: world.meter.value(metrics.QUERIES_WAITING) == 4)
        assert len(pool.sent) == 1
        pool.answer(0)
        await until(lambda: len(pool.sent) == 2)
        assert sorted(pool.sent[1][0].lengths.tolist()) == [2, 2, 2, 60, 60], (
            "all of the small ones, and then the large"
        )
        pool.answer(1)
        answers = list(await asyncio.gather(*small))
        assert not first.done()
        for number in range(2, 5):
            await until(lambda number=number: len(pool.sent) > number)
            pool.answer(number)
        return [await first, *answers]

    answers = asyncio.run(play())
    assert [status for status, _, _ in answers] == [200] * 4
    assert len(answers[0][2]["data"]) == 10
    assert world.meter.value(metrics.QUERY_CALLS) == 0


def test_without_an_encoder_a_query_waits_until_one_comes_and_no_longer_than_it_may() -> None:
    pool = Held(capacity=0)
    world = World(pool)

    async def play() -> None:
        asked = asyncio.create_task(world.ask(RIGHT))
        await until(lambda: world.desk.starved)
        assert world.meter.value(metrics.QUERIES_WAITING) == 1, "which is what scaling sees"
        pool.most = 2
        world.desk.send()
        pool.answer(0)
        assert (await asked)[0] == 200
        assert not world.desk.starved

    asyncio.run(play())
    world = World(Held(capacity=0), timeout_s=0.05)
    status, headers, said = world.asks(RIGHT)
    assert (status, headers["retry-after"], said["error"]["code"]) == (503, str(desks.RETRY_S), "no_answer")
    assert not world.desk.starved, "who has gone does not wait"
    assert world.meter.value(metrics.QUERIES_WAITING) == 0


def test_who_hangs_up_is_not_computed_for() -> None:
    pool = Held(capacity=0)
    world = World(pool)

    async def play() -> None:
        asked = asyncio.create_task(world.ask(RIGHT))
        await until(lambda: world.desk.starved)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        pool.most = 1
        world.desk.send()
        assert pool.sent == []
        assert world.front._room.taken == 0

    asyncio.run(play())


def test_a_pool_that_is_closed_is_a_503(world: World) -> None:
    class Closed(Held):
        def submit(self, batch: Batch, deadline: Deadline | None = None) -> Future[Answer]:
            failed: Future[Answer] = Future()
            failed.set_exception(PoolClosed("the encoder pool is closed"))
            return failed

    assert World(Closed()).asks(RIGHT)[0] == 503


def test_there_is_room_for_so_much_and_more_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desks, "MOST_WAITING_TOKENS", 100)
    pool = Held()
    world = World(pool, offer=Offer("tiny", DIM, 64))

    async def play() -> tuple[int, dict[str, str], Any]:
        large = asyncio.create_task(world.ask({"model": "tiny", "input": ["x" * 60] * 2}))
        await until(lambda: len(pool.sent) == 1)
        refused = await world.ask({"model": "tiny", "input": "a"})
        pool.answer(0)
        assert (await large)[0] == 200, "alone it may have more"
        return refused

    status, headers, said = asyncio.run(play())
    assert (status, headers["retry-after"], said["error"]["type"]) == (429, "1", "rate_limit_error")


def test_a_room_gives_back_what_it_gave() -> None:
    room = Room(10)
    with room.share() as first:
        first.holds(20)
        with room.share() as second, pytest.raises(Refusal, match="too many"):
            second.holds(1)
        first.holds(4)
        with room.share() as third:
            third.holds(6)
            with pytest.raises(Refusal):
                first.holds(5)
            first.holds(3)
            assert room.taken == 9
        assert room.taken == 3
    assert room.taken == 0


def test_a_line_goes_round_and_loses_nothing() -> None:
    draw = random.Random(5)
    for _ in range(50):
        line = Line()
        waiting = [
            Waiting.of([np.ones(draw.randrange(1, 30), np.int32) for _ in range(draw.randrange(1, 20))], 2, Deadline(1), None)
            for _ in range(draw.randrange(1, 6))
        ]  # fmt: skip
        for each in waiting:
            line.join(each)
        gone = draw.choice(waiting)
        taken = line.take(40)
        line.leave(gone)
        while rows := line.take(40):
            assert sum(len(each.ids[number]) for each, number in rows) <= 40
            taken += rows
        for each in waiting:
            numbers = [number for whose, number in taken if whose is each]
            assert numbers == list(range(len(each.ids))) or each is gone
        assert len(line) == 0


def test_at_the_end_what_is_here_is_answered_and_nothing_more_is_taken() -> None:
    pool = Held()
    world = World(pool)

    async def play() -> None:
        asked = asyncio.create_task(world.ask(RIGHT))
        await until(lambda: len(pool.sent) == 1)
        assert not await world.front.drain(0.01)
        assert (await world.ask(RIGHT))[0] == 503
        pool.answer(0)
        assert await world.front.drain(5.0)
        assert (await asked)[0] == 200

    asyncio.run(play())


# ---- what is offered


def test_where_the_pooling_leaves_the_prompt_out_there_is_one_prompt(tmp_path: Path) -> None:
    layout = Layout(tmp_path, tmp_path, "bert", 64, 8, 8, prompts=PROMPTS)
    assert prompts_for(layout, "d: ") == PROMPTS
    layout = Layout(tmp_path, tmp_path, "bert", 64, 8, 8, prompts=PROMPTS, include_prompt=False)
    assert prompts_for(layout, "d: ") == {"document": "d: "}


@pytest.mark.parametrize(
    ("layout", "said"),
    [
        ({"route": "document"}, "by another route than document"),
        ({"route": "a/document"}, "by another route than a/document"),
        ({"include_prompt": False}, "leaves the prompt out"),
        ({"route": "query"}, None),
        ({"include_prompt": False, "prompts": {"query": "d: ", "document": "d: "}}, None),
        ({"include_prompt": False, "prompts": {"document": "d: "}}, None),
        ({}, None),
    ],
)
def test_models_whose_queries_the_streams_encoders_cannot_embed_are_refused(
    layout: dict[str, Any], said: str | None, tmp_path: Path
) -> None:
    made = Layout(tmp_path, tmp_path, "bert", 64, 8, 8, **{"prompts": PROMPTS} | layout)
    settings = Settings(model={"prompt": "document"}, queries={"enabled": True})
    against_model(settings.model_copy(update={"queries": QueriesSettings()}), made)
    if said is None:
        against_model(settings, made)
    else:
        with pytest.raises(SettingsError, match=f"queries.enabled: .*{said}"):
            against_model(settings, made)


def test_a_key_fits_a_header_and_is_hidden() -> None:
    key = QueriesSettings(api_key=f" {KEY}\n").api_key
    assert key is not None
    assert key.get_secret_value() == KEY
    assert KEY not in repr(QueriesSettings(api_key=KEY))
    for given in ("", " ", "two words", "sécret"):
        with pytest.raises(ValidationError, match="no header can carry") as refused:
            QueriesSettings(api_key=given)
        assert "sécret" not in str(refused.value)


def test_a_port_that_somebody_has_is_said_before_anything_starts() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(EnvironmentFault, match=rf"queries.port: nothing can listen at 127.0.0.1:{port}: somebody"):
            proxy._require_free("127.0.0.1", port)
    proxy._require_free("127.0.0.1", port)
    with pytest.raises(EnvironmentFault, match=r"nothing can listen at 192\.0\.2\.1"):
        proxy._require_free("192.0.2.1", port)
    assert proxy.address(Settings(queries={"host": "::1", "port": 9})) == "http://[::1]:9/v1"


@pytest.mark.parametrize(
    ("chosen", "most"),
    [
        ({"overflow": "chunk", "chunk": {"tokens": 64}}, 64),
        ({"overflow": "reject", "max_tokens": 72}, 72),
        ({"max_tokens": 80}, 80),
    ],
    ids=str,
)
def test_no_query_is_longer_than_what_the_encoder_takes(chosen: dict[str, Any], most: int) -> None:
    """Of MiniLM: one token more is refused before a call, or cut, and the encoder never raises."""
    model = Model.open(Settings(model={"dtype": "float32", **chosen}))
    encoder = model.encoder(cuda=False)
    sent: list[int] = []

    def encode(batch: Batch) -> Any:
        sent.extend(batch.lengths.tolist())
        return encoder.encode(batch)

    tokenizer, meter = model.tokenizer(), metrics.Metrics()
    pool = local_pool(encode, dim=encoder.dim, canary=Batch.of([tokenizer.canary()]), meter=meter)
    world = World(pool, offer=Offer.of(model), tokenizer=tokenizer, dim=encoder.dim)
    ids = [2000 + n for n in range(257)]
    for length in (most + 1, 256, 257):
        status, _, said = world.asks({"model": model.name, "input": [[5], ids[:length]]})
        assert (status, said["error"]["code"], said["error"]["param"]) == (400, "context_length_exceeded", "input")
        assert str(most) in said["error"]["message"]
    assert sent == []
    status, _, answer = world.asks({"model": model.name, "input": [[5], ids[:most]]})
    assert status == 200 and answer["usage"]["total_tokens"] == most + 1
    assert sent == [1, most], "once, and whole"
    status, _, said = world.asks({"model": model.name, "input": ["short", "and so on " * 200]})
    if chosen.get("overflow") == "reject":
        assert (status, said["error"]["code"]) == (400, "context_length_exceeded")
        assert sent == [1, most]
    else:
        assert status == 200 and [item.get("truncated", False) for item in said["data"]] == [False, True]
        assert len(sent) == 4 and sent[3] == most
    assert world.asks(method="GET", path="/v1/models")[2]["data"][0]["max_tokens"] == most
    pool.close()


def test_a_model_without_prompts_offers_none() -> None:
    with pytest.raises(Refusal, match="has no prompts"):
        understood(b'{"model": "m", "input": "a", "prompt_name": "query"}', Offer("m", 8, 64))


def test_a_batch_with_a_deadline_is_not_sent_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    from workers.pool import Failure, NoAnswer

    monkeypatch.setattr("workers.pool.BACKOFF_S", (0.001, 0.002))
    tried = threading.Semaphore(0)

    def call(batch: Batch) -> Any:
        tried.release()
        raise RuntimeError

    pool = RetryingPool(
        call,
        dim=DIM,
        canary=CANARY,
        classify=lambda _: Failure.NOTHING_RAN,
        capacity=lambda: 1,
        meter=metrics.Metrics(),
    )
    with pytest.raises(NoAnswer):
        pool.submit(CANARY, Deadline(0.05)).result(20)
    assert tried.acquire(timeout=5)
    pool.close()
