"""Where this user's caches lie.

Comes in: the environment. Goes out: a folder, which may not exist. Never here: what is kept in it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path


def cache_folder(environ: Mapping[str, str]) -> Path:
    """``$XDG_CACHE_HOME/stream-embedder``, or below ``~/.cache``; a relative path is ignored, as the XDG specification has it.

    Raises:
        RuntimeError: the user has no home folder.
    """
    given = environ.get("XDG_CACHE_HOME", "")
    return (Path(given) if os.path.isabs(given) else Path.home() / ".cache") / "stream-embedder"
