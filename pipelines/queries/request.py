"""What a request asks for, as OpenAI's API words it. Pure.

Comes in: a body, and what is offered. Goes out: texts or token ids, and how their vectors are wanted; or a refusal, whatever the
bytes are. Never here: a tokenizer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from pipelines.queries.offer import Offer
from pipelines.queries.refusal import Refusal
from workers.records import type_ids

# OpenAI's own limits.
MOST_TEXTS = 2048
MOST_TOKENS = 300_000
# Eight times what that many tokens take in English; a body is looked at whole.
MOST_BYTES = 8 << 20

KNOWN = ("input", "model", "dimensions", "encoding_format", "prompt_name", "user")
_BOUND = 1 << 31  # of int32


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that makes sense: ``texts``, or ``ids`` of texts that the caller has tokenised, int32 [n] each."""

    dimensions: int
    base64: bool
    prompt: str
    texts: tuple[str, ...] = ()
    ids: tuple[type_ids, ...] = ()

    def __len__(self) -> int:
        return len(self.texts) + len(self.ids)


def understood(body: bytes, offer: Offer) -> Asked:
    """What a body asks for.

    Raises:
        Refusal: something in it is not as it should be; 404 for a model that is not here, 400 else.
    """
    try:
        asked = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise Refusal(400, "the body is not JSON, in UTF-8", code="invalid_json") from None
    if not isinstance(asked, dict):
        raise _wrong("the body has to be a JSON object with input and model", None)
    for name in asked:
        if name not in KNOWN:
            said = name if re.fullmatch(r"[a-zA-Z_]{1,32}", name) else None
            raise Refusal(
                400,
                f"unknown argument{'' if said is None else ' ' + said}; known are {', '.join(KNOWN)}",
                code="unknown_argument",
                param=said,
            )
    _require_model(asked.get("model"), offer)
    texts, ids = _input(asked.get("input"), offer)
    return Asked(
        dimensions=_dimensions(asked.get("dimensions"), offer),
        base64=_base64(asked.get("encoding_format")),
        prompt=_prompt(asked.get("prompt_name"), offer, tokenised=bool(ids)),
        texts=texts,
        ids=ids,
    )


def _wrong(message: str, param: str | None, code: str = "invalid_value") -> Refusal:
    return Refusal(400, message, code=code, param=param)


def _require_model(named: Any, offer: Offer) -> None:
    """A caller that means another model must not get this one's vectors, which compare with none of the other's."""
    if not isinstance(named, str) or not named:
        raise _wrong(f"model has to be a name; here is {offer.model}", "model")
    if named != offer.model:
        raise no_such_model(offer)


def no_such_model(offer: Offer) -> Refusal:
    """Of any model but one."""
    message = f"there is no such model here; there is {offer.model}"
    return Refusal(404, message, code="model_not_found", param="model")


def _input(given: Any, offer: Offer) -> tuple[tuple[str, ...], tuple[type_ids, ...]]:
    """Texts, or ids."""
    if isinstance(given, str):
        return _texts([given]), ()
    if not isinstance(given, list) or not given:
        raise _wrong("input has to be a text, a list of texts, a list of token ids, or a list of such lists", "input")
    if type(given[0]) is int:
        return (), (_ids(given, offer),)
    if len(given) > MOST_TEXTS:
        raise _wrong(f"input has {len(given)} items, and a request may have {MOST_TEXTS}", "input", "too_many_texts")
    if isinstance(given[0], str):
        return _texts(given), ()
    ids = tuple(_ids(each, offer) for each in given)
    if (tokens := sum(map(len, ids))) > MOST_TOKENS:
        raise too_many_tokens(tokens)
    return (), ids


def _texts(given: list[Any]) -> tuple[str, ...]:
    if not all(isinstance(text, str) for text in given):
        raise _wrong("the items of input have to be of one kind, all texts or all lists of token ids", "input")
    if not all(given):
        raise _wrong("a text of input is empty", "input")
    return tuple(given)


def _ids(given: Any, offer: Offer) -> type_ids:
    """One text's ids, as the model reads them: special tokens and prompt are the caller's."""
    if not isinstance(given, list) or not given:
        raise _wrong(
            "the items of input have to be of one kind: texts, or lists of token ids, none of them empty", "input"
        )
    if len(given) > offer.max_tokens:
        raise too_long(len(given), offer)
    bound = min(offer.vocabulary or _BOUND, _BOUND)
    if not all(type(each) is int and 0 <= each < bound for each in given):
        raise _wrong(
            f"token ids have to be whole numbers from 0 to {bound - 1}, as the model's own tokenizer makes", "input"
        )
    return np.array(given, np.int32)


def too_long(tokens: int, offer: Offer) -> Refusal:
    """Of a text that is not to be cut."""
    message = f"a text has {tokens} tokens or more, and {offer.max_tokens} is what a query may have"
    return _wrong(message, "input", "context_length_exceeded")


def too_many_tokens(tokens: int) -> Refusal:
    """Of all texts together."""
    return _wrong(f"input has {tokens} tokens, and a request may have {MOST_TOKENS}", "input", "too_many_tokens")


def _dimensions(given: Any, offer: Offer) -> int:
    if given is None:
        return offer.dim
    if type(given) is not int or not 1 <= given <= offer.dim:
        raise _wrong(f"dimensions has to be a whole number from 1 to {offer.dim}", "dimensions")
    return given


def _base64(given: Any) -> bool:
    if given not in (None, "float", "base64"):
        raise _wrong("encoding_format has to be float or base64", "encoding_format")
    return bool(given == "base64")


def _prompt(given: Any, offer: Offer, *, tokenised: bool) -> str:
    if given is None:
        return offer.prompt
    if tokenised:
        raise _wrong("prompt_name is of no use with token ids, which are embedded as they are", "prompt_name")
    prompts = offer.prompts or {}
    if not isinstance(given, str) or given not in prompts:
        there = f"has {', '.join(sorted(prompts))}" if prompts else "has no prompts, so leave it out"
        raise _wrong(f"prompt_name has to be one of the model's prompts; {offer.model} {there}", "prompt_name")
    return prompts[given]
