"""The requests that wait for the worker: a bounded queue in which clients take turns."""

import threading
from collections import deque
from typing import Generic, TypeVar

Item = TypeVar("Item")


class QueueFullError(Exception):
    """No more items can wait."""


class FairQueue(Generic[Item]):
    """Items of several clients. Clients take turns, and each client's items keep their order.

    Args:
        most: how many items may wait.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._changed = threading.Condition()
        # The client whose turn is next comes first.
        self._waiting: dict[str, deque[Item]] = {}
        self._is_open = True
        self._idle = 0  # threads that wait for an item: what they will take does not wait

    def __len__(self) -> int:
        with self._changed:
            return self._count()

    def put(self, client: str, item: Item) -> None:
        """Adds an item.

        Raises:
            QueueFullError: as many items wait as may, or the queue is closed.
        """
        with self._changed:
            if not self._is_open or self._count() >= self._most + self._idle:
                raise QueueFullError
            self._waiting.setdefault(client, deque()).append(item)
            self._changed.notify()

    def take(self) -> Item | None:
        """The next item, as soon as there is one; None once the queue is closed."""
        with self._changed:
            self._idle += 1
            try:
                self._changed.wait_for(lambda: self._waiting or not self._is_open)
            finally:
                self._idle -= 1
            if not self._waiting:
                return None
            client = next(iter(self._waiting))
            items = self._waiting.pop(client)
            item = items.popleft()
            if items:  # this client's next turn is after the others'
                self._waiting[client] = items
            return item

    def remove(self, client: str, item: Item) -> bool:
        """Removes an item that still waits; returns whether it did."""
        with self._changed:
            items = self._waiting.get(client, deque())
            if item not in items:
                return False
            items.remove(item)
            if not items:
                del self._waiting[client]
            return True

    def close(self) -> list[Item]:
        """Ends the queue; returns what was waiting."""
        with self._changed:
            left = [item for items in self._waiting.values() for item in items]
            self._waiting.clear()
            self._is_open = False
            self._changed.notify_all()
            return left

    def _count(self) -> int:
        return sum(map(len, self._waiting.values()))
