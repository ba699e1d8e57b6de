"""``python -m tests.stub_run -c pipeline.yaml``: ``stream-embedder run`` with the stub encoder in the model's place.

With ``--mortal`` the stub is the fault lab's, which one text kills; with ``--slow`` its calls take their time.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from pipelines import configure
from pipelines.run import run
from pipelines.stub import StubEncoder
from workers.errors import StreamEmbedderError


def main(words: list[str]) -> int:
    """Run until SIGTERM; returns what the process should exit with."""
    encoder: type = StubEncoder
    if "--mortal" in words:
        from tests.lab.encoder import MortalEncoder

        encoder = MortalEncoder
    elif "--slow" in words:
        from tests.slow_encoder import SlowEncoder

        encoder = SlowEncoder
    try:
        settings = configure.load(Path(words[words.index("-c") + 1]), [], os.environ).settings
        settings.require_stream()
        return run(settings, encoder)
    except StreamEmbedderError as error:
        print(f"stub_run: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
