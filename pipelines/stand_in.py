"""``python -m pipelines.stand_in MODULE:CLASS -c pipeline.yaml``: ``run``, with another class in the encoder's place.

For benchmarks and tests: a stub whose vector is a hash of its text, or one that takes as long as a GPU would.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

from pipelines import signals
from workers.errors import StreamEmbedderError


def main(words: list[str]) -> int:
    """Run until SIGTERM; the exit code."""
    if len(words) != 3 or words[1] != "-c":
        print("stand_in: write MODULE:CLASS -c pipeline.yaml", file=sys.stderr)
        return 2
    module, _, name = words[0].partition(":")
    try:
        with signals.setting() as stop:  # before anything that starts threads is imported
            from pipelines import configure  # noqa: PLC0415
            from pipelines.run import run  # noqa: PLC0415

            settings = configure.load(Path(words[2]), [], os.environ).settings
            settings.require_stream()
            return run(settings, stop, getattr(importlib.import_module(module), name))
    except StreamEmbedderError as error:
        print(f"stand_in: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
