"""What runs inside one process: sources, codecs, the two halves of the model, the ledger, the sinks, and their loop.

Nothing here imports ``pipelines``; heavy libraries stay in the rooms that are named for them.
"""
