"""The command ``status``: how a pipeline is, from outside; a probe, a table, a line a period."""
