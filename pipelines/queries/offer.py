"""What may be asked for: the model's name, its dimensions, its prompts.

Comes in: an opened model. Goes out: values that requests are held against. Never here: weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pipelines.model import Model
from workers.encoder.layout import Layout

QUERY = "query"


@dataclass(frozen=True, slots=True)
class Offer:
    """A model as it is offered.

    ``max_tokens``: of the longest query, which is what encoders and the tokenizer beside them take: a chunk's, where the stream's
    texts are cut into those. ``prompt``: the text that goes before a query which names none of ``prompts``.
    """

    model: str
    dim: int
    max_tokens: int
    prompt: str = ""
    prompts: Mapping[str, str] | None = None
    vocabulary: int | None = None
    refuses_long: bool = False

    @classmethod
    def of(cls, model: Model) -> Offer:
        """What a model offers, as the settings use it."""
        layout = model.layout
        return cls(
            model=model.name,
            dim=layout.dim,
            max_tokens=model.text_tokens,
            prompt=layout.prompts.get(QUERY, model.prompt),
            prompts=prompts_for(layout, model.prompt),
            vocabulary=layout.vocabulary,
            refuses_long=model.settings.model.overflow == "reject",
        )


def prompts_for(layout: Layout, streams: str) -> dict[str, str]:
    """The prompts of the model's table that encoders can take, which embed texts behind the stream's own prompt.

    Where the pooling leaves the prompt out, they leave out as many tokens of each text as that one has: it is the only one.
    """
    return {name: text for name, text in layout.prompts.items() if layout.include_prompt or text == streams}
