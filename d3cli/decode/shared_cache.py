"""One KV cache for all prompts, replies and repairs of a conversation, one writer at a time.

A new writer ends the one before it: further steps of the old one are refused. Knows nothing of
text or sampling.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from d3cli.base.errors import UsageError, Words
from d3cli.decode.agreement import Audit, common_prefix
from d3cli.decode.loop import PrefillChunk, prefill
from d3cli.depth.prompt_order import MIN_POSITIONS, PromptSchedule
from d3cli.depth.schedule import DepthSchedule
from d3cli.depth.units import UnitKind
from d3cli.model.influence_table import InfluenceTable
from d3cli.model.kv_cache import DEFAULT_RESERVE, PREFILL_CHUNK, KVCache
from d3cli.model.model import LoadedModel

# Whether what was read below full depth is read again at full depth before a new prompt. "auto" and
# "always": yes, since keeping it costs later turns more than reading it takes time
# (docs/algorithm.md). "never": only where a layer has no keys and values. Those of tokens without a
# low plane or an MLP stay, although they are approximate.
RepairChoice = Literal["auto", "always", "never"]


class SharedCache:
    """A KV cache, the tokens in it, and who may write to it.

    Attributes:
        kv: the KV cache.
        token_ids: the last prompt and the reply to it. The cache holds the first ones of them.
        audit: the last reply's. It is compared with full depth where its tokens are read again
            after exact keys and values.
        influence: of the model's units on the first ones of `token_ids`, where it was asked for.
        measuring: the units whose influence the writer measures; None for none.
    """

    def __init__(self, model: LoadedModel) -> None:
        self.model = model
        self.kv = model.new_cache()
        self.token_ids: list[int] = []
        self.audit: Audit | None = None
        self.influence = InfluenceTable(model.num_layers, model.influence)
        self.measuring: UnitKind | None = None
        # Not the writer itself: the reference cycle would keep the KV cache until Python's garbage
        # collector runs.
        self.writer_key: object = None

    def clear(self) -> None:
        """Frees the memory of the KV cache and ends the writer."""
        with self.model.gate.one_pass():
            self.writer_key, self.token_ids = None, []
            self.kv = self.model.new_cache()
            self.influence.crop(0)


@dataclass(frozen=True, slots=True)
class Ordered:
    """The schedule of one reply, with its order, and a note if the prompt did not decide it."""

    schedule: DepthSchedule
    note: Words | None = None


class Writer:
    """Reads one prompt into a `SharedCache` and writes after it, until another writer begins."""

    def __init__(self, shared: SharedCache, prompt_ids: Sequence[int]) -> None:
        self._shared, self._prompt_ids = shared, prompt_ids
        self._key = object()
        self._audit: Audit | None = None  # of the reply before, if it can be compared

    @property
    def kv(self) -> KVCache:
        return self._shared.kv

    def begin(
        self,
        keep: int,
        *,
        reply_tokens: int | None = None,
        audit: Audit | None = None,
        measure: UnitKind | None = None,
        repair: RepairChoice = "always",
    ) -> int:
        """Takes the cache over and keeps what it holds of the prompt, at full depth if it repairs.

        Args:
            keep: the most positions to keep.
            reply_tokens: how many tokens the reply may have, to reserve room for; None if unknown.
            audit: the audit of the reply that will be written. Without one, the last reply stays
                the last.
            measure: the units whose influence on the whole prompt must be known. Positions where it
                is not are read again. If approximate keys and values stay, the first
                `MIN_POSITIONS` are enough.
            repair: see `RepairChoice`.

        Returns:
            How many positions were kept. `read` reads the rest of the prompt.

        Raises:
            UsageError: another thread is using the model.
        """
        shared, model = self._shared, self._shared.model
        with model.gate.one_pass():
            shared.writer_key = self._key
            unchanged = common_prefix(shared.token_ids, self._prompt_ids)
            shared.influence.crop(unchanged)
            shared.measuring = measure
            repairs = repair != "never"
            keep = min(keep, shared.kv.full_length if repairs else shared.kv.complete_length)
            if measure is not None:
                shared.influence.measure(measure)
                if repairs or shared.influence.length < MIN_POSITIONS:
                    keep = min(keep, shared.influence.length)
            shared.kv.crop(min(unchanged, keep))
            reserve = DEFAULT_RESERVE if reply_tokens is None else reply_tokens
            shared.kv.reserve(min(len(self._prompt_ids) + reserve, model.context_length))
            shared.token_ids = list(self._prompt_ids)
            # After approximate keys and values, full depth is not what is computed.
            self._audit = shared.audit if shared.kv.is_exact else None
            if self._audit is not None:
                self._audit.begin(model.num_layers)
            shared.audit = audit or shared.audit
            return shared.kv.position

    @contextmanager
    def step(self) -> Iterator[None]:
        """Inside this context, no other writer and no other thread can touch the cache.

        Raises:
            UsageError: another writer has begun, or another thread is using the model.
        """
        with self._shared.model.gate.one_pass():
            if self._shared.writer_key is not self._key:
                raise UsageError(
                    "this reply is over: its engine has begun a newer reply or a repair"
                )
            yield

    def read(self, chunk_size: int = PREFILL_CHUNK) -> Iterator[PrefillChunk]:
        """Prefills what the cache lacks of the prompt, each chunk as one `step`."""
        chunks = self._read_chunks(chunk_size)
        while True:
            with self.step():
                chunk = next(chunks, None)
            if chunk is None:
                return
            yield chunk

    def _read_chunks(self, chunk_size: int) -> Iterator[PrefillChunk]:
        model, audit = self._shared.model, self._audit
        unchanged = audit.unchanged(self._prompt_ids) if audit else 0
        rest = self._prompt_ids[self.kv.position :]
        shared = self._shared
        # After approximate keys and values that stay, nothing more is measured.
        measures = shared.measuring is not None and self.kv.position <= shared.influence.length
        influence = shared.influence if measures else None
        for chunk in prefill(model, self.kv, rest, chunk_size, influence):
            if audit:
                audit.compare(model, chunk.start, chunk.hidden, unchanged)
            yield chunk

    def order(self, schedule: PromptSchedule) -> Ordered:
        """The schedule in the order of the prompt, which must have been read and measured.

        Raises:
            GenerationError: the influence of a unit is not finite.
        """
        influence, tokens = self._shared.influence, len(self._prompt_ids)
        if tokens >= MIN_POSITIONS:
            return Ordered(schedule.ordered(influence.mean(min(tokens, influence.length))))
        short = f"depth: the prompt has {tokens} tokens, and at least {MIN_POSITIONS} are needed"
        history = self._shared.model.influence
        earlier = history.mean(influence.units, schedule.kind, self._prompt_ids)
        if earlier is None:
            note = f"{short} to order its layers: this reply runs at full depth"
            return Ordered(schedule.without_order(), note)
        note = f"{short}: the order comes from {earlier.positions:,} tokens read so far"
        return Ordered(schedule.ordered(earlier.mean), note)

    def append(self, token_id: int) -> None:
        """Notes a token of the reply; the next step will read it into the cache."""
        self._shared.token_ids.append(token_id)
