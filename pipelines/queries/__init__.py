"""Queries over HTTP, as OpenAI's API for embeddings has them, answered by the stream's own encoders.

Comes in: a request's bytes. Goes out: vectors, or an error in OpenAI's shape. Never here: a model's weights, Kafka, or a
piece of a text in a log, an error or a metric.

``replica`` is the Serve deployment, ``front`` the HTTP of it; ``request`` and ``reply`` are what the bytes mean, ``offer`` what
may be asked for, ``refusal`` what is said otherwise; ``desk`` and ``line`` share the encoders among those who wait, ``room``
bounds what is held.
"""
