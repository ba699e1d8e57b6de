"""What the lab feeds a pipeline: records of which it knows what must become of each.

Comes in: a seed. Goes out: numbered records, good, bad and deletes. Never here: what the pipeline made of them.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

WORDS = ("stream", "text", "vector", "topic", "offset", "partition", "reader", "encoder", "commit", "order", "key")
NUMBER = "number"
# A text that ends whatever encoder takes it.
POISON = "the text that no encoder survives: quixotic zephyr 7919"


@dataclass(frozen=True, slots=True)
class Document:
    """A record as it is produced, and its outcome: ``vector``, ``tombstone``, or the stage at which it is refused."""

    number: int
    key: bytes | None
    value: bytes | None
    outcome: str
    text: str = ""

    @property
    def headers(self) -> list[tuple[str, bytes]]:
        """Its number, which outputs and dead letters keep, beside one header twice over."""
        return [(NUMBER, str(self.number).encode()), ("trace", b"\x00\xff"), ("trace", b"")]


# Stages, and values that are refused there.
BAD: tuple[tuple[str, Callable[[int], bytes]], ...] = (
    ("decode", lambda n: f'{{"id": "{n}", "text": "cut sho'.encode()),
    ("decode", lambda n: b"\xff\xfe\x00" + str(n).encode()),
    ("text", lambda n: json.dumps({"id": str(n)}).encode()),
    ("text", lambda n: json.dumps({"id": str(n), "text": 17}).encode()),
    ("text", lambda n: json.dumps({"id": str(n), "text": " \n"}).encode()),
    ("text", lambda n: f'{{"id": "{n}", "text": "half a pair: \\ud83d"}}'.encode()),
    ("decode", lambda n: json.dumps([n, "no object"]).encode()),
    ("decode", lambda n: b"[" * 100_000 + str(n).encode()),
)


# What a line may not show: two words of a text, one after its number, or what is said in no other place.
_TEXT = re.compile(
    r"(?:\b\d+ )?(?<!\.)\b(?:{words})\b(?: (?:{words})\b)+|\b\d+ (?:{words})\b|\b(?:{words}) once more|{poison}|"
    r"half a pair|no object|cut sho".format(words="|".join(WORDS), poison=re.escape(POISON))
)


def without_text(line: str) -> str:
    """A log's line without any piece of a record's text, should one be in it."""
    return _TEXT.sub("…", line)


def documents(count: int, seed: int, *, poison: bool = False, long: bool = False) -> Iterator[Document]:
    """``count`` records of mixed lengths under keys that repeat: 1 % bad, 1 % deletes, 10 % with the text of others.

    ``poison``: one text in the middle ends every encoder that takes it; ``long``: one in 200 has 20 to 100 kB.
    """
    rng = random.Random(seed)
    for number in range(count):
        key = f"key-{rng.randrange(max(1, count // 10))}".encode()
        chance = rng.random()
        if chance < 0.01:
            outcome, make = rng.choice(BAD)
            yield Document(number, key, make(number), outcome)
        elif chance < 0.02:
            yield (
                Document(number, None, None, "decode")
                if rng.random() < 0.1
                else Document(number, key, None, "tombstone")
            )
        else:
            words = rng.randrange(3_000, 15_000) if long and rng.random() < 0.005 else _length(rng)
            text = f"{number} {' '.join(rng.choices(WORDS, k=words))}"
            if number % 10 == 3:
                text = f"{WORDS[number // 10 % len(WORDS)]} once more"  # encoded once for those that wait together
            outcome = "vector"
            if poison and number == count // 2:
                text, outcome = POISON, "encode"
            value = json.dumps({"id": f"id-{number}", "text": text}).encode()
            yield Document(number, key, value, outcome, text)


def _length(rng: random.Random) -> int:
    return int(rng.paretovariate(1.2) * 4) % 200 + 1
