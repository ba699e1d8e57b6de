"""The transformer from its files: every weight where it belongs, and proved on made-up ids before it is used.

Comes in: a layout and a dtype. Goes out: the model on the CPU, in evaluation mode, or a refusal in one sentence. Never
here: code that a model brings along, pickled weights, or a weight made up for one that is missing.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from workers import log
from workers.encoder.layout import Layout
from workers.errors import EnvironmentFault, in_one_line

_logger = log.get(__name__)

# Two texts of these lengths show whether a model looks positions up in a table: the highest row that it reads then grows
# by exactly as many as there are tokens more. Bucketed distances (T5) grow by less.
_PROBES = (32, 64)


def load(layout: Layout, dtype: torch.dtype) -> Any:
    """The transformer that the layout names.

    The dtype is given to the loader, which keeps rotary tables in float32; ``model.to(dtype)`` would round them.

    Raises:
        EnvironmentFault: transformers does not know the model, weights are missing or broken, it runs as a causal model
            though its files say otherwise, or it cannot take texts of the layout's ``max_tokens``.
    """
    folder = layout.transformer
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    places = {"local_files_only": True, "trust_remote_code": False}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # advice about the file's age; what matters is checked below
            config = transformers.AutoConfig.from_pretrained(folder, **places)
            if layout.sliding_window is not None:
                # The class makes of the file's number what its masks need, so the number has to go in through the front.
                raw, _ = type(config).get_config_dict(folder, local_files_only=True)
                config = type(config).from_dict({**raw, "sliding_window": layout.sliding_window})
            config.use_cache = False  # an encoder has nothing to cache, and a cache costs half the speed
            model, report = _class(config).from_pretrained(
                folder,
                config=config,
                dtype=dtype,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                **places,
            )
    except Exception as error:
        raise EnvironmentFault(f"{folder} cannot be loaded as a model: {in_one_line(error)}") from error
    _require_whole(layout, model, report)
    _require_direction(layout, model)
    if getattr(model, "pooler", None) is not None:
        model.pooler = None  # computed by every forward pass, used by none of ours
    model.eval().requires_grad_(False)
    _require_positions(layout, model)
    return model


def _class(config: Any) -> Any:
    """The class that gives a hidden state per token: of an encoder-decoder the encoder alone."""
    encoder = transformers.MODEL_FOR_TEXT_ENCODING_MAPPING.get(type(config), None)
    if encoder is not None and encoder.__name__.endswith("EncoderModel"):
        return transformers.AutoModelForTextEncoding
    if config.is_encoder_decoder:
        raise ValueError("transformers has no encoder of its own for this encoder-decoder")
    return transformers.AutoModel


def _require_whole(layout: Layout, model: Any, report: dict[str, Any]) -> None:
    folder = layout.transformer
    missing = sorted(name for name in report["missing_keys"] if not name.startswith("pooler."))
    if missing:
        raise EnvironmentFault(
            f"{folder} is incomplete: {missing[0]} is not in its weights; {len(missing)} are missing"
        )
    if other := sorted(each for each in report.get("mismatched_keys") or () if not each[0].startswith("pooler.")):
        name, found, wanted = other[0]
        raise EnvironmentFault(
            f"{folder}: {name} has the shape {list(found)} in its weights, and {list(wanted)} by config.json; "
            f"{len(other)} differ"
        )
    if unused := sorted(report.get("unexpected_keys") or ()):
        # A head for another task is left out rightly. What lies inside a layer may be maths that this version has not.
        inside = {name for name, _ in model.named_modules() if "." in name}
        suspect = [name for name in unused if any(name.startswith(f"{part}.") for part in inside)]
        level = _logger.warning if suspect else _logger.info
        level("weights not used %s", log.fields(folder=folder, count=len(unused), example=(suspect or unused)[0]))


def _require_direction(layout: Layout, model: Any) -> None:
    """Raise when the files ask for attention in both directions and the model looks back only."""
    config = model.config
    asked = layout.bidirectional or getattr(config, "use_bidirectional_attention", None) is True
    if asked and any(getattr(part, "is_causal", False) for part in model.modules()):
        raise EnvironmentFault(
            f"{layout.transformer}: this version of transformers runs it as a causal model; upgrade it"
        )


class _Rows(TorchFunctionMode):
    """Notes of each table, by its place in memory, how many rows it has and the highest that is read."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[int, tuple[int, int]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is nn.functional.embedding:
            rows, table = args[0], args[1]
            highest = max(int(rows.max()), self.seen.get(table.data_ptr(), (0, -1))[1])
            self.seen[table.data_ptr()] = (len(table), highest)
        return func(*args, **(kwargs or {}))


def _require_positions(layout: Layout, model: Any) -> None:
    """Raise unless the model gives hidden states of the right width, for texts up to ``max_tokens``, wherever they are padded.

    Learned positions end with their table, and a longer text crashes; on CUDA it takes the process with it. Whether a model
    has such a table is seen in what it reads, not in what its configuration is called. RoBERTa's of 514 rows, for example:
    of 32 tokens the highest row read is 33, of 64 it is 65. It grew by the 32 tokens, so rows are positions; the last of 64
    tokens is at row 65, so 2 rows come before the first, and there are places for 512.
    """
    folder = layout.transformer
    short, long = (min(length, layout.max_tokens) for length in _PROBES)
    read_short, read_long = (_probe(layout, model, length) for length in (short, long))
    words = model.get_input_embeddings().weight.data_ptr()

    def grew(table: int, after: dict[int, tuple[int, int]], by: int) -> bool:
        """Whether the highest row read, of a table that is not of words, is that many above the short text's."""
        return table != words and table in read_short and after[table][1] - read_short[table][1] == by > 0

    for table, (rows, highest) in read_long.items():
        if grew(table, read_long, long - short):
            places = rows - (highest - (long - 1))
            if places < layout.max_tokens:
                raise EnvironmentFault(
                    f"{folder} has positions for {places} tokens, and would be given {layout.max_tokens}; "
                    f"set model.max_tokens: {places}"
                )
    if not layout.pads_left:
        return
    shifted = _probe(layout, model, short, behind=long - short)
    if any(grew(table, shifted, long - short) for table in shifted):
        raise EnvironmentFault(
            f"{folder / 'tokenizer_config.json'}: padding_side left moves this model's positions, so in sentence-transformers a "
            "text's vector depends on its batch; set it to right"
        )


@torch.inference_mode()
def _probe(layout: Layout, model: Any, length: int, behind: int = 0) -> dict[int, tuple[int, int]]:
    """Run one text of ``length`` made-up ids, ``behind`` so much padding; the tables that it read, as in ``_Rows.seen``."""
    padding = getattr(model.config, "pad_token_id", None)
    filler = padding if isinstance(padding, int) and 0 <= padding < model.config.vocab_size else 0
    ids = torch.full((1, behind + length), 1 if padding == 0 else 0)
    ids[:, :behind] = filler
    mask = torch.ones_like(ids)
    mask[:, :behind] = 0
    length += behind
    try:
        with _Rows() as seen:
            hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
    except Exception as error:
        raise EnvironmentFault(
            f"{layout.transformer}: model_type {layout.model_type!r} does not run on {length} token ids alone: "
            f"{in_one_line(error)}"
        ) from error
    if not isinstance(hidden, Tensor) or hidden.shape != (1, length, layout.hidden):
        raise EnvironmentFault(
            f"{layout.transformer}: model_type {layout.model_type!r} does not give {layout.hidden} numbers for each token"
        )
    tables: dict[int, tuple[int, int]] = seen.seen
    return tables
