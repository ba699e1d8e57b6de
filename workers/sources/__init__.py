"""Bytes in: where records come from."""
