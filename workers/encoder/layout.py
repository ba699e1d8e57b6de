"""What a model folder says about itself, in sentence-transformers' layout.

Comes in: a model's name or folder. Goes out: a frozen ``Layout`` with all that decides a vector, or a refusal in one
sentence. Never here: torch, weights, or code that a model brings along.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workers import log
from workers.encoder.chain import Module, read_chain
from workers.encoder.hub import resolve
from workers.encoder.modules import (
    DenseLayer,
    NormLayer,
    UnitLayer,
    positive,
    read_head,
    read_optional,
    read_pooling,
    type_layer,
)
from workers.encoder.requirements import require_versions
from workers.encoder.transformer import Transformer
from workers.errors import EnvironmentFault, SettingsError

__all__ = ["DenseLayer", "Layout", "NormLayer", "UnitLayer", "prompt_advice", "prompt_for", "resolve"]

_logger = log.get(__name__)

# What models call the prompt of the texts that are searched, in the order that sentence-transformers looks for it.
_DOCUMENT_PROMPTS = ("document", "passage", "corpus")


@dataclass(frozen=True, slots=True)
class Layout:
    """A model, as its files describe it.

    ``max_tokens`` counts special tokens and prompt. ``dim`` is the widest vector that the model gives: the head's output,
    or its own ``truncate_dim``. ``head`` runs after pooling, in order. ``normalize`` says whether the model itself ends in
    a Normalize module; the encoder normalises anyway. ``route`` is what was taken of a Router, ``sliding_window`` what was
    given instead of the file's; ``bidirectional``: the files ask for attention in both directions. ``pads_left``: the
    tokenizer pads short texts on the left, where sentence-transformers pads them. ``vocabulary``: how many token ids the
    model has; None where its file does not say.
    """

    folder: Path
    transformer: Path
    model_type: str
    max_tokens: int
    dim: int
    hidden: int
    pooling: tuple[str, ...] = ("mean",)
    include_prompt: bool = True
    head: tuple[type_layer, ...] = ()
    normalize: bool = False
    lower_case: bool = False
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str | None = None
    route: str = ""
    sliding_window: int | None = None
    bidirectional: bool = False
    pads_left: bool = False
    vocabulary: int | None = None

    @classmethod
    def read(cls, folder: Path, *, task: str | None = None, sliding_window: int | None = None) -> Layout:
        """Read ``modules.json`` and what it names.

        Args:
            folder: of the model.
            task: which route to take of a model that has several; None: document, else the model's own default.
            sliding_window: to use instead of the number in the transformer's file.

        Raises:
            EnvironmentFault: a file is missing or broken, or the model is of a kind that is not supported.
            SettingsError: there is no route for the task.
        """
        if not folder.is_dir():
            raise EnvironmentFault(f"{folder}: there is no such model folder")
        options = read_optional(folder / "config_sentence_transformers.json")
        if (kind := options.get("model_type", "SentenceTransformer")) != "SentenceTransformer":
            raise EnvironmentFault(f"{folder} is a {kind}; only SentenceTransformer models give one vector per text")
        if isinstance(requirements := options.get("requirements"), dict):
            require_versions(folder / "config_sentence_transformers.json", requirements)
        bare = not (folder / "modules.json").is_file()
        chain, route = ([Module("Transformer", folder)], "") if bare else read_chain(folder, task)
        kinds = [kind for kind, _ in chain]
        if kinds[:1] != ["Transformer"] or (not bare and kinds[1:2] != ["Pooling"]):
            raise EnvironmentFault(
                f"{folder}: the modules are {' → '.join(kinds)}; supported is Transformer → Pooling → …"
            )
        transformer_folder = chain[0].folder
        transformer = Transformer.read(transformer_folder, bare=bare, sliding_window=sliding_window)
        if bare:
            pooling: tuple[str, ...] = ("lasttoken" if transformer.last_token else "mean",)
            include_prompt = True
            _logger.warning("no modules.json %s", log.fields(folder=folder, pooling=pooling[0]))
        else:
            pooling, include_prompt = read_pooling(chain[1].folder, transformer.hidden)
        if transformer.model_type == "gemma3_text" and not transformer.bidirectional and pooling != ("lasttoken",):
            raise EnvironmentFault(
                f"{transformer_folder / 'config.json'}: a causal Gemma is a language model, whose last token alone has seen "
                "the text"
            )
        head, normalize, width = read_head(chain[2:], transformer.hidden * len(pooling))
        if (truncate := options.get("truncate_dim")) is not None:
            width = min(width, positive(options, "truncate_dim", folder / "config_sentence_transformers.json"))
            _logger.info("truncate_dim %s", log.fields(folder=folder, dim=truncate))
        prompts, default = _prompts(folder, options)
        return cls(
            folder=folder,
            transformer=transformer_folder,
            model_type=transformer.model_type,
            max_tokens=transformer.max_tokens,
            dim=width,
            hidden=transformer.hidden,
            pooling=pooling,
            include_prompt=include_prompt,
            head=head,
            normalize=normalize,
            lower_case=transformer.lower_case,
            prompts=prompts,
            default_prompt=default,
            route=route,
            sliding_window=sliding_window,
            bidirectional=transformer.bidirectional,
            pads_left=transformer.pads_left,
            vocabulary=transformer.vocabulary,
        )


def prompt_for(layout: Layout, prompt: str | None, prompt_text: str | None, setting: str = "model.prompt") -> str:
    """The text that goes before every document: ``prompt_text``, or the table's ``prompt``, or the model's default, or "".

    ``setting``: what names ``prompt``, for the sentence that says it is none.

    Raises:
        SettingsError: the table has no prompt of that name.
    """
    if prompt_text is not None:
        return prompt_text
    if prompt is None:
        return layout.prompts[layout.default_prompt] if layout.default_prompt is not None else ""
    if prompt in layout.prompts:
        return layout.prompts[prompt]
    if not layout.prompts:
        raise SettingsError(f"{setting} is {prompt!r}, but the model has no prompts; leave it out or use prompt_text")
    near = difflib.get_close_matches(prompt, layout.prompts, n=1)
    if not near and prompt in _DOCUMENT_PROMPTS:
        near = [name for name in _DOCUMENT_PROMPTS if name in layout.prompts][:1]
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise SettingsError(f"{setting} is {prompt!r}; the model knows {', '.join(sorted(layout.prompts))}{hint}")


def prompt_advice(layout: Layout, prompt: str | None, prompt_text: str | None) -> str | None:
    """What to say to someone who names no prompt of a model that has some; None where there is nothing to say.

    Sentence-transformers embeds without a prompt then, and says nothing: also where the model has one for documents and
    calls it passage.
    """
    table = sorted(name for name, text in layout.prompts.items() if text)
    if prompt is not None or prompt_text is not None or layout.default_prompt is not None or not table:
        return None
    fitting = next((name for name in _DOCUMENT_PROMPTS if name in table), None)
    found = f"one for documents, {fitting!r}" if fitting else f"prompts ({', '.join(table)})"
    return (
        f"the model has {found}, and none is chosen: texts are embedded without; set model.prompt"
        f'{"" if fitting is None else ": " + fitting}, or model.prompt_text to "" if that is meant'
    )


def _prompts(folder: Path, options: Mapping[str, Any]) -> tuple[dict[str, str], str | None]:
    """The prompt table, and the name of the one that is used when none is chosen."""
    path = folder / "config_sentence_transformers.json"
    table = options.get("prompts") or {}
    if not isinstance(table, dict) or not all(text is None or isinstance(text, str) for text in table.values()):
        raise EnvironmentFault(f"{path}: prompts is not a table of texts")
    prompts = {str(name): text or "" for name, text in table.items()}
    default = options.get("default_prompt_name")
    if default is not None and (not isinstance(default, str) or default not in prompts):
        raise EnvironmentFault(f"{folder}: default_prompt_name is {default!r}, which the prompt table does not have")
    return prompts, default
