"""How much work a schema may ask for, for one value: steps, counted down, and how deep it may go.

Comes in: steps as they are taken. Goes out: nothing, or that there are no more. Never here: what a step is.

A schema of thirty lines can ask for as many steps as there are leaves in a tree of thirty levels, and one that refers to itself for
as many as a value's nesting makes. Where the schema comes from, a registry, is trusted less than code.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

# A step takes some microseconds: small values may take half a second, and large ones fifty microseconds a byte.
STEPS = 100_000
STEPS_A_BYTE = 10
# A level takes three frames of the thousand that Python has. Where those end, what jsonschema is made of panics, in Rust, with
# what is no Exception.
LEVELS = 250


class TooManySteps(Exception):
    """There are no more."""


class TooDeep(Exception):
    """There are no more levels."""


class _Budget:
    """What is left."""

    __slots__ = ("left", "level")

    def __init__(self, left: float) -> None:
        self.left = left
        self.level = 0


_BUDGET: ContextVar[_Budget | None] = ContextVar("steps", default=None)


def steps_for(size: int) -> int:
    """How many steps a value of ``size`` bytes may take."""
    return STEPS + STEPS_A_BYTE * size


@contextlib.contextmanager
def counted(steps: float) -> Iterator[None]:
    """Inside, so many steps may be taken; elsewhere there is no end to them."""
    token = _BUDGET.set(_Budget(steps))
    try:
        yield
    finally:
        _BUDGET.reset(token)


def spend(steps: int) -> None:
    """Take so many.

    Raises:
        TooManySteps: there were fewer left.
    """
    if (budget := _BUDGET.get()) is not None:
        budget.left -= steps
        if budget.left < 0:
            raise TooManySteps


def enter(steps: int) -> None:
    """Take so many, and go a level deeper: :func:`leave` comes back.

    Raises:
        TooManySteps, TooDeep: there are no more.
    """
    if (budget := _BUDGET.get()) is not None:
        spend(steps)
        if budget.level == LEVELS:
            raise TooDeep
        budget.level += 1


def leave() -> None:
    """A level up."""
    if (budget := _BUDGET.get()) is not None:
        budget.level -= 1
