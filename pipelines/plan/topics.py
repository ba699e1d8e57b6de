"""A sample of topics: a few records from each of many places between two offsets.

Comes in: ranges of offsets. Goes out: blocks of records. Never here: a group, or what a record means.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from pipelines.plan.blocks import BLOCK_RECORDS, Sampled, sample
from pipelines.topic_ranges import PartitionRange
from pipelines.windows import Window, Windows
from workers.kafka_ranges import RangeReader
from workers.records import Record
from workers.settings import KafkaSettings

# An answer holds one batch at least; more of it would be thrown away.
FETCH_BYTES = 128 << 10


def sample_topics(ranges: Sequence[PartitionRange], kafka: KafkaSettings, wanted: int) -> Sampled:
    """About ``wanted`` records; a block's size is in offsets, which may hold none.

    Raises:
        EnvironmentFault, RetryableError: see :meth:`workers.kafka_ranges.RangeReader.read`.
    """
    windows = topic_windows(ranges, BLOCK_RECORDS, wanted)
    with contextlib.closing(RangeReader(kafka, fetch_bytes=FETCH_BYTES)) as reader:

        def read(window: Window) -> Sequence[Record]:
            partition = ranges[window.part].partition
            return [record for found in reader.read(partition, window.start, window.stop) for record in found]

        return sample(windows, wanted, read)


def topic_windows(ranges: Sequence[PartitionRange], width: int, wanted: int) -> Windows:
    """Windows of ``width`` offsets; where there are no more offsets than ``wanted``, each partition is one."""
    spans = [(each.start, each.stop) for each in ranges]
    offsets = sum(each.offsets for each in ranges)
    return Windows(spans, width if offsets > wanted else max(1, offsets))
