"""Everything that can go wrong, by what should happen next.

    StreamEmbedderError
    ├── SettingsError      the settings are wrong            → one sentence, exit 2
    ├── EnvironmentFault   broker, model or sink are wrong   → one sentence, exit 1
    │   └── DeviceLost     a GPU fails at everything         → the process ends; another one may use it
    ├── RetryableError     nothing is wrong with the data    → back off, try again; nothing is committed meanwhile
    │   └── CommitError    a commit failed or is in doubt    → ask what was committed, retry the rest
    └── PoisonError        one record is wrong               → dead letter

Messages are for the person who reads them: what is wrong, where, and what to do. They never quote a record.
"""

from __future__ import annotations


class StreamEmbedderError(Exception):
    """Root of the tree; ``exit_code`` is what a command ends with when it lets the error out."""

    exit_code = 1


class SettingsError(StreamEmbedderError):
    """The settings are wrong: unknown key, wrong type, values that contradict each other or the model."""

    exit_code = 2


class EnvironmentFault(StreamEmbedderError):
    """What the settings point at is wrong or out of reach: broker, topic, rights, model, sink."""


class DeviceLost(EnvironmentFault):
    """After an error of a GPU's, this process can do nothing more with it."""


class RetryableError(StreamEmbedderError):
    """Something outside the data failed; trying again later is right."""


class CommitError(RetryableError):
    """A transaction or an offset commit failed, or its outcome is unknown."""


class PoisonError(StreamEmbedderError):
    """One record cannot be processed; becomes a DeadLetter with this ``stage`` and ``reason``."""

    def __init__(self, stage: str, reason: str, message: str) -> None:
        """``stage`` and ``reason`` as in :class:`workers.records.DeadLetter`; ``message`` never quotes the record."""
        super().__init__(message)
        self.stage = stage
        self.reason = reason
        self.message = message


def in_one_line(error: Exception) -> str:
    """What a library raised, as one line of a sentence."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
