"""Compositions of ``workers``: the Serve application, the commands, and the local broker."""
