"""A prompt of the model's own table, which each record names.

Comes in: a template of the name, the table, a record's fields. Goes out: the prompt as the table has it. Never here: where the
table comes from, or what a record said in a message.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from workers.codecs.template import Template
from workers.errors import PoisonError


@dataclass(frozen=True, slots=True)
class NamedPrompt:
    """``name`` makes the name of one of ``prompts``. See :class:`workers.codecs.template.Template`."""

    name: Template
    prompts: Mapping[str, str]

    @property
    def fields(self) -> tuple[str, ...]:
        """See :class:`workers.codecs.template.Template`."""
        return self.name.fields

    @property
    def needed(self) -> tuple[tuple[str, ...], ...]:
        """See :class:`workers.codecs.template.Template`."""
        return self.name.needed

    @property
    def has_defaults(self) -> bool:
        """See :class:`workers.codecs.template.Template`."""
        return self.name.has_defaults

    def render(self, values: Mapping[str, object]) -> str:
        """The prompt itself, in which nothing stands for anything else.

        Raises:
            PoisonError: as the template; or ``unknown_prompt``: the model has none of that name.
        """
        prompt = self.prompts.get(self.name.render(values))
        if prompt is None:
            known = ", ".join(sorted(self.prompts)) or "none"
            message = f"the record names a prompt that the model does not have; it has {known}"
            raise PoisonError("text", "unknown_prompt", message)
        return prompt

    def render_id(self, values: Mapping[str, object]) -> str:
        """As :meth:`render`: a prompt is no id."""
        return self.render(values)
