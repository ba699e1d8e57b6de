"""What the pipeline knows of what it has written: for each key of the source what its vector was made of.

Comes in: records as they are read, outcomes as they are committed. Goes out: which records change nothing, and what of a
key's older records has to go. Never here: decoding, outputs, or the transaction that it is all written in.

It is kept in a compacted topic, written in the same transactions as the offsets: up to a partition's committed offset, the
topic says exactly what the records below that offset have left. So what a reader has on its disk is a copy, made anew with
every assignment.
"""

from workers.state.entry import Change, Digests, Entry
from workers.state.known import Known, View

__all__ = ["Change", "Digests", "Entry", "Known", "View"]
