"""Clients take turns, and only so many requests wait."""

import threading
import time

import pytest

from d3cli.serve.queue import FairQueue, QueueFullError


def filled(*items: tuple[str, int], most: int = 10) -> FairQueue[int]:
    queue: FairQueue[int] = FairQueue(most)
    for client, item in items:
        queue.put(client, item)
    return queue


def test_clients_take_turns_and_each_keeps_its_order() -> None:
    queue = filled(("a", 1), ("a", 2), ("a", 3), ("b", 10), ("c", 20), ("b", 11))
    assert [queue.take() for _ in range(6)] == [1, 10, 20, 2, 11, 3]


def test_a_client_that_comes_back_waits_for_the_others() -> None:
    queue = filled(("a", 1), ("b", 10), ("b", 11))
    assert queue.take() == 1
    queue.put("a", 2)
    assert [queue.take() for _ in range(3)] == [10, 2, 11]


def test_what_is_taken_at_once_does_not_wait() -> None:
    queue: FairQueue[int] = FairQueue(0)
    with pytest.raises(QueueFullError):
        queue.put("a", 1)
    found: list[int | None] = []
    taker = threading.Thread(target=lambda: found.append(queue.take()))
    taker.start()
    while not queue._idle:
        time.sleep(0.001)
    queue.put("a", 2)
    taker.join()
    assert found == [2]
    with pytest.raises(QueueFullError):
        queue.put("a", 3)


def test_no_more_wait_than_may() -> None:
    queue = filled(("a", 1), ("b", 2), most=2)
    with pytest.raises(QueueFullError):
        queue.put("c", 3)
    assert queue.take() == 1
    queue.put("c", 3)
    assert len(queue) == 2


def test_what_waits_can_be_removed_once() -> None:
    queue = filled(("a", 1), ("a", 2))
    assert queue.remove("a", 1)
    assert not queue.remove("a", 1)
    assert not queue.remove("b", 2)
    assert queue.take() == 2


def test_closing_returns_what_waits_and_wakes_the_taker() -> None:
    queue = filled(("a", 1), ("b", 2))
    assert queue.close() == [1, 2]
    assert queue.take() is None
    with pytest.raises(QueueFullError):
        queue.put("a", 3)

    empty: FairQueue[int] = FairQueue(1)
    taken: list[int | None] = []
    waiting = threading.Thread(target=lambda: taken.append(empty.take()))
    waiting.start()
    empty.close()
    waiting.join(60)
    assert taken == [None]
