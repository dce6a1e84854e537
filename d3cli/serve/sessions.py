"""The KV caches that are kept between requests, bounded by number and by memory.

A request gets the cache that holds the longest beginning of its prompt. Knows nothing of requests.
"""

from collections.abc import Sequence

from d3cli.base.amounts import readable_size
from d3cli.base.errors import ContextFullError, NotEnoughMemoryError, Setting
from d3cli.decode.session import Engine
from d3cli.model.kv_cache import DEFAULT_RESERVE
from d3cli.model.memory import kv_bytes_per_position
from d3cli.model.model import LoadedModel


class Sessions:
    """Engines of one model, each with the KV cache of one conversation.

    Args:
        most: how many are kept; with 0, every prompt is read from its beginning.
        memory: bytes that all KV caches together may take.

    Attributes:
        context: how many tokens a prompt and its reply may have: what the model holds, or fewer
            where the memory is not enough for that.
    """

    def __init__(self, model: LoadedModel, *, most: int, memory: int) -> None:
        self._model, self._most, self.memory = model, most, memory
        dtype = model.causal_lm.dtype
        self._position_bytes = kv_bytes_per_position(model.causal_lm.config, dtype)
        self._engines: list[Engine] = []  # the least recently used first
        self._most_positions = memory // self._position_bytes
        self.context = min(model.context_length, self._most_positions)

    def __len__(self) -> int:
        return len(self._engines)

    @property
    def nbytes(self) -> int:
        """Bytes that the KV caches take."""
        return sum(engine.cache.nbytes for engine in self._engines)

    def take(self, prompt_ids: Sequence[int], max_tokens: int | None, *, beside: int = 0) -> Engine:
        """The engine for a prompt. Others are dropped if the memory would not do for all.

        A cache of which the prompt could use less than half is another conversation's: it stays,
        and the prompt gets one of its own.

        Args:
            beside: positions of a cache that is needed for a moment as well.

        Raises:
            ContextFullError: the prompt is too long.
            NotEnoughMemoryError: prompt and reply together need more than all the memory.
        """
        if len(prompt_ids) >= self.context:
            raise ContextFullError(len(prompt_ids), self.context)
        reply = DEFAULT_RESERVE if max_tokens is None else max_tokens
        positions = min(len(prompt_ids) + reply, self._model.context_length) + beside
        if positions > self._most_positions and max_tokens is not None:
            raise NotEnoughMemoryError(
                f"the KV cache of prompt and reply needs about "
                f"{readable_size(positions * self._position_bytes)}, and the server has "
                f"{readable_size(self.memory)}",
                ("lower ", Setting("max_tokens")),
                field="max_tokens",
            )
        best = max(self._engines, key=lambda one: one.reusable(prompt_ids), default=None)
        if best is not None and 2 * best.reusable(prompt_ids) >= best.cache.full_length > 0:
            self._engines.remove(best)
        else:
            best = Engine(self._model)
        self._engines.append(best)
        need = min(positions, self._most_positions) * self._position_bytes
        self._drop_others(best, max(need, best.cache.nbytes), max(self._most, 1))
        return best

    def settle(self, engine: Engine) -> None:
        """Drops others if the cache of this engine has grown beyond what was predicted."""
        self._drop_others(engine, engine.cache.nbytes, max(self._most, 1))

    def give_back(self, engine: Engine, *, keep: bool) -> None:
        """Ends the use of an engine.

        Args:
            keep: whether its cache may serve other requests.
        """
        if not keep or not self._most:
            engine.clear()
            self._engines.remove(engine)

    def _drop_others(self, engine: Engine, need: int, most: int) -> None:
        while len(self._engines) > 1:
            others = self.nbytes - engine.cache.nbytes
            if len(self._engines) <= most and others + need <= self.memory:
                return
            oldest = next(one for one in self._engines if one is not engine)
            self._engines.remove(oldest)
            oldest.clear()
