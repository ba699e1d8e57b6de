"""What a transformer's own files say: its kind, its width, how many tokens it takes.

Comes in: the transformer's folder. Goes out: a frozen ``Transformer``, or a refusal in one sentence. Never here: torch or
weights; and transformers only to ask about a kind of model that is not in the tables below.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workers import log
from workers.encoder.modules import positive, read_object, read_optional, require_weights
from workers.errors import EnvironmentFault, SettingsError, in_one_line

_logger = log.get(__name__)

# Kinds whose config.json needs no interpreter; the tests compare each with sentence-transformers. Any other that
# transformers knows is read through it, which costs its import. By how positions end: in a table that starts at row 0, in
# a table that starts after the padding id, or not at all (rotary or relative).
_TABLE = {"bert", "distilbert", "electra", "albert", "deberta-v2"}
_TABLE_AFTER_PADDING = {"roberta", "xlm-roberta", "camembert", "mpnet"}
_ENDLESS = {"gemma3_text", "modernbert", "qwen2", "qwen3", "llama", "mistral", "t5", "mt5"}
_TABLES = _TABLE | _TABLE_AFTER_PADDING | _ENDLESS

# How a configuration says that its positions are rotary; then max_position_embeddings is advice.
_ROTARY_KEYS = {"rope_theta", "rope_parameters", "rope_scaling", "global_rope_theta", "rotary_emb_base"}
# Sentence-transformers would take any length of a model without positions; a token budget needs a number.
_NO_LIMIT = 8192
# No model takes more; a larger number says that there is no limit, as the tokenizers' 10^30 does.
_PLAUSIBLE = 2**20

_ARGUMENT_FILES = ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
_HARMLESS_ARGUMENTS = {
    "add_pooling_layer",
    "attn_implementation",
    "dtype",
    "low_cpu_mem_usage",
    "torch_dtype",
    "trust_remote_code",
    "use_fast",
}
# What the tokenizer is told, and we follow: see _max_tokens and _pads_left.
_FOLLOWED_ARGUMENTS = {"model_max_length", "padding_side"}
_PLAIN_TEXT = {"method": "forward", "method_output_name": "last_hidden_state"}


@dataclass(frozen=True, slots=True)
class Transformer:
    """A transformer as its files describe it.

    ``hidden`` is the width per token, ``max_tokens`` the longest text with special tokens. ``last_token`` says that it was
    made to predict the next token, so that without further word its last token stands for the text. ``bidirectional``: the
    files ask for attention in both directions, whatever the class does by itself. ``pads_left``: the tokenizer pads short
    texts on the left. ``vocabulary``: how many token ids it has; None where the file does not say.
    """

    model_type: str
    hidden: int
    max_tokens: int
    lower_case: bool = False
    last_token: bool = False
    bidirectional: bool = False
    pads_left: bool = False
    vocabulary: int | None = None

    @classmethod
    def read(cls, folder: Path, *, bare: bool, sliding_window: int | None = None) -> Transformer:
        """Read ``config.json`` and ``sentence_bert_config.json``.

        Args:
            folder: of the transformer.
            bare: there is no ``modules.json``, so nothing says how sentence-transformers should use it.
            sliding_window: to use instead of the file's.

        Raises:
            EnvironmentFault: a file is missing or broken, or the model is not one that we run rightly.
            SettingsError: a window for a model that has none.
        """
        if (folder / "adapter_config.json").is_file():
            raise EnvironmentFault(f"{folder} holds a PEFT adapter; merge it into its base model first")
        path = folder / "config.json"
        config = _config(folder, path)
        _refuse(folder, path, config, bare)
        model_type = str(config["model_type"])
        arguments = _arguments(folder)
        require_weights(folder)
        bidirectional = config.get("use_bidirectional_attention") is True or config.get("is_causal") is False
        if sliding_window is not None and config.get("sliding_window") is None:
            raise SettingsError(f"model.sliding_window is {sliding_window}, but the model has no sliding window")
        if sliding_window is None and model_type == "gemma3_text" and bidirectional:
            _refuse_halved(path, config)
        return cls(
            model_type=model_type,
            hidden=positive(config, _first(config, "hidden_size", "d_model", "dim", "n_embd"), path),
            max_tokens=_max_tokens(folder, config, model_type, arguments),
            lower_case=bool(arguments.get("do_lower_case", False)),
            last_token=_architecture(config).endswith("ForCausalLM") and config.get("is_causal") is not False,
            bidirectional=bidirectional,
            pads_left=_pads_left(folder, arguments),
            vocabulary=None if config.get("vocab_size") is None else positive(config, "vocab_size", path),
        )


def _config(folder: Path, path: Path) -> Mapping[str, Any]:
    """The configuration; of a kind that is not in the tables, as transformers understands it."""
    config = read_object(path)
    model_type = config.get("model_type", "")
    if not isinstance(model_type, str):
        raise EnvironmentFault(f"{path}: model_type should be a name")
    if model_type in _TABLES:
        return config
    from transformers import CONFIG_MAPPING, AutoConfig, __version__  # noqa: PLC0415 - takes seconds, and is rarely needed

    if model_type not in CONFIG_MAPPING:
        code = "; the code that it brings along is not run" if "auto_map" in config else ""
        raise EnvironmentFault(f"{path}: transformers {__version__} does not know model_type {model_type!r}{code}")
    try:
        whole = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise EnvironmentFault(f"{path} is not understood: {in_one_line(error)}") from error
    named = ("hidden_size", "max_position_embeddings", "pad_token_id", "rope_parameters", "vocab_size")
    return {**config, **{name: value for name in named if (value := getattr(whole, name, None)) is not None}}


def _refuse(folder: Path, path: Path, config: Mapping[str, Any], bare: bool) -> None:
    if any(f"{kind}_config" in config for kind in ("text", "vision", "audio", "encoder", "decoder")):
        raise EnvironmentFault(f"{path}: a model of several parts (pictures, sound, a decoder) is not supported")
    kernel = config.get("attn_implementation") or config.get("_attn_implementation")
    if isinstance(kernel, str) and "/" in kernel:
        raise EnvironmentFault(f"{path}: attn_implementation {kernel!r} would fetch code; leave it out")
    if not bare:
        return
    architecture = _architecture(config)
    if architecture.endswith("ForSequenceClassification"):
        raise EnvironmentFault(
            f"{folder} is a {architecture}, a classifier or cross encoder; it gives no vector per text"
        )
    settings = read_optional(folder / "tokenizer_config.json")
    if settings.get("chat_template") or any(folder.glob("chat_template*")):
        raise EnvironmentFault(
            f"{folder} has a chat template and no modules.json, so sentence-transformers would wrap each text in a chat; "
            "save it with sentence-transformers, as Transformer and Pooling"
        )


def _refuse_halved(path: Path, config: Mapping[str, Any]) -> None:
    window = positive(config, "sliding_window", path)
    if window % 2:
        # Older transformers wrote half the window plus one when they saved; such a file loads without a word.
        raise EnvironmentFault(
            f"{path}: sliding_window {window} was halved by an older transformers; restore the model's own, or set "
            "model.sliding_window (512 for EmbeddingGemma)"
        )


def _arguments(folder: Path) -> dict[str, Any]:
    """How sentence-transformers is told to use the transformer; whatever would change the maths is refused."""
    names = (folder / f"sentence_{name}_config.json" for name in _ARGUMENT_FILES)
    path = next((name for name in names if name.is_file()), None)
    if path is None:
        return {}
    arguments = read_object(path)
    modalities = arguments.get("modality_config", {"text": _PLAIN_TEXT})
    plain = (
        arguments.get("transformer_task", "feature-extraction") == "feature-extraction"
        and arguments.get("module_output_name", "token_embeddings") == "token_embeddings"
        and not arguments.get("processing_kwargs")
        and isinstance(modalities, dict)
        and modalities.get("text") == _PLAIN_TEXT
        and "message" not in modalities
    )
    if not plain:
        raise EnvironmentFault(f"{path}: only plain token embeddings of plain text are supported")
    for key in ("query_length", "document_length", "query_expansion", "tokenizer_name_or_path"):
        if arguments.get(key) is not None:
            raise EnvironmentFault(f"{path}: {key} is not supported")
    for key, values in arguments.items():
        if key.endswith(("_args", "_kwargs")) and isinstance(values, dict):
            for name in sorted(set(values) - _HARMLESS_ARGUMENTS - _FOLLOWED_ARGUMENTS):
                raise EnvironmentFault(f"{path}: {key}.{name} is not supported")
    return arguments


def _processor(arguments: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the tokenizer is told beside its own files; the older name comes first, as in sentence-transformers."""
    values = arguments.get("tokenizer_args", arguments.get("processor_kwargs"))
    return values if isinstance(values, dict) else {}


def _pads_left(folder: Path, arguments: Mapping[str, Any]) -> bool:
    declared = read_optional(folder / "tokenizer_config.json").get("padding_side")
    return bool(_processor(arguments).get("padding_side", declared) == "left")


def _max_tokens(folder: Path, config: Mapping[str, Any], model_type: str, arguments: Mapping[str, Any]) -> int:
    """The module's own limit, else the tokenizer's and the positions' smaller one; never past the end of a table."""
    positions = _positions(folder / "config.json", config, model_type)
    endless = model_type in _ENDLESS or _is_rotary(config) or config.get("position_biased_input") is False
    declared = read_optional(folder / "tokenizer_config.json").get("model_max_length")
    # What the tokenizer is told wins over max_seq_length, and both over its own files, as in sentence-transformers.
    for values, name in ((_processor(arguments), "model_max_length"), (arguments, "max_seq_length")):
        if values.get(name) is not None:
            own = positive(values, name, folder)
            if own <= _PLAUSIBLE:
                return own if endless or positions is None else min(own, positions)
            declared = None
            break
    limits = [limit for limit in (positions, declared) if isinstance(limit, int | float) and 1 <= limit <= _PLAUSIBLE]
    if not limits:
        _logger.warning("no limit in the model's files %s", log.fields(folder=folder, max_tokens=_NO_LIMIT))
    return int(min(limits, default=_NO_LIMIT))


def _positions(path: Path, config: Mapping[str, Any], model_type: str) -> int | None:
    """How many positions the configuration speaks of; None where it speaks of none, as for relative ones."""
    name = _first(config, "max_position_embeddings", "n_positions")
    if config.get(name) in (None, -1):
        if model_type in _TABLES - {"t5", "mt5"}:
            positive(config, name, path)
        return None
    positions = positive(config, name, path)
    if model_type in ("t5", "mt5"):
        return None  # what the file calls n_positions is how it was trained; sentence-transformers does not look at it
    if model_type in _TABLE_AFTER_PADDING:
        padding = config.get("pad_token_id")
        if padding is not None and (not isinstance(padding, int) or not 0 <= padding < positions - 1):
            raise EnvironmentFault(
                f"{path}: pad_token_id should be a row of the position table, which positions follow"
            )
        positions -= (1 if padding is None else padding) + 1
    return positions


def _is_rotary(config: Mapping[str, Any]) -> bool:
    return bool(_ROTARY_KEYS & {key for key, value in config.items() if value is not None}) or bool(
        re.fullmatch("rope|rotary", str(config.get("position_embedding_type")))
    )


def _architecture(config: Mapping[str, Any]) -> str:
    """The class that the weights were saved from, or an empty word."""
    named = config.get("architectures")
    return str(named[0]) if isinstance(named, list) and named else ""


def _first(config: Mapping[str, Any], *names: str) -> str:
    """The first name that the configuration has, else the first."""
    return next((name for name in names if name in config), names[0])
