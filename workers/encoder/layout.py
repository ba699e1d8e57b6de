"""What a model folder says about itself, in sentence-transformers' layout.

Comes in: a model's name or folder. Goes out: a frozen ``Layout`` with all that decides a vector, or a refusal in one
sentence. Never here: torch, transformers, weights, or code that a model brings along.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from workers import log
from workers.encoder.hub import resolve
from workers.encoder.modules import (
    DenseLayer,
    NormLayer,
    positive,
    read_head,
    read_json,
    read_object,
    read_optional,
    read_pooling,
    require_weights,
)
from workers.errors import EnvironmentFault, SettingsError

__all__ = ["SUPPORTED", "DenseLayer", "Layout", "NormLayer", "prompt_for", "resolve"]

_logger = log.get(__name__)

# Learned positions: a text longer than the table crashes. The second group starts counting after its padding id.
_ABSOLUTE = {"bert", "distilbert", "electra", "albert"}
_ABSOLUTE_OFFSET = {"roberta", "xlm-roberta", "camembert", "mpnet"}
_ROTARY = {"gemma3_text", "modernbert"}
SUPPORTED = _ABSOLUTE | _ABSOLUTE_OFFSET | _ROTARY

_TRANSFORMER_FILES = ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
_HARMLESS_ARGUMENTS = {"trust_remote_code", "dtype", "torch_dtype", "attn_implementation", "padding_side", "use_fast"}


@dataclass(frozen=True, slots=True)
class Layout:
    """A model, as its files describe it.

    ``max_tokens`` counts special tokens and prompt. ``dim`` is the widest vector that the model gives: the head's output,
    or its own ``truncate_dim``. ``head`` runs after pooling, in order. ``normalize`` says whether the model itself ends in
    a Normalize module; the encoder normalises anyway.
    """

    folder: Path
    transformer: Path
    model_type: str
    max_tokens: int
    dim: int
    hidden: int
    pooling: tuple[str, ...] = ("mean",)
    include_prompt: bool = True
    head: tuple[DenseLayer | NormLayer, ...] = ()
    normalize: bool = False
    lower_case: bool = False
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str | None = None

    @classmethod
    def read(cls, folder: Path) -> Layout:
        """Read ``modules.json`` and what it names.

        Raises:
            EnvironmentFault: a file is missing or broken, or the model is of a kind that is not supported.
        """
        options = read_optional(folder / "config_sentence_transformers.json")
        if (kind := options.get("model_type", "SentenceTransformer")) != "SentenceTransformer":
            raise EnvironmentFault(f"{folder} is a {kind}; only SentenceTransformer models give one vector per text")
        modules = _modules(folder)
        if modules[0][0] != "Transformer" or len(modules) < 2 or modules[1][0] != "Pooling":
            chain = " → ".join(kind for kind, _ in modules)
            raise EnvironmentFault(f"{folder}: the modules are {chain}; supported is Transformer → Pooling → …")
        transformer = modules[0][1]
        config, model_type = _transformer(transformer)
        arguments = _transformer_arguments(transformer)
        hidden = positive(config, "hidden_size" if "hidden_size" in config else "dim", transformer / "config.json")
        pooling, include_prompt = read_pooling(modules[1][1], hidden)
        width = hidden * len(pooling)
        head, normalize, width = read_head(modules[2:], width)
        if (truncate := options.get("truncate_dim")) is not None:
            width = min(width, positive(options, "truncate_dim", folder / "config_sentence_transformers.json"))
            _logger.info("truncate_dim %s", log.fields(folder=folder, dim=truncate))
        prompts = {str(name): str(text) for name, text in (options.get("prompts") or {}).items() if text is not None}
        default = options.get("default_prompt_name")
        if default is not None and default not in prompts:
            raise EnvironmentFault(
                f"{folder}: default_prompt_name is {default!r}, which the prompt table does not have"
            )
        return cls(
            folder=folder,
            transformer=transformer,
            model_type=model_type,
            max_tokens=_max_tokens(transformer, config, model_type, arguments.get("max_seq_length")),
            dim=width,
            hidden=hidden,
            pooling=pooling,
            include_prompt=include_prompt,
            head=head,
            normalize=normalize,
            lower_case=bool(arguments.get("do_lower_case", False)),
            prompts=prompts,
            default_prompt=default,
        )


def prompt_for(layout: Layout, prompt: str | None, prompt_text: str | None) -> str:
    """The text that goes before every document: ``prompt_text``, or the table's ``prompt``, or the model's default, or "".

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
        raise SettingsError(
            f"model.prompt is {prompt!r}, but the model has no prompts; leave it out or use prompt_text"
        )
    near = difflib.get_close_matches(prompt, layout.prompts, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise SettingsError(f"model.prompt is {prompt!r}; the model knows {', '.join(sorted(layout.prompts))}{hint}")


def _modules(folder: Path) -> list[tuple[str, Path]]:
    """(kind, folder) of each module, in order."""
    if not folder.is_dir():
        raise EnvironmentFault(f"{folder}: there is no such model folder")
    if not (folder / "modules.json").is_file():
        _logger.warning("no modules.json, taking mean pooling %s", log.fields(folder=folder))
        return [("Transformer", folder), ("Pooling", Path())]
    listed = read_json(folder / "modules.json")
    if not isinstance(listed, list) or not listed or not all(isinstance(module, dict) for module in listed):
        raise EnvironmentFault(f"{folder / 'modules.json'} is not a list of modules")
    modules = []
    for module in listed:
        kind, path = str(module.get("type", "")), str(module.get("path", ""))
        if not kind.startswith("sentence_transformers."):
            raise EnvironmentFault(f"{folder}: module {kind!r} would run code from outside; it is not supported")
        parts = PurePosixPath(path)
        if parts.is_absolute() or ".." in parts.parts or "\\" in path or "\0" in path:
            raise EnvironmentFault(f"{folder / 'modules.json'}: a module's path leads out of the model folder")
        modules.append((kind.rpartition(".")[2], folder / parts))
    return modules


def _transformer(folder: Path) -> tuple[dict[str, Any], str]:
    """The transformer's config.json and its model_type, if it is one that we run rightly."""
    if (folder / "adapter_config.json").is_file():
        raise EnvironmentFault(f"{folder} holds a PEFT adapter; merge it into its base model first")
    path = folder / "config.json"
    config = read_object(path)
    model_type = str(config.get("model_type", ""))
    if model_type not in SUPPORTED:
        code = " and brings its own code" if "auto_map" in config else ""
        raise EnvironmentFault(
            f"{path}: model_type {model_type!r} is not supported{code}; supported are {', '.join(sorted(SUPPORTED))}"
        )
    if model_type == "gemma3_text":
        if not config.get("use_bidirectional_attention"):
            raise EnvironmentFault(f"{path}: a causal Gemma is a language model, not an encoder")
        window = positive(config, "sliding_window", path)
        if window % 2:
            # Older transformers wrote half the window plus one when they saved; such a file loads without a word.
            raise EnvironmentFault(
                f"{path}: sliding_window {window} was halved by an older transformers; restore the model's own "
                "(512 for EmbeddingGemma)"
            )
    require_weights(folder)
    return config, model_type


def _transformer_arguments(folder: Path) -> dict[str, Any]:
    names = (folder / f"sentence_{name}_config.json" for name in _TRANSFORMER_FILES)
    path = next((name for name in names if name.is_file()), None)
    arguments = read_object(path) if path is not None else {}
    task = arguments.get("transformer_task", "feature-extraction")
    output = arguments.get("module_output_name", "token_embeddings")
    if task != "feature-extraction" or output != "token_embeddings" or arguments.get("processing_kwargs"):
        raise EnvironmentFault(f"{path}: only plain token embeddings of plain text are supported")
    for key, values in arguments.items():
        if key.endswith(("_args", "_kwargs")) and isinstance(values, dict):
            for name in sorted(set(values) - _HARMLESS_ARGUMENTS):
                raise EnvironmentFault(f"{path}: {key}.{name} is not supported")
    return arguments


def _max_tokens(folder: Path, config: Mapping[str, Any], model_type: str, own: int | None) -> int:
    """The module's own limit, else the tokenizer's and the positions' smaller one; never more than there are positions."""
    positions = positive(config, "max_position_embeddings", folder / "config.json")
    if model_type in _ABSOLUTE_OFFSET:
        padding = config.get("pad_token_id")
        positions -= (1 if padding is None else int(padding)) + 1
    if own is not None:
        own = positive({"max_seq_length": own}, "max_seq_length", folder)
        return own if model_type in _ROTARY else min(own, positions)
    tokenizer = read_optional(folder / "tokenizer_config.json").get("model_max_length")
    return min(int(tokenizer), positions) if tokenizer else positions
