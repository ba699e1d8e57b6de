"""A short name for a vector space: two records with one fingerprint can be compared.

Comes in: a model folder, and the settings that decide a vector. Goes out: hex digests. Never here: dtype or device,
which move a vector by rounding only.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from workers.errors import EnvironmentFault

# The prompt table and truncate_dim of config_sentence_transformers.json are left out: a prompt and dim are inputs below.
_NAMES = {
    "modules.json",
    "router_config.json",
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
}
_PATTERNS = ("*.safetensors", "*.safetensors.index.json", "sentence_*_config.json", "*.model")


def model_digest(folder: Path, **changes: object) -> str:
    """SHA-256 over the names and contents of the files that decide a vector: weights, tokenizer, module configs.

    Only the folder itself and those that its ``modules.json`` names count, with a Router's; so neither a README nor an ONNX
    copy does. ``changes``: what is used otherwise than the files say, by name; one that is None or empty is none.

    Raises:
        EnvironmentFault: there are no weights, or a file cannot be read.
    """
    try:
        paths = sorted({path.relative_to(folder).as_posix() for part in _folders(folder) for path in _files(part)})
        if not any(path.endswith(".safetensors") for path in paths):
            raise EnvironmentFault(f"{folder} has no weights (*.safetensors)")
        total = hashlib.sha256()
        for path in paths:
            with (folder / path).open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
            total.update(f"{len(path)}:{path}={content}\n".encode())
        for name, value in sorted(changes.items()):
            if value not in (None, ""):
                total.update(f"{name}:{value}\n".encode())
    except OSError as error:
        raise EnvironmentFault(f"{folder} cannot be read ({type(error).__name__})") from None
    return total.hexdigest()


def fingerprint(
    digest: str,
    *,
    prompt: str | tuple[str, ...],
    template: str,
    max_tokens: int,
    overflow: str | Sequence[str | int],
    dim: int,
    precision: str,
    ranges: str | None = None,
    mappings: Sequence[tuple[str, str | tuple[str, ...] | None]] = (),
) -> str:
    """16 hex digits that change when anything changes that decides a vector.

    Args:
        digest: of the model, by :func:`model_digest`.
        prompt: the text before every document, resolved; a template over a document's fields as it is written, in a tuple; and
            where it makes names, with the table that they are in.
        template: how a document's text is made of its fields.
        max_tokens: the longest text.
        overflow: what happens to a longer one; where it is cut into chunks, all that says how.
        dim: of the output.
        precision: of the output.
        ranges: digest of the ranges that it is quantised by, None where there are none.
        mappings: of topics that have their own: templates, and prompts, None where that is the one of all; in a fixed order.
    """
    parts: list[object] = [digest, prompt, template, max_tokens, overflow, dim, precision]
    if ranges is not None:
        parts.append(ranges)
    if mappings:
        parts.append(list(mappings))
    return hashlib.sha256(json.dumps(parts, ensure_ascii=True).encode()).hexdigest()[:16]


def _folders(folder: Path) -> list[Path]:
    path = folder / "modules.json"
    if not path.is_file():
        return [folder]
    named: set[PurePosixPath] = set()
    try:
        for module in json.loads(path.read_text(encoding="utf-8")):
            name = PurePosixPath(module["path"])
            named.add(name)
            if str(module.get("type")).endswith((".Router", ".Asym")):
                named |= {name / step for step in _steps(folder / name)}
    except (ValueError, TypeError, KeyError, AttributeError):
        raise EnvironmentFault(f"{path} is not a list of modules") from None
    if any(name.is_absolute() or ".." in name.parts for name in named):
        raise EnvironmentFault(f"{path}: a module's path leads out of the model folder")
    return [folder, *(folder / name for name in named if (folder / name).is_dir())]


def _steps(folder: Path) -> list[str]:
    """The modules of a Router's routes, which lie in its folder; its file has had two names."""
    path = next((path for name in ("router_config.json", "config.json") if (path := folder / name).is_file()), None)
    return [] if path is None else list(json.loads(path.read_text(encoding="utf-8"))["types"])


def _files(folder: Path) -> list[Path]:
    return [
        path
        for path in folder.iterdir()
        if path.is_file() and (path.name in _NAMES or any(path.match(pattern) for pattern in _PATTERNS))
    ]
