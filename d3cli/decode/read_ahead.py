"""Reads what the next prompt begins with, on a thread, while the user types.

After a reply this is its repair; after a conversation was resumed or edited, it is the whole
conversation. torch releases Python's lock while it computes, so the user's prompt stays quick.
Knows nothing of terminals.
"""

import threading
from collections.abc import Callable, Sequence

from d3cli.decode.session import Engine
from d3cli.decode.shared_cache import RepairChoice
from d3cli.depth.prompt_order import Schedule

# Positions read at once, and so the longest that `stop` waits for.
CHUNK = 64
# Seconds that a chat template may still take after `stop`. Most take milliseconds.
PATIENCE = 0.2


class ReadAhead:
    """Reads ahead until it is done or stopped. Nothing else may use the engine meanwhile.

    Args:
        prompt: returns the tokens that the next prompt begins with; called on the thread.
        schedule, repair: of the next reply.
        done: called on the thread once all of them are read.
    """

    def __init__(
        self,
        engine: Engine,
        prompt: Callable[[], Sequence[int]],
        schedule: Schedule,
        done: Callable[[], None],
        *,
        repair: RepairChoice = "auto",
    ) -> None:
        self._engine, self._schedule, self._repair = engine, schedule, repair
        self._stopped = threading.Event()
        self._thread = threading.Thread(
            target=self._run, args=(prompt, done), name="read-ahead", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Stops after the current chunk and waits for it. The engine is then free."""
        self._stopped.set()
        self._thread.join(PATIENCE)
        while self._thread.is_alive():  # a chat template is slow, perhaps twice
            self._engine.model.text.renderer.interrupt()
            self._thread.join(PATIENCE)

    def abandon(self) -> None:
        """Stops after the current chunk, without waiting: the engine is no longer needed."""
        self._stopped.set()

    def _run(self, prompt: Callable[[], Sequence[int]], done: Callable[[], None]) -> None:
        try:
            prompt_ids = prompt()
            if self._stopped.is_set():
                return
            for _ in self._engine.read_ahead(
                prompt_ids, CHUNK, schedule=self._schedule, repair=self._repair
            ):
                if self._stopped.is_set():
                    return
        except Exception:  # nothing is lost: the next prompt raises it again
            return
        if not self._stopped.is_set():
            done()
