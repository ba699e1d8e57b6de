"""The CPU half of the model: text in, token ids out, cut into encoder calls. Never here: torch, Kafka, Ray."""
