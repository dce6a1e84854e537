"""The KV caches that are kept between requests, bounded by number and by memory.

A request gets the cache that holds the longest beginning of its prompt. Knows nothing of requests.
"""

from collections.abc import Sequence

from d3cli.base.amounts import readable_size
from d3cli.base.errors import ContextFullError, NotEnoughMemoryError, Setting
from d3cli.decode.draft.drafter import SourceChoice
from d3cli.decode.session import Engine
from d3cli.model.kv_cache import DEFAULT_RESERVE
from d3cli.model.memory import kv_bytes_per_position
from d3cli.model.model import LoadedModel
from d3cli.serve.drafts import Drafts


class Sessions:
    """Engines of one model, each with the KV cache of one conversation.

    Args:
        most: how many are kept; with 0, every prompt is read from its beginning.
        memory: bytes that all KV caches together may take, those of a draft model as well.
        drafts: what drafts lossless replies; None for nothing that needs memory.

    Attributes:
        context: how many tokens a prompt and its reply may have: what the model holds, or fewer
            where the memory is not enough for that.
    """

    def __init__(
        self, model: LoadedModel, *, most: int, memory: int, drafts: Drafts | None = None
    ) -> None:
        self._model, self._most, self.memory = model, most, memory
        self._drafts = drafts or Drafts(model)
        dtype = model.causal_lm.dtype
        self._position_bytes = kv_bytes_per_position(model.causal_lm.config, dtype)
        self._engines: list[Engine] = []  # the least recently used first
        # Also for plain replies: one number is easier to tell clients.
        self._most_positions = memory // (self._position_bytes + self._drafts.position_bytes)
        self.context = min(model.context_length, self._most_positions)

    def __len__(self) -> int:
        return len(self._engines)

    @property
    def nbytes(self) -> int:
        """Bytes that the KV caches take."""
        return sum(engine.cache.nbytes for engine in self._engines) + self._drafts.nbytes

    def take(
        self,
        prompt_ids: Sequence[int],
        max_tokens: int | None,
        *,
        beside: int = 0,
        source: SourceChoice | None = None,
    ) -> Engine:
        """The engine for a prompt. Others are dropped if the memory would not do for all.

        A cache of which the prompt could use less than half is another conversation's: it stays,
        and the prompt gets one of its own.

        Args:
            beside: positions of a cache that is needed for a moment as well.
            source: what drafts a lossless reply; None for a plain one.

        Raises:
            ContextFullError: the prompt is too long.
            NotEnoughMemoryError: prompt and reply together need more than all the memory.
        """
        if len(prompt_ids) >= self.context:
            raise ContextFullError(len(prompt_ids), self.context)
        reply = DEFAULT_RESERVE if max_tokens is None else max_tokens
        tokens = min(len(prompt_ids) + reply, self._model.context_length)
        positions = tokens + beside
        if positions > self._most_positions and max_tokens is not None:
            each = self._position_bytes + self._drafts.position_bytes
            raise NotEnoughMemoryError(
                f"the KV cache of prompt and reply needs about {readable_size(positions * each)}, "
                f"and the server has {readable_size(self.memory)}",
                ("lower ", Setting("max_tokens")),
                field="max_tokens",
            )
        best = max(self._engines, key=lambda one: one.reusable(prompt_ids), default=None)
        if best is not None and 2 * best.reusable(prompt_ids) >= best.cache.full_length > 0:
            self._engines.remove(best)
        else:
            best = Engine(self._model)
        self._engines.append(best)
        need = max(min(positions, self._most_positions) * self._position_bytes, best.cache.nbytes)
        drafts = self._drafts.predicted(min(tokens, self._most_positions), source)
        self._make_room(best, need, drafts)
        return best

    def settle(self, engine: Engine) -> None:
        """Drops others if the caches of this reply have grown beyond what was predicted."""
        self._make_room(engine, engine.cache.nbytes, self._drafts.nbytes)

    def give_back(self, engine: Engine, *, keep: bool) -> None:
        """Ends the use of an engine.

        Args:
            keep: whether its cache may serve other requests.
        """
        if not keep or not self._most:
            engine.clear()
            self._engines.remove(engine)
            self._drafts.clear()  # it holds the same conversation

    def _make_room(self, engine: Engine, need: int, drafts: int) -> None:
        """Drops the caches of others until there is room for those of one reply.

        Args:
            need, drafts: bytes of the engine's KV cache and of the draft model's; 0 where the
                latter is not used.
        """
        if not drafts and need + self._of_others(engine) + self._drafts.nbytes > self.memory:
            self._drafts.clear()  # the cheapest one to read again
        need += max(drafts, self._drafts.nbytes)
        while len(self._engines) > 1:
            is_few = len(self._engines) <= max(self._most, 1)
            if is_few and self._of_others(engine) + need <= self.memory:
                return
            oldest = next(one for one in self._engines if one is not engine)
            self._engines.remove(oldest)
            oldest.clear()

    def _of_others(self, engine: Engine) -> int:
        return sum(one.cache.nbytes for one in self._engines if one is not engine)
