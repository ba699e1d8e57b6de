"""Guards taken away, one at a time: each time a test must fail.

``python -m tests.mutants [names]`` copies the tree into a temporary folder, changes one place, and runs the tests that guard
it, which must fail while they run; the same tests pass on the tree as it is, or nothing is said. It ends with a table, and
with 1 if a mutant lives. Most need the real broker, and a minute each; those named ``checkpoint-…`` and ``queries-…`` need neither.

T1 to T13 are faults of kafka-python's that a guard of ours goes round. T10 and T11 have no text to take away: they are why
one thread does nothing but poll, and why listeners only touch memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
GUARDS = "tests/integration/test_kafka_guards.py"
MODEL = "tests/unit/test_checkpoint_model.py"
CHECKPOINT = "tests/unit/test_checkpoint.py"
TURNS = "tests/unit/test_turns.py"
QUERIES = "tests/unit/test_queries.py"
TOPIC = "tests/integration/test_batch_topic.py"


@dataclass(frozen=True, slots=True)
class Mutant:
    """A guard that is taken away: in ``file``, ``text``, which stands there once, becomes ``instead``; ``tests`` must fail."""

    name: str
    takes: str
    file: str
    text: str
    instead: str
    tests: tuple[str, ...]

    def apply(self, tree: Path) -> bool:
        """Change a copy of the tree; False: the text does not stand there once."""
        path = tree / self.file
        source = path.read_text("utf-8") if path.is_file() else ""
        if source.count(self.text) != 1:
            return False
        path.write_text(source.replace(self.text, self.instead), "utf-8")
        return True


MUTANTS = (
    Mutant(
        "T1",
        "records whose acknowledgement is an error are committed all the same",
        "workers/sinks/kafka.py",
        "                if (error := failure(future)) is not None:\n                    raise error\n",
        "",
        (f"{GUARDS}::test_a_transaction_that_the_broker_gave_up_is_not_taken_for_committed",),
    ),
    Mutant(
        "T2",
        "the acknowledgements are not looked at",
        "workers/sinks/kafka.py",
        "            for future in futures:\n",
        "            for future in futures[:0]:\n",
        (f"{GUARDS}::test_a_frozen_broker_commits_nothing_and_leaves_no_zombie",),
    ),
    Mutant(
        "T3",
        "a producer whose transaction failed is used again",
        "workers/sinks/kafka.py",
        "        producer, self._producer = self._producer, None\n        if producer is None:\n            return\n",
        "        producer = self._producer\n        if producer is None:\n            return\n"
        "        with contextlib.suppress(kafka_errors.KafkaError):\n            producer.abort_transaction()\n"
        "            self._connect = lambda: None\n            return\n",
        (f"{GUARDS}::test_offsets_of_a_transaction_that_failed_do_not_leak_into_the_next",),
    ),
    Mutant(
        "T4",
        "a member that is out of its group shows what the client shows",
        "workers/sources/kafka_member.py",
        "if found.state == MemberState.STABLE and found.generation_id >= 0 and found.member_id:",
        "if found is not None:",
        (f"{GUARDS}::test_no_membership_is_given_before_the_group_has_one_or_after_it_is_gone",),
    ),
    Mutant(
        "T5",
        "the member reads uncommitted, so it does not wait for a predecessor's commit",
        "workers/sources/kafka_member.py",
        'isolation_level="read_committed"',
        'isolation_level="read_uncommitted"',
        (f"{GUARDS}::test_a_pending_commit_is_waited_for",),
    ),
    Mutant(
        "T6",
        "the end of a transaction is waited for without a bound",
        "workers/sinks/kafka.py",
        "result.wait(timeout_ms=int(deadline.remaining() * 1000))",
        "result.wait()",
        (f"{GUARDS}::test_a_broker_killed_between_write_and_commit_is_not_waited_for_for_ever",),
    ),
    Mutant(
        "T7",
        "polls are short, with a pause between them",
        "workers/sources/kafka_member.py",
        "polled: dict[Any, list[Any]] = self.consumer.poll(POLL_MS, max_records=max(1, min(most, MOST_RECORDS)))",
        "time.sleep(0.02)\n        polled: dict[Any, list[Any]] = self.consumer.poll(0)",
        (f"{GUARDS}::test_three_members_settle_quickly_and_share_the_partitions",),
    ),
    Mutant(
        "T8",
        "offset fetches of an earlier assignment answer for a later one",
        "workers/sources/kafka_member.py",
        "        self.consumer._coordinator._offset_fetch_futures.clear()\n",
        "        return\n",
        (f"{GUARDS}::test_an_offset_fetch_that_was_given_up_does_not_answer_later",),
    ),
    Mutant(
        "T9",
        "an assignment goes on where the client believes it was",
        "workers/sources/kafka.py",
        "            self._consumer.seek(KafkaTopicPartition(*partition), (position or committed or Position(0)).offset)\n",
        "            if partition not in vars(self).setdefault('_sought', set()):\n"
        "                self._consumer.seek(KafkaTopicPartition(*partition), (position or committed or Position(0)).offset)\n"
        "            vars(self)['_sought'].add(partition)\n",
        (f"{GUARDS}::test_a_partition_that_comes_back_starts_at_what_is_committed",),
    ),
    Mutant(
        "T12-size",
        "a record that is too large for its topic is sent",
        "workers/kafka_topics.py",
        "if message.size > self.max_message_bytes:",
        "if message.size > 2 * self.max_message_bytes:",
        (f"{GUARDS}::test_what_the_broker_would_refuse_is_found_before_a_transaction_begins",),
    ),
    Mutant(
        "T12-key",
        "a record without a key is sent to a compacted topic",
        "workers/kafka_topics.py",
        "if self.compacted and message.key is None:",
        "if False:",
        (f"{GUARDS}::test_what_the_broker_would_refuse_is_found_before_a_transaction_begins",),
    ),
    Mutant(
        "T12-time",
        "a timestamp that the broker refuses is sent",
        "workers/sinks/kafka.py",
        "if earliest <= message.timestamp_ms <= latest:",
        "if True:",
        (f"{GUARDS}::test_a_timestamp_too_far_ahead_is_clamped_and_counted",),
    ),
    Mutant(
        "T13",
        "a producer that is given up keeps its sender thread",
        "workers/sinks/kafka.py",
        "            producer._sender.force_close()\n            producer._sender.join(2)\n",
        "            producer.close(timeout=0)\n",
        (f"{GUARDS}::test_a_frozen_broker_commits_nothing_and_leaves_no_zombie",),
    ),
    Mutant(
        "join",
        "a join that outlived its poll is not asked for again",
        "workers/sources/kafka_member.py",
        "        kafka_client.finish_join(self.consumer)\n",
        "",
        (f"{GUARDS}::test_a_join_that_outlives_its_poll_is_finished",),
    ),
    Mutant(
        "handover",
        "nobody joins anew for what a static member gave up as it died",
        "workers/sources/kafka_member.py",
        "        if self._handover.take():\n",
        "        if False:\n",
        (f"{GUARDS}::test_what_a_static_member_gave_up_as_it_died_gets_its_new_owner",),
    ),
    Mutant(
        "share",
        "a reader is held to its part of the calls, whoever else has nothing to send",
        "pipelines/stream.py",
        "            heard=self._census.heard,\n",
        "",
        ("tests/integration/test_hot_partition.py",),
    ),
    Mutant(
        "static-member",
        "a static member that stops keeps its partitions",
        "workers/sources/kafka_member.py",
        "        if self._instance is None:\n            return\n",
        "        return\n",
        (f"{GUARDS}::test_a_static_member_is_removed_when_it_stops",),
    ),
    Mutant(
        "placed",
        "a partition is read before its place is known",
        "workers/sources/kafka_assignments.py",
        "for partition, epoch in self._epochs.items() if self._has_place(partition)}",
        "for partition, epoch in self._epochs.items()}",
        (f"{GUARDS}::test_a_partition_is_not_read_before_its_place_is_known",),
    ),
    Mutant(
        "unreadable",
        "a batch that the client cannot parse stays in its hands",
        "workers/sources/kafka_holds.py",
        "            part.drain()\n",
        "",
        (f"{GUARDS}::test_a_batch_that_cannot_be_read_holds_back_its_partition_alone_and_loses_nothing",),
    ),
    Mutant(
        "line",
        "a used-up batch keeps its place in the client's line",
        "workers/sources/kafka_member.py",
        "        self._clear_line()\n",
        "",
        (f"{GUARDS}::test_a_partition_that_was_paused_half_read_goes_on",),
    ),
    Mutant(
        "silence",
        "a client that delivers nothing is kept",
        "workers/sources/kafka_member.py",
        "return not self._silence.broken(lambda: self.holds.known() | self.consumer.paused())",
        "return True",
        (f"{GUARDS}::test_a_client_that_delivers_nothing_is_replaced",),
    ),
    Mutant(
        "files-absent",
        "a file is put over one that is there",
        "workers/object_store.py",
        'mode="create"',
        'mode="overwrite"',
        ("tests/unit/test_files.py",),
    ),
    Mutant(
        "files-second",
        "who comes second takes its own file for the chain's",
        "workers/sinks/chain.py",
        "        return self._end(file.path, notes)\n\n    def probe",
        "        return file.end\n\n    def probe",
        ("tests/unit/test_files.py", MODEL),
    ),
    Mutant(
        "ledger-order",
        "outcomes leave as they come, past records that have none yet",
        "workers/offsets.py",
        "                if entry.outcome is None or most <= 0:\n                    break\n",
        "                if most <= 0:\n                    break\n"
        "                if entry.outcome is None:\n                    continue\n",
        ("tests/unit/test_offsets.py", MODEL),
    ),
    Mutant(
        "checkpoint-offset",
        "a commit says one offset more than it wrote",
        "workers/offsets.py",
        "following = settled[-1].record.origin.offset + 1",
        "following = settled[-1].record.origin.offset + 2",
        (MODEL,),
    ),
    Mutant(
        "checkpoint-doubt",
        "a commit that happened unheard is not dropped, and so made again",
        "workers/checkpoint.py",
        "done = self._ledger.resolve(partition, epochs[partition], position)",
        "done = list[Settled]()",
        (MODEL,),
    ),
    Mutant(
        "checkpoint-epoch",
        "an assignment that has ended counts as the one that came after it",
        "workers/offsets.py",
        "is not None and lane.epoch == epoch\n            for",
        "is not None\n            for",
        (MODEL,),
    ),
    Mutant(
        "checkpoint-owns",
        "partitions that went away while they were written are committed",
        "workers/checkpoint.py",
        "if not self._ledger.owns(ours):",
        "if not ours:",
        (MODEL,),
    ),
    Mutant(
        "checkpoint-abandon",
        "the group is asked while the old producer may still commit",
        "workers/checkpoint.py",
        "        self._sink.abandon()\n        self._sink.open()\n        with self._lock:\n"
        "            epochs = self._ledger.epochs\n",
        "        with self._lock:\n            epochs = self._ledger.epochs\n"
        "        self._source.committed(epochs)\n        self._sink.abandon()\n        self._sink.open()\n",
        (CHECKPOINT,),
    ),
    Mutant(
        "state-floor",
        "the state topic hears of records that will be read again",
        "workers/state/known.py",
        "            if change.offset < end:\n                last[change.key] = change.entry\n                continue\n",
        "            if True:\n                last[change.key] = change.entry\n                continue\n",
        (MODEL,),
    ),
    Mutant(
        "state-doubt",
        "what the topics may have ahead of the group is forgotten when the group comes near",
        "workers/state/known.py",
        " and lane.kept.get(key, -1) < end",
        "",
        (MODEL,),
    ),
    Mutant(
        "state-since",
        "a state that was not kept for a while is believed",
        "workers/state/known.py",
        "entry.digest == document.digest and entry.offset >= since",
        "entry.digest == document.digest",
        ("tests/unit/test_state_histories.py",),
    ),
    Mutant(
        "topic-id",
        "what is committed of a topic that was deleted counts for the one that is made anew",
        "workers/sources/kafka_places.py",
        "if not at.of(ids[partition])}",
        "if False}",
        (f"{GUARDS}::test_a_commit_that_outlives_its_topic_says_nothing_of_the_new_one",),
    ),
    Mutant(
        "log-cut",
        "where a log lost its end, outputs keep their positions",
        "workers/sources/kafka_places.py",
        "{name: min(at, offset) for",
        "{name: at for",
        (f"{GUARDS}::test_a_log_that_ends_before_what_is_committed_is_read_from_its_end_on",),
    ),
    Mutant(
        "log-truncated",
        "what the client says once of a log that was truncated is passed over",
        "workers/sources/kafka.py",
        "            self._losses.truncated(error)\n",
        "",
        (f"{GUARDS}::test_a_log_that_was_truncated_is_read_again_from_where_it_differs",),
    ),
    Mutant(
        "leader-place",
        "a partition without a leader holds up those that are assigned with it",
        "workers/sources/kafka_start.py",
        "wanted = kafka_ends.led(self._consumer, [KafkaTopicPartition(*partition) for partition in partitions])",
        "wanted = [KafkaTopicPartition(*partition) for partition in partitions]",
        (f"{GUARDS}::test_a_partition_without_a_leader_holds_up_no_other_and_starts_where_it_would_have",),
    ),
    Mutant(
        "leader-poll",
        "a partition that is nowhere ends the poll of all others",
        "workers/sources/kafka.py",
        "(position or committed or Position(0)).offset)",
        "(position or committed).offset) if position or committed else None",
        (f"{GUARDS}::test_a_partition_without_a_leader_holds_up_no_other_and_starts_where_it_would_have",),
    ),
    Mutant(
        "leader-latest",
        "a topic counts as begun before one of its partitions has a place",
        "workers/sources/kafka_start.py",
        "if begun and all(",
        "if all(",
        (f"{GUARDS}::test_latest_is_the_end_for_a_partition_that_had_no_leader_when_the_group_came",),
    ),
    Mutant(
        "topic-heard",
        "a partition is placed by what the client knew of its topic before the assignment",
        "workers/sources/kafka.py",
        "if not self._member.hear_of_topics(HEAR_S, self._stop):",
        "if False:",
        (f"{GUARDS}::test_a_partition_is_placed_by_what_the_client_hears_of_its_topic_after_the_assignment",),
    ),
    Mutant(
        "state-place",
        "a partition begins where its files end, and the state never hears of what lies before",
        "workers/placing.py",
        "replace(committed, offset=min(start, committed.offset), outputs=outputs)",
        "replace(committed, offset=start, outputs=outputs)",
        (MODEL,),
    ),
    Mutant(
        "state-underway",
        "a record is called unchanged though one that is on its way changes its key",
        "workers/state/known.py",
        "self.skips and key not in lane.underway",
        "self.skips",
        (MODEL,),
    ),
    Mutant(
        "state-untold",
        "what files have not caught up with is never told to the state topic",
        "workers/state/known.py",
        "lane.untold.extend(done)",
        "pass",
        (MODEL,),
    ),
    Mutant(
        "checkpoint-behind",
        "the group does not wait for the output that is furthest behind",
        "workers/offsets.py",
        "Position(min([offset, *lane.files.values()]), outputs, lane.topic_id)",
        "Position(offset, outputs, lane.topic_id)",
        (MODEL,),
    ),
    Mutant(
        "checkpoint-already",
        "what is read again for files goes to the topics again",
        "workers/outlets.py",
        "            if not already or offset >= already.get(outlet.name, 0)\n",
        "",
        (MODEL,),
    ),
    Mutant(
        "checkpoint-refused",
        "what one output refused the first time is a vector for the files when it is read again",
        "workers/outlets.py",
        "for outlet in self._topics\n"
        "                ]\n"
        "                rows = [self._rows(outlet, entry, vectors[outlet.name].get(number), gone) for outlet in self._files]\n"
        "                return outcome, [one for of_topic in self._wanted(every, offset, prefix) for one in of_topic], rows\n",
        "for outlet in self._wanted(self._topics, offset, prefix)\n"
        "                ]\n"
        "                rows = [self._rows(outlet, entry, vectors[outlet.name].get(number), gone) for outlet in self._files]\n"
        "                return outcome, [one for of_topic in every for one in of_topic], rows\n",
        (MODEL, CHECKPOINT),
    ),
    Mutant(
        "checkpoint-rows",
        "a file reaches over records that another reader committed, and whose rows this one never made",
        "workers/checkpoint.py",
        "if done and done[-1].record.origin.offset >= tried.get(partition, 0):",
        "if False:",
        (f"{MODEL}::test_a_file_reaches_over_nothing_that_its_reader_has_not_written",),
    ),
    Mutant(
        "equal-outcomes",
        "of records with one text, the first alone gets an outcome",
        "workers/outcomes.py",
        "sound=good)) for text in texts]",
        "sound=good)) for text in texts[:1]]",
        ("tests/unit/test_reader.py::test_equal_texts_are_encoded_once_and_each_record_has_its_own_outcome",),
    ),
    Mutant(
        "chunks-refused",
        "of a record's chunks, those that were not refused are written",
        "workers/gathering.py",
        "                if not parts.refused:\n",
        "                if True:\n",
        ("tests/unit/test_chunked.py",),
    ),
    Mutant(
        "chunks-ended",
        "what has come of a record's chunks is kept when its partition is somebody else's",
        "workers/gathering.py",
        "epochs.get(origin.topic_partition) != origin.epoch]",
        "False]",
        ("tests/unit/test_chunked.py",),
    ),
    Mutant(
        "chunks-margin",
        "a part that is too long by itself is not cut anew",
        "workers/text/chunks.py",
        "            if tokens.truncated:\n",
        "            if False:\n",
        ("tests/unit/test_chunks.py",),
    ),
    Mutant(
        "range-gone",
        "what was deleted before a range was read is skipped unseen",
        "workers/kafka_ranges.py",
        'auto_offset_reset="none",',
        'auto_offset_reset="earliest",',
        (f"{TOPIC}::test_a_range_is_read_whole_past_markers_and_what_was_aborted_and_deleted",),
    ),
    Mutant(
        "range-position",
        "where a range's reader stands is not looked at, so it waits for records where there are none",
        "workers/kafka_ranges.py",
        "reached = self._consumer.position(tp, _ASK_MS)",
        "reached = found[-1].origin.offset + 1 if found else at",
        (f"{TOPIC}::test_a_range_is_read_whole_past_markers_and_what_was_aborted_and_deleted",),
    ),
    Mutant(
        "equal-ended",
        "texts of assignments that have ended are encoded all the same",
        "workers/window.py",
        "if epochs.get(text.origin.topic_partition) == text.origin.epoch]",
        "if True]",
        ("tests/unit/test_window.py",),
    ),
    Mutant(
        "window-unsent",
        "what fills no call stays also where that leaves no full ones",
        "workers/window.py",
        "return fewer if sum(lengths[row] for row in fewer[-1]) >= enough else calls",
        "return fewer",
        ("tests/unit/test_window.py",),
    ),
    Mutant(
        "window-linger",
        "what was left over is taken for what has waited long, and leaves in a call of its own",
        "workers/window.py",
        "        self._oldest = now\n        self._calls",
        "        self._calls",
        ("tests/unit/test_window.py",),
    ),
    Mutant(
        "queries-first",
        "queries wait behind all of the stream that waits",
        "workers/turns.py",
        "query = bool(self._queries) and not (self._stream and self._taken_s >= PATIENCE_S)",
        "query = bool(self._queries) and not self._stream",
        (f"{TURNS}::test_queries_go_before_the_stream_and_each_line_keeps_its_order",),
    ),
    Mutant(
        "queries-patience",
        "queries without end stop the stream",
        "workers/turns.py",
        " and not (self._stream and self._taken_s >= PATIENCE_S)",
        "",
        (f"{TURNS}::test_queries_without_end_do_not_stop_the_stream",),
    ),
    Mutant(
        "queries-key",
        "any key will do",
        "pipelines/queries/front.py",
        "same = hmac.compare_digest(given.strip().encode(), self._key)",
        "same = bool(given)",
        (f"{QUERIES}::test_a_key_is_asked_for_where_there_is_one",),
    ),
    Mutant(
        "queries-round",
        "a small request waits for a large one that came before it",
        "pipelines/queries/line.py",
        "                self._line.append(waiting)\n        return found",
        "                self._line.appendleft(waiting)\n        return found",
        (QUERIES,),
    ),
    Mutant(
        "queries-gone",
        "who has hung up is computed for",
        "pipelines/queries/desk.py",
        "            self._line.leave(waiting)\n",
        "",
        (f"{QUERIES}::test_who_hangs_up_is_not_computed_for",),
    ),
    Mutant(
        "queries-quoted",
        "an error of ours says what was asked",
        "pipelines/queries/front.py",
        "error=type(error).__name__, at=_place(error)",
        "error=error, at=_place(error)",
        (f"{QUERIES}::test_a_bug_of_ours_says_where_it_is_and_not_what_was_asked",),
    ),
    Mutant(
        "queries-demand",
        "a query that waits before an empty pool starts nothing",
        "workers/query_demand.py",
        "SOME if waiting > 0 else 0.0",
        "0.0",
        ("tests/unit/test_autoscaler.py",),
    ),
)
