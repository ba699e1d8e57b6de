"""Outcomes out: where embeddings, tombstones and dead letters go."""
