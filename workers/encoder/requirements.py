"""Which versions a model's author asks for, held against what is installed here.

Comes in: the table ``requirements`` of ``config_sentence_transformers.json``. Goes out: nothing, or a refusal in one
sentence. Never here: an import of what is asked about.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from workers import log
from workers.errors import EnvironmentFault

_logger = log.get(__name__)

# What runs the model here. Sentence-transformers does not, so its version does not matter.
_RUNS = {"torch": "torch", "pytorch": "torch", "transformers": "transformers", "tokenizers": "tokenizers"}


def require_versions(path: Path, requirements: Mapping[str, Any]) -> None:
    """Raise EnvironmentFault if ``path`` asks for another version of what runs models here than is installed.

    A requirement that cannot be read is passed over with a warning, as sentence-transformers does.
    """
    from packaging.specifiers import InvalidSpecifier, SpecifierSet  # noqa: PLC0415 - few models ask

    for name, wanted in requirements.items():
        if name not in _RUNS:
            continue
        specifier = wanted.get("specifier", "") if isinstance(wanted, Mapping) else wanted
        installed = metadata.version(_RUNS[name])
        try:
            if SpecifierSet(str(specifier), prereleases=True).contains(installed):
                continue
        except InvalidSpecifier:
            _logger.warning("requirement not understood %s", log.fields(file=path, package=name))
            continue
        raise EnvironmentFault(
            f"{path}: the model asks for {_RUNS[name]}{specifier}, and {installed} is installed; without it, its vectors "
            "may be wrong"
        )
