"""Reads on a thread what the next prompt will begin with, while the user types.

After a reply that is its repair, after a conversation was resumed or edited all of it. torch lets
go of Python's lock while it computes, so that a prompt beside it stays quick. Knows nothing of
terminals.
"""

import threading
from collections.abc import Callable, Sequence

from d3cli.decode.session import Engine

# Positions read at once: whoever waits for `stop` waits for so many at most.
CHUNK = 64
# Seconds that a chat template may take once someone waits; they take milliseconds.
PATIENCE = 0.2


class ReadAhead:
    """Reads ahead until it is done or stopped. Nobody else may use the engine meanwhile.

    Args:
        prompt: gives the tokens that the next prompt will begin with; is called on the thread.
        done: is called on the thread when all of them are read.
    """

    def __init__(
        self, engine: Engine, prompt: Callable[[], Sequence[int]], done: Callable[[], None]
    ) -> None:
        self._engine = engine
        self._stopped = threading.Event()
        self._thread = threading.Thread(
            target=self._run, args=(prompt, done), name="read-ahead", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Ends it after the chunk in progress, and waits for that. The engine is then free."""
        self._stopped.set()
        self._thread.join(PATIENCE)
        while self._thread.is_alive():  # a chat template takes its time, and more than one may
            self._engine.model.text.renderer.interrupt()
            self._thread.join(PATIENCE)

    def abandon(self) -> None:
        """Ends it after the chunk in progress, for nobody who needs the engine."""
        self._stopped.set()

    def _run(self, prompt: Callable[[], Sequence[int]], done: Callable[[], None]) -> None:
        try:
            prompt_ids = prompt()
            if self._stopped.is_set():
                return
            for _ in self._engine.read_ahead(prompt_ids, CHUNK):
                if self._stopped.is_set():
                    return
        except Exception:  # nothing is lost: the next prompt meets it, and says so
            return
        if not self._stopped.is_set():
            done()
