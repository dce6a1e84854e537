"""One thread that writes all replies, in the order of a fair queue."""

import logging
import math
import threading
import time
from contextlib import closing
from dataclasses import dataclass, field

from d3cli.base.errors import is_panic
from d3cli.serve.errors import ApiError, as_api_error, overloaded
from d3cli.serve.events import Closed, Failed, Inbox
from d3cli.serve.plans import Plan
from d3cli.serve.queue import FairQueue, QueueFullError
from d3cli.serve.writing import Writing

LOG = logging.getLogger("d3cli.serve")
LONGEST_RETRY = 60  # seconds that a client is told to wait at most
STOPPING = "the server is stopping"


@dataclass(slots=True, eq=False)
class Job:
    """A reply that someone waits for.

    Attributes:
        client: who takes turns with others.
        began: when the request had arrived, by `time.perf_counter`.
        limit_s: seconds after which it is given up.
        is_left: whether its client has gone.
    """

    plan: Plan
    client: str
    limit_s: float
    inbox: Inbox = field(default_factory=Inbox)
    began: float = field(default_factory=time.perf_counter)
    is_left: bool = False

    @property
    def is_late(self) -> bool:
        return time.perf_counter() - self.began > self.limit_s


class Worker:
    """Owns the model's thread.

    Args:
        most_waiting: how many jobs may wait.

    Attributes:
        is_busy: whether a reply is being written.
    """

    def __init__(self, writing: Writing, most_waiting: int) -> None:
        self._writing = writing
        self._queue: FairQueue[Job] = FairQueue(most_waiting)
        self._thread = threading.Thread(target=self._work, name="d3-serve", daemon=True)
        self._current: Job | None = None
        self._mean_s = 1.0  # of the last replies
        self.is_stopping = False

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    @property
    def is_busy(self) -> bool:
        return self._current is not None

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def waiting(self) -> int:
        """Jobs that wait."""
        return len(self._queue)

    def submit(self, job: Job) -> None:
        """Adds a job.

        Raises:
            ApiError: as many jobs wait as may, or the server stops.
        """
        if self.is_stopping:
            raise overloaded(STOPPING, LONGEST_RETRY)
        try:
            self._queue.put(job.client, job)
        except QueueFullError:
            raise overloaded(
                f"{self.waiting} requests wait already: try again later", self._retry_after()
            ) from None

    def leave(self, job: Job) -> None:
        """Ends a job whose client has gone: at its next token, or before it begins."""
        job.is_left = True
        self._queue.remove(job.client, job)

    def stop(self) -> None:
        """Lets the present reply end, and refuses those that wait and all others."""
        self.is_stopping = True
        for job in self._queue.close():
            job.inbox.put(Failed(overloaded(STOPPING, LONGEST_RETRY)))

    def stop_now(self) -> None:
        """As `stop`, and ends the present reply at its next token."""
        self.stop()
        if (job := self._current) is not None:
            job.is_left = True
            job.inbox.put(Failed(overloaded(STOPPING, LONGEST_RETRY)))

    def join(self) -> None:
        """Waits until the thread has ended; `stop` comes first."""
        self._thread.join()

    def _retry_after(self) -> int:
        return max(1, min(LONGEST_RETRY, math.ceil(self._mean_s * (self.waiting + 1))))

    def _work(self) -> None:
        while (job := self._queue.take()) is not None:
            self._current = job
            began = time.perf_counter()
            try:
                self._write(job)
            except BaseException as error:
                if not isinstance(error, Exception) and not is_panic(error):
                    self.stop_now()  # this thread ends, and nobody else would write
                    raise
                failure = as_api_error(error, job.plan.field)
                if failure.code == "internal_error":
                    LOG.exception("internal error")
                job.inbox.put(Failed(failure))
            finally:
                self._current = None
            self._mean_s += 0.2 * (time.perf_counter() - began - self._mean_s)

    def _write(self, job: Job) -> None:
        with closing(self._writing.write(job.plan, job.began)) as events:
            for event in events:
                if event is not None:
                    job.inbox.put(event)
                if job.is_left or isinstance(event, Closed):
                    return
                if job.is_late:
                    raise ApiError(
                        504,
                        f"the reply took more than {job.limit_s:g} seconds",
                        kind="server_error",
                        code="timeout",
                    )
