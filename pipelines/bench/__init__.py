"""Benchmarks that anyone can run: ``stream-embedder bench …``, or ``python -m pipelines.bench …``.

The second form needs the standard library, numpy and the two halves of the model, and nothing else of what is installed
with the first: it runs on a bare GPU machine. So nothing here imports Ray, Kafka or the settings, but
for what measures the pipeline (``pipelines.bench.pipeline``).
"""
