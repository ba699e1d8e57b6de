"""``python -m pipelines.bench.pipeline.simulated_run -c pipeline.yaml``: ``run``, with encoders that stand for GPUs."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from pipelines import configure
from pipelines.bench.pipeline.simulated import SimulatedEncoder
from pipelines.run import run
from workers.errors import StreamEmbedderError


def main(words: list[str]) -> int:
    """Run until SIGTERM; the exit code."""
    try:
        settings = configure.load(Path(words[words.index("-c") + 1]), [], os.environ).settings
        return run(settings, SimulatedEncoder)
    except StreamEmbedderError as error:
        print(f"simulated_run: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
