"""The pipeline around the encoder, measured: what it costs, how it scales, how long a record waits."""
