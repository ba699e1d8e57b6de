"""A tokenizer from its files: by transformers once, from then on by its own serialisation in the user's cache.

Comes in: a folder with a tokenizer's files. Goes out: the tokenizer as transformers makes it, and what transformers knows
beside it. Never here: a prompt or a limit; and, once the cache is warm, transformers, whose import brings torch along:
seconds, and hundreds of megabytes, in every reader.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import tokenizers

from workers import log
from workers.cache_folder import cache_folder
from workers.errors import EnvironmentFault, in_one_line

_logger = log.get(__name__)

_VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model")
# What transformers makes a tokenizer of has many names, so all files count but these.
_WEIGHTS = {".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".ot", ".onnx", ".onnx_data", ".gguf", ".md"}
# An entry is kept only if it makes the same ids of these.
_SAMPLES = ("", "a  B\n\tc ", "<s> [SEP] </s>", "don't e\u0301 \ufb01 日本語 🙂 \0", "x" * 200)
# Part of an entry's name: raise it when what is checked or kept changes.
_FORMAT = 1
_MOST_ENTRIES = 32


@dataclass(frozen=True, slots=True)
class Facts:
    """What transformers knows of a tokenizer beside its serialisation.

    ``special_ids``: ids that are not text. ``cut_left``: a long text loses its beginning. ``split_specials``: special
    tokens that stand in a text are read as text.
    """

    special_ids: tuple[int, ...]
    cut_left: bool = False
    split_specials: bool = False


def load(folder: Path) -> tuple[tokenizers.Tokenizer, Facts]:
    """The tokenizer without padding and truncation, ready to be configured; every call makes a new one.

    Raises:
        EnvironmentFault: the files are missing or broken, or not what they declare.
    """
    # Without any of these, transformers makes an empty tokenizer of the right class, to which every word is unknown.
    if not any(path for pattern in _VOCABULARIES for path in folder.glob(pattern)):
        raise EnvironmentFault(f"{folder} has no tokenizer.json")
    entry = _entry(folder)
    found = _read(entry) if entry is not None else None
    if found is None:
        backend, facts = _through_transformers(folder)
        if entry is not None:
            _write(entry, backend, facts)
    else:
        backend, facts = found
    backend.encode_special_tokens = facts.split_specials
    return backend, facts


# ---- the cache


def _entry(folder: Path) -> Path | None:
    """Where the tokenizer of these files, and of these versions of what reads them, is kept; None without a place."""
    try:
        cache = cache_folder(os.environ)
        total = hashlib.sha256()
        for name in ("transformers", "tokenizers"):
            total.update(f"{name}={metadata.version(name)}\n".encode())
        for path in sorted(folder.iterdir()):
            if path.suffix in _WEIGHTS or not path.is_file():
                continue
            with path.open("rb") as file:
                total.update(f"{path.name}={hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    except (OSError, RuntimeError, metadata.PackageNotFoundError) as error:
        _logger.debug("no tokenizer cache %s", log.fields(error=type(error).__name__))
        return None
    return cache / "tokenizers" / f"{_FORMAT}-{total.hexdigest()}"


def _read(entry: Path) -> tuple[tokenizers.Tokenizer, Facts] | None:
    """The entry's tokenizer, or None for one that is not there, or not whole."""
    try:
        header, _, content = entry.read_bytes().partition(b"\n")
        known = json.loads(header)
        if known.pop("sha256") != hashlib.sha256(content).hexdigest():
            raise ValueError("damaged")
        facts = Facts(**{**known, "special_ids": tuple(known["special_ids"])})
        backend = tokenizers.Tokenizer.from_str(content.decode())
    except FileNotFoundError:
        return None
    except Exception as error:  # noqa: BLE001 - whatever is wrong with a cache, the files are still there
        _logger.debug("tokenizer cache not read %s", log.fields(entry=entry, error=type(error).__name__))
        return None
    with contextlib.suppress(OSError):
        entry.touch()  # what is read stays
    return backend, facts


def _write(entry: Path, backend: tokenizers.Tokenizer, facts: Facts) -> None:
    """Keep the tokenizer, whole or not at all; of too many entries, those go that were not read for longest."""
    temporary = None
    try:
        content = backend.to_str().encode()
        copy = tokenizers.Tokenizer.from_str(content.decode())
        if any(copy.encode(sample).ids != backend.encode(sample).ids for sample in _SAMPLES):
            raise ValueError("not the same")
        header = json.dumps({**asdict(facts), "sha256": hashlib.sha256(content).hexdigest()}).encode()
        entry.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=entry.parent, prefix=".new-", delete=False) as file:
            temporary = Path(file.name)
            file.write(header + b"\n" + content)
        temporary.replace(entry)
        kept = sorted(entry.parent.glob(f"{_FORMAT}-*"), key=lambda path: path.stat().st_mtime, reverse=True)
        for old in kept[_MOST_ENTRIES:]:
            old.unlink()
    except Exception as error:  # noqa: BLE001 - a tokenizer in Python has no serialisation; a disk may be read-only
        _logger.debug("tokenizer not cached %s", log.fields(entry=entry, error=type(error).__name__))
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


# ---- the files


def _through_transformers(folder: Path) -> tuple[tokenizers.Tokenizer, Facts]:
    import transformers  # noqa: PLC0415 - heavy, and not needed once the cache is warm

    transformers.utils.logging.set_verbosity_error()
    try:
        whole = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        _blame_config(folder)
        raise EnvironmentFault(f"{folder} has no tokenizer that loads: {in_one_line(error)}") from error
    if not getattr(whole, "is_fast", False):
        raise EnvironmentFault(f"{folder} has no tokenizer.json; save it with a fast tokenizer")
    backend: tokenizers.Tokenizer = whole.backend_tokenizer
    backend.no_padding()  # the files may have padding and a limit of their own baked in
    backend.no_truncation()
    probe = _probe(backend)
    _require_declared(folder, whole, probe.ids)
    if any(probe.type_ids) and "token_type_ids" in whole.model_input_names:
        raise EnvironmentFault(f"{folder}: its tokenizer gives a token type other than 0, and only ids reach the model")
    facts = Facts(
        special_ids=tuple(sorted(set(whole.all_special_ids))),
        cut_left=whole.truncation_side == "left",
        split_specials=bool(whole.split_special_tokens),
    )
    return backend, facts


def _blame_config(folder: Path) -> None:
    """Raise if it is config.json that transformers fails at, which it reads to find the tokenizer's class."""
    import transformers  # noqa: PLC0415 - see above

    path = folder / "config.json"
    if not path.is_file():
        return
    try:
        transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise EnvironmentFault(f"{path} is not understood: {in_one_line(error)}") from error


def _probe(backend: tokenizers.Tokenizer) -> tokenizers.Encoding:
    """Ids with the special tokens around them."""
    try:
        return backend.encode("x")
    except Exception:  # noqa: BLE001 - a vocabulary that has neither x nor a token for what is unknown
        return backend.encode("")


def _require_declared(folder: Path, whole: Any, ids: list[int]) -> None:
    """Raise unless the bos and eos that the configuration promises are really put around a text.

    transformers takes what is added from tokenizer.json and drops the promise; vectors would be off without a word.
    """
    path = folder / "tokenizer_config.json"
    try:
        declared = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError:
        raise EnvironmentFault(f"{path} cannot be read as JSON") from None
    for name, place in (("bos", 0), ("eos", -1)):
        wanted = getattr(whole, f"{name}_token_id", None)
        if declared.get(f"add_{name}_token") is True and wanted is not None and (not ids or ids[place] != wanted):
            raise EnvironmentFault(
                f"{path} declares add_{name}_token, but tokenizer.json does not add it; mend its post_processor"
            )
