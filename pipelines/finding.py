"""What ``check`` has to say of one thing.

Comes in: nothing. Goes out: a value. Never here: looking.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at: ``wrong`` is None, or the sentence that says what is wrong and what to do.

    What ``may_never_happen`` is a warning, and ``run`` starts in spite of it.
    """

    subject: str
    wrong: str | None = None
    may_never_happen: bool = False
