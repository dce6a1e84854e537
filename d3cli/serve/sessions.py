"""The KV caches that are kept between requests, bounded by number and by memory.

A request gets the cache that holds the longest beginning of its prompt. Knows nothing of requests.
"""

from collections.abc import Sequence

from d3cli.base.amounts import readable_size
from d3cli.base.errors import ContextFullError, NotEnoughMemoryError, Setting
from d3cli.decode.draft.drafter import SourceChoice
from d3cli.decode.session import Engine
from d3cli.model.decoder_pass import MOST_TOKENS
from d3cli.model.kv_cache import DEFAULT_RESERVE
from d3cli.model.memory import kv_bytes_per_position
from d3cli.model.model import LoadedModel
from d3cli.serve.drafts import Drafts


class Sessions:
    """Engines of one model, each with the KV cache of one conversation.

    `take` one for a reply, `make_way` before each of its steps, and `give_back` the engine. All KV
    caches together then never take more than the memory, also while one of them grows: room for
    the one copy of a layer that this takes is kept free.

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
        self._layer_bytes = self._position_bytes // model.num_layers
        self._engines: list[Engine] = []  # the least recently used first
        # Also for plain replies: one number is easier to tell clients.
        copy = max(self._layer_bytes, self._drafts.layer_bytes)
        each = self._position_bytes + self._drafts.position_bytes
        self._most_positions = memory // (each + copy)
        self._usable = memory - copy * self._most_positions
        self.context = min(model.context_length, self._most_positions)
        # Of the reply that is written: what drafts, and where it ends at the latest.
        self._source: SourceChoice | None = None
        self._end = 0

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
            raise self.explained(ContextFullError(len(prompt_ids), self.context))
        self._check(len(prompt_ids), max_tokens, beside)
        reply = DEFAULT_RESERVE if max_tokens is None else max_tokens
        tokens = min(len(prompt_ids) + reply, self.context)
        self._end = self.context if max_tokens is None else tokens
        self._source = source
        best = max(self._engines, key=lambda one: one.reusable(prompt_ids), default=None)
        if best is not None and 2 * best.reusable(prompt_ids) >= best.cache.full_length > 0:
            self._engines.remove(best)
        else:
            best = Engine(self._model)
        self._engines.append(best)
        most = self._most_positions * self._position_bytes
        if best.cache.nbytes + beside * self._position_bytes > most:
            best.clear()
        need = max(
            self._predicted(best, min(tokens + beside, self._most_positions)),
            best.cache.nbytes + beside * self._position_bytes,
        )
        self._make_room(best, need, self._drafts.predicted(tokens, source))
        return best

    def make_way(self, engine: Engine) -> None:
        """Makes room for the next step of the reply, which others lose if need be.

        An unlimited reply gets room for `DEFAULT_RESERVE` further tokens at a time.
        """
        end = min(engine.cache.position + MOST_TOKENS, self._end)
        room, drafts = engine.cache.room, self._drafts.room(self._source)
        if end <= room and (drafts is None or end <= drafts):
            return
        room = self._enough(end, room)
        drafts = None if drafts is None else self._enough(end, drafts)
        draft_bytes = self._drafts.predicted(drafts or 0, self._source)
        self._make_room(engine, self._predicted(engine, room), draft_bytes)
        engine.cache.reserve(room)
        if drafts is not None:
            self._drafts.reserve(drafts)

    def explained(self, error: ContextFullError) -> ContextFullError:
        """The same, and that memory is the reason if the model's context holds more."""
        if self.context == self._model.context_length:
            return error
        return ContextFullError(
            error.tokens,
            self.context,
            at_least=error.at_least,
            holder="the server's memory for KV caches",
            hint=("shorten the prompt, or raise ", Setting("kv_memory")),
        )

    def give_back(self, engine: Engine, *, keep: bool) -> None:
        """Ends the use of an engine.

        Args:
            keep: whether its cache may serve other requests.
        """
        if not keep or not self._most:
            engine.clear()
            self._engines.remove(engine)
            self._drafts.clear()  # it holds the same conversation

    def _check(self, prompt: int, max_tokens: int | None, beside: int) -> None:
        """Refuses what the memory cannot hold, as `take` does; an unlimited reply needs a token."""
        reply = 1 if max_tokens is None else max_tokens
        positions = min(prompt + reply, self._model.context_length) + beside
        if positions <= self._most_positions:
            return
        each = self._position_bytes + self._drafts.position_bytes
        raise NotEnoughMemoryError(
            f"the KV cache of prompt and reply needs about {readable_size(positions * each)}"
            + (", since the prompt's log-probabilities take a second one" if beside else "")
            + f", and the server has {readable_size(self.memory)}",
            ("lower ", Setting("max_tokens")) if max_tokens else "shorten the prompt",
            field="max_tokens" if max_tokens else "",
        )

    def _enough(self, end: int, room: int) -> int:
        """The room that a cache gets so that it reaches a position."""
        return room if end <= room else min(end + DEFAULT_RESERVE, self._end)

    def _predicted(self, engine: Engine, positions: int) -> int:
        """Bytes of an engine's KV cache with room for so many positions."""
        layers = engine.cache.layers
        return self._layer_bytes * sum(max(layer.allocated, positions) for layer in layers)

    def _make_room(self, engine: Engine, need: int, drafts: int) -> None:
        """Drops the caches of others until there is room for those of one reply.

        Args:
            need, drafts: bytes of the engine's KV cache and of the draft model's; 0 where the
                latter is not used.
        """
        if not drafts and need + self._of_others(engine) + self._drafts.nbytes > self._usable:
            self._drafts.clear()  # the cheapest one to read again
        need += max(drafts, self._drafts.nbytes)
        while len(self._engines) > 1:
            is_few = len(self._engines) <= max(self._most, 1)
            if is_few and self._of_others(engine) + need <= self._usable:
                return
            oldest = next(one for one in self._engines if one is not engine)
            self._engines.remove(oldest)
            oldest.clear()

    def _of_others(self, engine: Engine) -> int:
        return sum(one.cache.nbytes for one in self._engines if one is not engine)
