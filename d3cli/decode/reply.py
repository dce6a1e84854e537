"""One reply: its tokens, text and figures, generated while it is iterated.

Knows nothing of chat templates, terminals or files.
"""

import time
from collections.abc import Collection, Container, Iterator, Mapping, Sequence
from functools import partial
from typing import TypedDict

from torch import Tensor

from d3cli.base.errors import UsageError, Words
from d3cli.decode.agreement import Agreement, Audit
from d3cli.decode.chunk import GenerationChunk
from d3cli.decode.draft.drafter import Drafter
from d3cli.decode.draft.source import Verification
from d3cli.decode.loop import DecodedToken, decode
from d3cli.decode.lossless import decode_lossless
from d3cli.decode.reply_text import ReplyText
from d3cli.decode.sampler import Sampler
from d3cli.decode.sampling import SamplingParams
from d3cli.decode.shared_cache import RepairChoice, SharedCache, Writer
from d3cli.decode.stats import LosslessStats, RunStats
from d3cli.depth.prompt_order import PromptSchedule, Schedule, units_to_measure
from d3cli.depth.schedule import DepthSchedule
from d3cli.model.kv_cache import DEFAULT_RESERVE, KVCache
from d3cli.text.control_tokens import reply_writing
from d3cli.text.tokens import Detokenizer


class _DecodeOptions(TypedDict):
    prompt_ids: Sequence[int]
    max_tokens: int
    eos_token_ids: Container[int]
    with_entropy: bool
    most_likely: int


class Reply:
    """One reply. Iterate it for its chunks; `stats`, `text` and `tokens` are valid at any time.

    Made by `Engine.stream`.

    Attributes:
        prompt_ids: the whole prompt.
        asked: the depth schedule asked for.
        schedule: the depth schedule that runs. If the prompt decides its order, it has none until
            the prompt is read.
        notes: what the user should know about the order, once the prompt is read.
        drafting: in a lossless reply, the depth schedule that drafts; `schedule` is full depth.
        verifications: the passes at full depth of a lossless reply.
        tokens: the tokens so far.
        finish_reason: "interrupted" until the reply ends by itself.
        reused: tokens of the prompt that the KV cache already held; 0 before the prefill.
        prompt_is_exact: whether the KV cache held the prompt as full depth computes it; see
            `RepairChoice`.
    """

    def __init__(
        self,
        shared: SharedCache,
        prompt_ids: list[int],
        *,
        schedule: Schedule,
        sampling: SamplingParams,
        max_tokens: int | None,
        stop: Sequence[str],
        ends: Collection[int],
        continues: bool,
        with_entropy: bool,
        most_likely: int,
        began: float | None,
        repair: RepairChoice,
        drafter: Drafter | None,
        reserve: int | None,
    ) -> None:
        self.model = shared.model
        # A lossless reply continues no approximate keys and values.
        self._repair: RepairChoice = repair if drafter is None else "always"
        self._drafter = drafter
        self.asked = schedule
        self.schedule: DepthSchedule
        self.drafting: DepthSchedule | None = None
        self._set_schedule(
            schedule.without_order() if isinstance(schedule, PromptSchedule) else schedule
        )
        self.verifications: list[Verification] = []
        self.notes: tuple[Words, ...] = ()
        self.sampling = sampling
        self.prompt_ids = prompt_ids
        self.tokens: list[DecodedToken] = []
        self.finish_reason = "interrupted"
        self.reused = 0
        self.prompt_is_exact = True
        self._audit = Audit(prompt_ids, self.tokens)
        self._max_tokens = max_tokens
        if reserve is None:
            reserve = DEFAULT_RESERVE if max_tokens is None else max_tokens
        self._reserve = reserve if max_tokens is None else min(reserve, max_tokens)
        self._ends = ends
        written, stops = reply_writing(self.model.tokenizer, stop, ends)
        self._after = prompt_ids if continues else []
        new_detokenizer = partial(Detokenizer, self.model.tokenizer, self._after, written)
        self._text = ReplyText(new_detokenizer, stops)
        self._with_entropy, self._most_likely = with_entropy, most_likely
        self._began = time.perf_counter() if began is None else began
        self._first = self._latest = self._began
        self._writer = Writer(shared, prompt_ids)  # until the reply ends
        self._logits: Tensor | None = None
        self._reading = self._read_prompt()
        self._chunks = self._generate()

    def __iter__(self) -> Iterator[GenerationChunk]:
        return self._chunks

    def prefill(self) -> Iterator[int]:
        """Reads the prompt; yields how many of its tokens are read, after each chunk.

        Iterating the reply does this by itself. Call it first to show progress.
        """
        return self._reading

    def _read_prompt(self) -> Iterator[int]:
        writer = self._writer
        # The last prompt token is always read again: its hidden state predicts token 0.
        self.reused = writer.begin(
            len(self.prompt_ids) - 1,
            reply_tokens=self._reserve,
            audit=self._audit,
            measure=units_to_measure(self.asked),
            repair=self._repair,
        )
        for chunk in writer.read():
            yield chunk.start + len(chunk.hidden)
        with writer.step():
            if isinstance(self.asked, PromptSchedule):
                ordered = writer.order(self.asked)
                self._set_schedule(ordered.schedule)
                if ordered.note is not None and self._drafter is None:
                    self.notes = (ordered.note,)
            self.prompt_is_exact = writer.kv.is_exact
            self._logits = self.model.logits(chunk.hidden[-1])

    def _set_schedule(self, schedule: DepthSchedule) -> None:
        """A lossless reply drafts by the schedule, and runs at full depth."""
        if self._drafter is None:
            self.schedule = schedule
        else:
            self.schedule, self.drafting = DepthSchedule.full(schedule.num_layers), schedule

    def _generate(self) -> Iterator[GenerationChunk]:
        try:
            yield from self._write()
        finally:
            self.end()

    def _write(self) -> Iterator[GenerationChunk]:
        tokens = self._decode(self._read_to_end(), self._limit)
        while True:
            with self._writer.step():
                token = next(tokens)
                piece = self._add(token)
            chunk = self._complete(token, piece)
            yield chunk
            if chunk.finish_reason:
                return

    def _read_to_end(self) -> Tensor:
        """Reads the rest of the prompt; the logits ``[V]`` after it, which are not kept."""
        for _ in self._reading:
            pass
        logits = self._logits
        if logits is None:
            raise UsageError("the prompt of this reply was not read to its end", "stream it again")
        self._logits = None  # large, and needed once
        return logits

    def begin(self) -> tuple[KVCache, Tensor]:
        """Reads the prompt, and leaves the decoding to the caller, who uses `take`.

        Do not iterate the reply then.

        Returns:
            The KV cache, and the logits ``[V]`` of the first token.

        Raises:
            UsageError: its engine writes another reply now.
            GenerationError: the influence of a unit is not finite.
        """
        logits = self._read_to_end()
        return self._writer.kv, logits

    def take(self, token: DecodedToken) -> GenerationChunk:
        """Adds the next token, which the caller has chosen after `begin`."""
        chunk = self._complete(token, self._add(token))
        if chunk.finish_reason:
            self.end()
        return chunk

    def end(self) -> None:
        """Lets the KV cache go, which a caller may keep the reply without.

        A reply that ends by itself does this. A caller of `begin` does it when the reply fails.
        """
        del self._writer

    def _complete(self, token: DecodedToken, piece: str) -> GenerationChunk:
        """Completes the text after a token with this piece; ends the reply if it is time."""
        shown, stopped = self._text.show(piece)
        reason = None
        if stopped or token.token_id in self._ends:
            reason = "stop"
        elif token.step == self._limit - 1:
            reason = "length" if self._limit == self._max_tokens else "context"
        self.finish_reason = reason or self.finish_reason
        if reason and not stopped:
            shown += self.release()
        return GenerationChunk(shown, token, reason)

    def _decode(self, logits: Tensor, limit: int) -> Iterator[DecodedToken]:
        """The tokens, from the prefill's last logits on."""
        cache, sampler = self._writer.kv, self.new_sampler()
        options = _DecodeOptions(
            prompt_ids=self.prompt_ids,
            max_tokens=limit,
            eos_token_ids=self._ends,
            with_entropy=self._with_entropy,
            most_likely=self._most_likely,
        )
        if self._drafter is None or self.drafting is None:
            return decode(self.model, cache, logits, self.schedule, sampler, **options)
        return decode_lossless(
            self.model,
            cache,
            logits,
            self._drafter,
            sampler,
            schedule=self.drafting,
            reserve=min(self._reserve, limit),
            verifications=self.verifications,
            **options,
        )

    def new_sampler(self) -> Sampler:
        """A sampler that chooses as this reply did, from its first token on."""
        return Sampler(
            self.sampling,
            self.model.device,
            prompt_ids=self.prompt_ids,
            eos_token_ids=self._ends,
            max_tokens=self._limit,
        )

    def new_detokenizer(self, written: Mapping[int, str]) -> Detokenizer:
        """What makes text of this reply's tokens, from its first token on.

        Args:
            written: texts of special tokens that are not left out.
        """
        return Detokenizer(self.model.tokenizer, self._after, written)

    @property
    def _limit(self) -> int:
        """The most tokens that the reply can have."""
        room = self.model.context_length - len(self.prompt_ids)
        return room if self._max_tokens is None else min(self._max_tokens, room)

    def _add(self, token: DecodedToken) -> str:
        """Adds a token; returns its text, with marks."""
        self._latest = time.perf_counter()
        if not self.tokens:
            self._first = self._latest
        piece = self._text.add(token.token_id)
        self.tokens.append(token)
        self._writer.append(token.token_id)
        return piece

    @property
    def text(self) -> str:
        """The reply so far."""
        return self._text.text

    @property
    def pieces(self) -> list[str]:
        """The text that each token completed, before stop strings cut it."""
        return self._text.pieces

    @property
    def agreement(self) -> Agreement | None:
        """How often full depth would have chosen the same token, as far as known.

        None until a repair or a later prompt reads the reply again.
        """
        return self._audit.result()

    def release(self) -> str:
        """Adds the text that is still held back to `text`, and returns it.

        A reply that ends by itself does this. Call it after leaving a reply early. Part of a
        character is dropped.
        """
        if self.finish_reason == "interrupted":
            return self._text.rebuild(token.token_id for token in self.tokens)
        return self._text.release()

    @property
    def stats(self) -> RunStats:
        """Figures of the reply so far."""
        drafter = self._drafter
        return RunStats.of(
            self.tokens,
            self.model,
            prompt_tokens=len(self.prompt_ids),
            ttft_s=self._first - self._began,
            decode_s=self._latest - self._first,
            seed=None if self.sampling.is_greedy else self.sampling.seed,
            lossless=None
            if drafter is None
            else LosslessStats.of(self.verifications, len(self.tokens[1:]), drafter.step_s),
        )
