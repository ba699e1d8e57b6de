"""From rows to what outputs write: decode, tokenise, encode, project; every row has an outcome.

Comes in: rows. Goes out: for each output the rows that it writes, and what became of each row. Never here: files, or Ray.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from workers import log
from workers.codecs.base import Decoder
from workers.deadline import Deadline
from workers.errors import RetryableError
from workers.gathering import Gathering
from workers.offsets import Prefix
from workers.outcomes import TextTokenizer, answered, prepare
from workers.outlets import DeadLetterOutlet, Outlets, RowOutlet
from workers.pool import EncoderPool
from workers.records import Batch, Origin, Outcome, Record, Settled
from workers.settings import Settings
from workers.text.batching import plan
from workers.window import WaitingText

LOG = log.get(__name__)

# A call to the encoder carries so many passes: it prepares one while the other runs, and progress is seen after each call.
PASSES_A_CALL = 4
# How long what a record is decoded by is asked for again, before its piece is given back.
PATIENCE_S = 120.0
_BACKOFF_S = (0.2, 5.0)

type_progress = Callable[[float], None]


class RowEmbedder:
    """For any number of threads, each with a tokenizer of its own."""

    def __init__(
        self,
        settings: Settings,
        decoder: Decoder,
        outlets: Sequence[RowOutlet],
        pool: EncoderPool,
        max_batch_tokens: int,
        *,
        passes: int = PASSES_A_CALL,
    ) -> None:
        """``max_batch_tokens``: the budget of one forward pass, by which texts are sorted into ``passes`` a call as into passes."""
        self._reject = settings.model.overflow == "reject"
        self._decoder = decoder
        self._pool = pool
        self._budget = max_batch_tokens
        self._most = passes * max_batch_tokens
        self._count = len(outlets)
        # What it would send to a topic of dead letters is left; what became of each row says as much.
        dead = DeadLetterOutlet("dead letters", "", tombstone=settings.delivery.on_dead_letter == "tombstone")
        self._outlets = Outlets((), outlets, dead, lambda _: None)

    def embed(
        self, rows: Sequence[Record], tokenizer: TextTokenizer, progress: type_progress = lambda _: None
    ) -> tuple[list[list[object]], Sequence[Settled]]:
        """The rows of each output, and the outcomes of all, in their order; ``progress`` hears how much is done, 0 to 1.

        Rows of one file or partition, of rising offsets.

        Raises:
            RetryableError: the pool was closed, or what records are decoded by cannot be had now.
            EnvironmentFault: so it is, and somebody has to do something.
        """
        if not rows:
            return [[] for _ in range(self._count)], ()
        settled = self._outcomes(rows, tokenizer, progress)
        origin = rows[0].origin
        whole = Prefix(origin.topic_partition, 0, tuple(settled), rows[-1].origin.offset + 1, already={})
        (rendered,), _ = self._outlets.render([whole])
        return [[row for _, row in made] for made in rendered.rows], rendered.prefix.settled

    def _prepared(
        self, rows: Sequence[Record], tokenizer: TextTokenizer
    ) -> tuple[list[WaitingText], list[tuple[Origin, Outcome]]]:
        """The rows decoded and tokenised; a schema registry that does not answer is asked again for a while."""
        deadline, delay = Deadline(PATIENCE_S), _BACKOFF_S[0]
        while True:
            try:
                return prepare(rows, self._decoder, tokenizer, reject_overflow=self._reject)
            except RetryableError as error:
                if deadline.expired:
                    raise
                LOG.warning("rows not decoded %s", log.fields(retry_in_s=delay, error=error))
            time.sleep(delay)
            delay = min(2 * delay, _BACKOFF_S[1])

    def _outcomes(self, rows: Sequence[Record], tokenizer: TextTokenizer, progress: type_progress) -> list[Settled]:
        texts, settled = self._prepared(rows, tokenizer)
        outcomes: dict[int, Outcome] = {origin.offset: outcome for origin, outcome in settled}
        gathering = Gathering()
        gathering.expect(texts)
        lengths = [len(text.tokens.ids) for text in texts]
        total, done = max(1, sum(lengths)), 0
        for numbers in plan(lengths, self._budget, self._most):
            call = [texts[number] for number in numbers]
            batch = Batch.of([text.tokens.ids for text in call])
            answer = self._pool.submit(batch).result()
            whole = gathering.whole(answered([[text] for text in call], answer))
            outcomes.update((origin.offset, outcome) for origin, outcome in whole)
            done += batch.tokens
            progress(done / total)
        return [Settled(row, outcomes[row.origin.offset]) for row in rows]
