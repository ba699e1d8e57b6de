"""What outlets do with a dead letter that its topic takes in one way only."""

from __future__ import annotations

import pytest

from tests.fakes import FakeSink
from tests.unit.test_checkpoint import DEAD, REFUSED, embedding, opened
from workers.errors import RetryableError


def test_a_dead_letter_that_fits_compressed_holds_nothing_up():
    bench = opened(sink=lambda group: FakeSink(group, max_bytes={DEAD: 1_000}, squeezing=[DEAD]))
    bench.settle(0, embedding("a"))
    bench.settle(1, REFUSED, value=b"v" * 2_000)
    assert bench.checkpoint.commit() == 2
    assert bench.values() == [b"a"]
    assert bench.values(DEAD) == [b"v" * 2_000]


def test_compression_helps_no_dead_letter_without_a_key_into_a_compacted_topic():
    bench = opened(sink=lambda group: FakeSink(group, keyed=[DEAD], squeezing=[DEAD]))
    bench.settle(0, REFUSED, key=None)
    with pytest.raises(RetryableError, match=r"no_key"):
        bench.checkpoint.commit()
