"""Which piece of a job is next, and when there is no point in another: a few jobs of made-up attempts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

import pytest

from pipelines.batch import queue
from pipelines.batch.finished import PieceName
from pipelines.batch.queue import MOST_FAILED, MOST_FAILURES, Queue
from pipelines.batch.there import Task
from pipelines.batch.topic import TopicPiece
from workers.records import TopicPartition


class Attempts:
    """A job whose pieces, the largest first, fail or not; ``under_way`` attempts at a time, of which the oldest ends next."""

    def __init__(self, pieces: int, broken: Collection[int], *, under_way: int = 2, slow: bool = False) -> None:
        self.queue = Queue(task(number) for number in range(pieces))
        self.done: set[int] = set()
        self.left_out: set[int] = set()
        self.tried = Counter[int]()
        running: list[Task] = []
        while running or self.queue.draw() is not None:
            while len(running) < under_way and (found := self.queue.draw()) is not None:
                self.queue.take()
                running.append(found)
                self.tried[found.piece.start] += 1
            # What is broken fails at once, and what is not takes its time.
            ended = min(running, key=lambda each: each.piece.start not in broken) if slow else running[0]
            running.remove(ended)
            if ended.piece.start not in broken:
                self.done.add(ended.piece.start)
                self.queue.done()
            elif self.queue.failed(ended, "it is broken"):
                self.left_out.add(ended.piece.start)


def task(number: int) -> Task:
    piece = TopicPiece(TopicPartition("documents", 0), number, number + 1, 1, "0" * 16, "0" * 8)
    return Task(piece, PieceName("0" * 16, "0" * 8, number), [])


@pytest.mark.parametrize("slow", [False, True])
@pytest.mark.parametrize("under_way", [1, 2, 200])
@pytest.mark.parametrize(("pieces", "broken"), [(1000, 6), (13, 3), (1000, 200), (60, 45), (30, 29), (4, 4), (1, 1)])
def test_what_is_broken_is_left_out_though_it_is_first_and_the_others_are_done(
    pieces: int, broken: int, under_way: int, slow: bool
):
    job = Attempts(pieces, range(broken), under_way=under_way, slow=slow)
    assert job.done == set(range(broken, pieces))
    assert job.left_out == set(range(broken)) and not len(job.queue)
    assert all(job.tried[number] == (MOST_FAILURES if number < broken else 1) for number in range(pieces))


def test_where_nothing_can_be_done_few_are_tried_from_everywhere_and_each_once():
    job = Attempts(10_000, range(10_000))
    assert job.queue.held and job.queue.draw() is None
    assert MOST_FAILED <= len(job.tried) <= MOST_FAILED + 1 and set(job.tried.values()) == {1}
    assert sum(number > 1_000 for number in job.tried) > 15
    assert len(job.queue.failing()) == len(job.tried) and job.queue.untried == 10_000 - len(job.tried)


def test_what_fails_later_than_something_was_done_is_no_reason_to_give_up(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(queue, "MOST_FAILED", 2)
    waiting = Queue(task(number) for number in range(3))
    taken = []
    for _ in range(3):
        taken.append(waiting.draw())
        waiting.take()
        if len(taken) == 1:
            waiting.failed(taken[0], "it is broken")
            waiting.done()
    assert [each.piece.start for each in taken if each is not None] == [0, 1, 2]
    for each in taken[1:]:
        assert each is not None and not waiting.died(each)
    # All have been tried: they come again, however many fail.
    assert not waiting.held and waiting.draw() is taken[0]


def test_the_order_of_what_was_not_tried_is_kept_while_others_fail():
    waiting = Queue(task(number) for number in range(100))
    for _ in range(queue.SUSPECT):
        found = waiting.draw()
        assert found is not None
        waiting.take()
        waiting.failed(found, "it is broken")
    assert waiting.suspect
    drawn = waiting.draw()
    assert drawn is not None
    waiting.take()
    waiting.done()
    rest = []
    while (found := waiting.draw()) is not None and found.failures == 0:
        waiting.take()
        rest.append(found.piece.start)
    assert rest == [number for number in range(queue.SUSPECT, 100) if number != drawn.piece.start]
    assert drawn.piece.start != queue.SUSPECT


def test_a_piece_says_how_it_failed_last():
    waiting = Queue([task(0)])
    found = waiting.draw()
    assert found is not None
    waiting.take()
    assert not waiting.died(found) and found.fault == "a replica has died at it"
    assert not waiting.died(found) and not waiting.failed(found, "its disk is broken")
    assert found.fault == "its disk is broken"
    assert waiting.died(found) and found.fault == "3 replicas have died at it"
