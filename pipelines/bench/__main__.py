"""``python -m pipelines.bench …`` is ``stream-embedder bench …``."""

import sys

from pipelines.cli import main

raise SystemExit(main(["bench", *sys.argv[1:]]))
