"""``python -m pipelines`` is ``stream-embedder``."""

from pipelines.cli import main

raise SystemExit(main())
