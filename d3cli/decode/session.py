"""Conversations to replies: encodes, prefills, decodes, and repairs the KV cache between turns.

`Engine.stream` gives a `Reply`; iterating it generates. One engine holds one conversation's cache.
Knows nothing of terminals, options or files.
"""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from d3cli.base.errors import ContextFullError, PromptError, Setting, UsageError
from d3cli.decode.agreement import Agreement, Audit, common_prefix
from d3cli.decode.loop import DecodedToken, PrefillChunk, decode, prefill
from d3cli.decode.sampler import Sampler
from d3cli.decode.sampling import SamplingParams
from d3cli.decode.stats import RunStats, peak_memory
from d3cli.depth.schedule import DepthSchedule
from d3cli.model.kv_cache import DEFAULT_RESERVE, PREFILL_CHUNK
from d3cli.model.model import LoadedModel
from d3cli.text.chat_template import Message, encode_chat
from d3cli.text.stop_strings import StopStrings
from d3cli.text.tokens import Detokenizer, check_length, encode_raw


@dataclass(frozen=True, slots=True)
class GenerationChunk:
    """What one token brought: text that may be empty, and why the reply ended, on the last one.

    Attributes:
        text: text that is complete now; a character or a possible stop string is held back.
        token: the token behind it.
        finish_reason: "stop", "length" or "context" on the last chunk, else None.
    """

    text: str
    token: DecodedToken
    finish_reason: str | None = None

    @property
    def token_id(self) -> int:
        return self.token.token_id

    @property
    def depth(self) -> float:
        return self.token.depth


class Engine:
    """One conversation with one model: its KV cache and the tokens in it."""

    def __init__(self, model: LoadedModel) -> None:
        self.model = model
        self.cache = model.new_cache()
        self._token_ids: list[int] = []  # of the last prompt and reply; the cache holds the front
        self._last: Reply | None = None  # it is compared with full depth where it is read again
        self._writing: object = None  # whose positions the cache is open for

    def stream(
        self,
        prompt: str | Sequence[Message],
        *,
        schedule: DepthSchedule | None = None,
        sampling: SamplingParams | None = None,
        max_tokens: int | None = None,
        stop: str | Sequence[str] = (),
        chat_template: str | None = None,
        think: bool | None = None,
        raw: bool = False,
        with_entropy: bool = False,
        began: float | None = None,
    ) -> "Reply":
        """A reply to a prompt or a conversation, to be iterated.

        What the cache already holds of this conversation is reused, repaired first where the last
        reply ran below full depth. Starting a reply ends the one before.

        Args:
            prompt: the user's text, which begins a new conversation, or messages with "role" and
                "content", the last one to answer.
            schedule: None for the model's own: `LoadedModel.schedule`.
            sampling: None for the checkpoint's generation settings, else greedy.
            max_tokens: None for what the context leaves.
            stop: texts that end the reply; they are not part of it.
            raw: take the prompt, which is then a string, without a chat template.
            with_entropy: compute the entropy of each token's distribution.
            began: when the user began to wait, by `time.perf_counter`; None for now.

        Raises:
            PromptError: the prompt is empty or does not fit the context.
            UsageError: an impossible option.
            ModelError: the chat template cannot render the conversation.
        """
        began = time.perf_counter() if began is None else began
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        try:
            texts = "\n".join(message["role"] and message["content"] for message in messages)
        except (KeyError, TypeError) as error:
            raise PromptError(
                "the prompt is neither a text nor a list of messages",
                'a message is {"role": "user", "content": "…"}',
            ) from error
        check_length(self.model.tokenizer, texts, self.model.context_length)
        if raw:
            if not isinstance(prompt, str):
                raise UsageError("a raw prompt is one text, not messages")
            prompt_ids = encode_raw(self.model.tokenizer, prompt)
        else:
            prompt_ids = encode_chat(
                self.model.tokenizer,
                messages,
                self.model.text.renderer,
                chat_template=chat_template,
                think=think,
            )
        if sampling is None:
            sampling = SamplingParams.resolve({}, self.model.text.generation_settings)
        return self.stream_ids(
            prompt_ids,
            schedule=schedule or self.model.schedule(),
            sampling=sampling,
            max_tokens=max_tokens,
            stop=stop,
            with_entropy=with_entropy,
            began=began,
        )

    def stream_ids(
        self,
        prompt_ids: Sequence[int],
        *,
        schedule: DepthSchedule,
        sampling: SamplingParams,
        max_tokens: int | None = None,
        stop: str | Sequence[str] = (),
        with_entropy: bool = False,
        began: float | None = None,
    ) -> "Reply":
        """As `stream`, for a prompt that is already token ids."""
        self.model.check_schedule(schedule)
        context = self.model.context_length
        if max_tokens is not None and max_tokens < 1:
            raise UsageError((Setting("max_tokens"), f" is {max_tokens}"), "it must be 1 or more")
        if schedule.start > context:
            raise UsageError(
                (
                    Setting("start"),
                    f" is {schedule.start:,}, beyond the model's context of {context:,} tokens",
                ),
                "use a smaller value",
            )
        if not prompt_ids:
            raise PromptError("the prompt is empty", "give it some text")
        vocabulary = self.model.causal_lm.get_input_embeddings().weight.shape[0]
        beyond = next((id_ for id_ in prompt_ids if not 0 <= id_ < vocabulary), None)
        if beyond is not None:
            raise PromptError(
                f"the tokenizer gives token {beyond:,}, and the model knows {vocabulary:,}",
                "the tokenizer and the weights do not belong together",
            )
        if len(prompt_ids) >= context:
            raise ContextFullError(len(prompt_ids), context)
        stops = (stop,) if isinstance(stop, str) else stop
        return Reply(
            self,
            list(prompt_ids),
            schedule,
            sampling.with_seed(),
            max_tokens,
            stops,
            with_entropy,
            began,
        )

    def repair(self, *, recheck: bool = False) -> Agreement:
        """Computes again, at full depth, what the last reply computed below it.

        Afterwards the cache holds exactly what the full model would. `stream` does the same in
        its own prefill, so nobody has to call this. Gives the last reply's agreement.

        Args:
            recheck: read the whole reply again and compare the tokens at full depth too. After a
                reply at ``--alpha off`` the result is the floor of agreement: what rounding
                alone changes, below float32, between one token at a time and many at once.
        """
        with self.model.gate.one_pass():
            last = self._last
            held = self._token_ids[: self.cache.position]
            if recheck and last is not None:
                last.audit = Audit(last.prompt_ids, last.tokens, below=math.inf)
                self.cache.crop(len(last.prompt_ids))
        for _ in self.read_ahead(held):
            pass
        return (last and last.agreement) or Agreement(0, 0)

    def read_ahead(
        self, prompt_ids: Sequence[int], chunk_size: int = PREFILL_CHUNK
    ) -> Iterator[int]:
        """Reads what the next prompt will begin with, a chunk of tokens at a time.

        Repairs what the last reply computed below full depth on the way. Gives the positions that
        the cache holds; may be left after any chunk, and what is left out is read with the prompt.
        """
        writer = object()
        self._begin(writer, prompt_ids, len(prompt_ids))
        for _ in self._read(writer, prompt_ids, self._last, chunk_size):
            yield self.cache.position

    def _begin(
        self,
        writer: object,
        prompt_ids: Sequence[int],
        most: int,
        reply_tokens: int | None = None,
    ) -> None:
        """Keeps of the cache what is a prompt's, at full depth, and at most so much of it.

        From now on the cache is the writer's, and closed for whoever wrote before.
        """
        with self.model.gate.one_pass():
            self._writing = writer
            unchanged = common_prefix(self._token_ids, prompt_ids)
            self.cache.crop(min(unchanged, self.cache.full_length, most))
            reserve = DEFAULT_RESERVE if reply_tokens is None else reply_tokens
            self.cache.reserve(min(len(prompt_ids) + reserve, self.model.context_length))
            self._token_ids = list(prompt_ids)

    @contextmanager
    def _step(self, writer: object) -> Iterator[None]:
        """Within, the cache is the writer's, and no other thread comes in between.

        Raises:
            UsageError: another has begun to write since, or another thread is in the middle.
        """
        with self.model.gate.one_pass():
            if self._writing is not writer:
                raise UsageError(
                    "this reply was ended by a newer one, or a repair, of the same engine"
                )
            yield

    def _read(
        self, writer: object, prompt_ids: Sequence[int], before: "Reply | None", chunk_size: int
    ) -> Iterator[PrefillChunk]:
        """As `_read_chunks`, each of them a step."""
        chunks = self._read_chunks(prompt_ids, before, chunk_size)
        while True:
            with self._step(writer):
                chunk = next(chunks, None)
            if chunk is None:
                return
            yield chunk

    def _read_chunks(
        self, prompt_ids: Sequence[int], before: "Reply | None", chunk_size: int
    ) -> Iterator[PrefillChunk]:
        """Prefills what the cache lacks, and audits the reply before wherever it is read again."""
        audit = before and before.begin_audit()
        unchanged = audit.unchanged(prompt_ids) if audit else 0
        rest = prompt_ids[self.cache.position :]
        for chunk in prefill(self.model, self.cache, rest, chunk_size):
            if audit:
                audit.compare(self.model, chunk.start, chunk.hidden, unchanged)
            yield chunk


class Reply:
    """One reply. Iterate it for its chunks; ask for `stats`, `text` and `tokens` at any moment.

    Attributes:
        prompt_ids: the whole prompt.
        tokens: what was generated so far.
        pieces: the text that each token completed, before stop strings cut it.
        text: the reply so far.
        finish_reason: "interrupted" until the reply ends by itself.
        reused: tokens of the prompt that the cache held already, once prefilled.
        audit: compares it with full depth wherever a repair or a later prompt reads it again.
    """

    def __init__(
        self,
        engine: Engine,
        prompt_ids: list[int],
        schedule: DepthSchedule,
        sampling: SamplingParams,
        max_tokens: int | None,
        stop: Sequence[str],
        with_entropy: bool,
        began: float | None,
    ) -> None:
        self.model = engine.model
        self.schedule = schedule
        self.sampling = sampling
        self.prompt_ids = prompt_ids
        self.tokens: list[DecodedToken] = []
        self.pieces: list[str] = []
        self.text = ""
        self.finish_reason = "interrupted"
        self.reused = 0
        self.audit: Audit | None = None
        self._engine = engine  # until it is written
        self._max_tokens = max_tokens
        self._stops = stop
        self._stop = StopStrings(stop)
        self._with_entropy = with_entropy
        self._detokenizer = Detokenizer(self.model.tokenizer)
        self._began = time.perf_counter() if began is None else began
        self._first = self._latest = self._began
        self._logits: torch.Tensor | None = None
        self._reading = self._read_prompt()
        self._chunks = self._generate()

    def __iter__(self) -> Iterator[GenerationChunk]:
        return self._chunks

    def prefill(self) -> Iterator[int]:
        """Reads the prompt; gives the number of its tokens that are done, chunk by chunk.

        Iterating the reply does this by itself; call it first to show progress.
        """
        return self._reading

    def _read_prompt(self) -> Iterator[int]:
        engine, before = self._engine, self._engine._last
        # The last prompt token is always read again: its hidden state gives token 0.
        engine._begin(self, self.prompt_ids, len(self.prompt_ids) - 1, self._max_tokens)
        self.reused = engine.cache.position
        engine._last = self
        for chunk in engine._read(self, self.prompt_ids, before, PREFILL_CHUNK):
            yield chunk.start + len(chunk.hidden)
        with engine._step(self):
            self._logits = self.model.logits(chunk.hidden[-1])

    def _generate(self) -> Iterator[GenerationChunk]:
        try:
            yield from self._write()
        finally:
            # The engine knows its last reply. If the reply knew it too, a KV cache would stay until
            # Python looks for cycles, and memory would grow by what lies between such caches.
            del self._engine

    def _write(self) -> Iterator[GenerationChunk]:
        for _ in self._reading:
            pass
        if self._logits is None:
            raise UsageError("the prompt of this reply was not read to its end", "stream it again")
        room = self.model.context_length - len(self.prompt_ids)
        limit = room if self._max_tokens is None else min(self._max_tokens, room)
        logits, self._logits = self._logits, None  # large, and needed once
        tokens = decode(
            self.model,
            self._engine.cache,
            logits,
            self.schedule,
            Sampler(self.sampling, self.model.device),
            prompt_ids=self.prompt_ids,
            max_tokens=limit,
            eos_token_ids=self.model.text.eos_token_ids,
            with_entropy=self._with_entropy,
        )
        while True:
            with self._engine._step(self):  # else it would read and write what is another's now
                token = next(tokens)
                self._note(token)
            shown, stopped = self._stop.push(self.pieces[-1])
            reason = None
            if stopped or token.token_id in self.model.text.eos_token_ids:
                reason = "stop"
            elif token.step == limit - 1:
                reason = "length" if limit == self._max_tokens else "context"
            self.text += shown
            self.finish_reason = reason or self.finish_reason
            if reason and not stopped:
                shown += self.release()
            yield GenerationChunk(shown, token, reason)
            if reason:
                return

    def _note(self, token: DecodedToken) -> None:
        self._latest = time.perf_counter()
        if not self.tokens:
            self._first = self._latest
        self.pieces.append(self._detokenizer.push(token.token_id))
        self.tokens.append(token)
        self._engine._token_ids.append(token.token_id)

    def begin_audit(self) -> Audit | None:
        """The reply's audit, begun now if it was not; None for a reply without tokens."""
        if self.audit is None and self.tokens:
            self.audit = Audit(self.prompt_ids, self.tokens, below=self.model.num_layers)
        return self.audit

    @property
    def agreement(self) -> Agreement | None:
        """How often full depth would have chosen as D³ did, as far as it was read again."""
        return None if self.audit is None else self.audit.result()

    def release(self) -> str:
        """The text still held back: half a stop string, say; it joins `text`.

        A reply that ends by itself does this. Call it where a reply is left early. Of a character
        that was cut in two there is nothing to show.
        """
        if self.finish_reason == "interrupted":
            return self._state_anew()
        rest = self._detokenizer.flush()
        if self.pieces:
            self.pieces[-1] += rest
        shown, stopped = self._stop.push(rest)
        if not stopped:
            shown += self._stop.flush()
        self.text += shown
        return shown

    def _state_anew(self) -> str:
        """Pieces and text from the tokens alone; gives what is new in the text.

        An exception out of a signal may have come in the middle of taking a token, between its
        number, its piece and its text.
        """
        before, tokenizer = self.text, self.model.tokenizer
        self._detokenizer, self._stop = Detokenizer(tokenizer), StopStrings(self._stops)
        self.pieces = [self._detokenizer.push(token.token_id) for token in self.tokens]
        if self.pieces:
            self.pieces[-1] += self._detokenizer.flush().removesuffix("\ufffd")
        self.text = ""
        for piece in self.pieces:
            shown, stopped = self._stop.push(piece)
            self.text += shown
            if stopped:
                break
        else:
            self.text += self._stop.flush()
        return self.text[len(before) :]

    @property
    def stats(self) -> RunStats:
        """Figures of the reply so far."""
        count = len(self.tokens)
        depths = [token.depth for token in self.tokens[1:]]
        decode_s = self._latest - self._first
        mean = sum(depths) / len(depths) if depths else None
        return RunStats(
            prompt_tokens=len(self.prompt_ids),
            completion_tokens=count,
            ttft_s=self._first - self._began if count else None,
            decode_s=decode_s,
            tokens_per_second=(count - 1) / decode_s if depths and decode_s > 0 else None,
            mean_depth=mean,
            min_depth=min(depths, default=None),
            layer_ratio=self.model.num_layers / mean if mean else None,
            byte_ratio=self.model.weight_bytes.ratio(
                len(depths), sum(token.bytes_read for token in self.tokens[1:])
            ),
            peak_memory_bytes=peak_memory(self.model.device),
            seed=None if self.sampling.is_greedy else self.sampling.seed,
        )
