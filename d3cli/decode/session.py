"""Conversations to replies: encodes prompts, reuses the KV cache, and repairs it between turns.

`Engine.stream` returns a `Reply`; iterating it generates. One engine holds the KV cache of one
conversation. Knows nothing of terminals, options or files.
"""

import math
import time
from collections.abc import Collection, Iterator, Sequence

from d3cli.base.errors import ContextFullError, PromptError, Setting, UsageError
from d3cli.decode.agreement import Agreement, common_prefix
from d3cli.decode.draft.drafter import Drafter
from d3cli.decode.reply import Reply
from d3cli.decode.sampling import SamplingParams
from d3cli.decode.shared_cache import RepairChoice, SharedCache, Writer
from d3cli.depth.prompt_order import Schedule, units_to_measure
from d3cli.model.kv_cache import PREFILL_CHUNK, KVCache
from d3cli.model.model import LoadedModel
from d3cli.text.chat_template import Message, encode_chat, own_template
from d3cli.text.tokens import encode_raw


class Engine:
    """One conversation with one model: its KV cache, and replies that share it."""

    def __init__(self, model: LoadedModel) -> None:
        self.model = model
        self._shared = SharedCache(model)

    @property
    def cache(self) -> KVCache:
        return self._shared.kv

    def reusable(self, prompt_ids: Sequence[int]) -> int:
        """How many of a prompt's first tokens the KV cache holds at full depth."""
        return min(common_prefix(self._shared.token_ids, prompt_ids), self.cache.full_length)

    def clear(self) -> None:
        """Empties the KV cache and frees its memory. This ends the reply in progress."""
        self._shared.clear()

    def stream(
        self,
        prompt: str | Sequence[Message],
        *,
        schedule: Schedule | None = None,
        sampling: SamplingParams | None = None,
        max_tokens: int | None = None,
        stop: str | Sequence[str] = (),
        chat_template: str | None = None,
        think: bool | None = None,
        raw: bool = False,
        with_entropy: bool = False,
        most_likely: int = 0,
        began: float | None = None,
        repair: RepairChoice = "auto",
        drafter: Drafter | None = None,
    ) -> Reply:
        """Returns a reply to a prompt or a conversation; iterate it to generate.

        The KV cache is reused as far as it holds this conversation. Where the last reply ran below
        full depth, the cache is repaired first, unless `repair` is "never" and the new reply is not
        lossless. Starting a reply ends the one before it.

        Args:
            prompt: a text, which starts a new conversation, or messages with "role" and "content",
                the last of which is answered.
            schedule: the depth schedule; None uses `LoadedModel.schedule`. A `PromptSchedule` gets
                its order from this prompt.
            sampling: None uses the checkpoint's generation settings, else greedy.
            max_tokens: None allows as many as the context holds.
            stop: texts that end the reply; they are not part of it. Special tokens in them count,
                although decoded text leaves these out.
            chat_template: a Jinja template; None uses the model's own.
            think: turns reasoning on or off if the chat template supports it.
            raw: use the prompt, which must be a text, without a chat template.
            with_entropy: compute the entropy of each token's distribution.
            most_likely: how many of the most likely tokens to note with each token.
            began: when the wait for the first token began, by `time.perf_counter`; None is now.
            repair: see `RepairChoice`.
            drafter: makes this a lossless reply: full depth's own, sooner. `schedule` is then for
                its drafts, and the cache is always repaired. Keep one drafter for the whole
                conversation, since it learns.

        Raises:
            PromptError: the prompt is empty or does not fit the context.
            UsageError: a setting is out of range.
            ModelError: the chat template cannot render the conversation.
        """
        began = time.perf_counter() if began is None else began
        prompt_ids = self._encode(prompt, chat_template=chat_template, think=think, raw=raw)
        if sampling is None:
            sampling = SamplingParams.resolve({}, self.model.text.generation_settings)
        return self.stream_ids(
            prompt_ids,
            schedule=schedule or self.model.schedule(),
            sampling=sampling,
            max_tokens=max_tokens,
            stop=stop,
            ends=self.model.text.reply_ends(chat_template),
            continues=raw or not (chat_template or own_template(self.model.tokenizer)),
            with_entropy=with_entropy,
            most_likely=most_likely,
            began=began,
            repair=repair,
            drafter=drafter,
        )

    def stream_ids(
        self,
        prompt_ids: Sequence[int],
        *,
        schedule: Schedule,
        sampling: SamplingParams,
        max_tokens: int | None = None,
        stop: str | Sequence[str] = (),
        ends: Collection[int] | None = None,
        continues: bool = False,
        with_entropy: bool = False,
        most_likely: int = 0,
        began: float | None = None,
        repair: RepairChoice = "auto",
        drafter: Drafter | None = None,
        reserve: int | None = None,
    ) -> Reply:
        """As `stream`, for a prompt that is already token ids.

        Args:
            ends: tokens that end the reply; None uses `TextSide.reply_ends`.
            continues: the reply continues the prompt's text, so that the two join.
            reserve: tokens of the reply that the KV cache gets room for at first; None for all of
                `max_tokens`, or for `DEFAULT_RESERVE` without it.
        """
        self.check_prompt(prompt_ids)
        self._check(schedule, max_tokens)
        return Reply(
            self._shared,
            list(prompt_ids),
            schedule=schedule,
            sampling=sampling.with_seed(),
            max_tokens=max_tokens,
            stop=(*((stop,) if isinstance(stop, str) else stop), *sampling.rules.stop_strings),
            ends=self.model.text.reply_ends() if ends is None else ends,
            continues=continues,
            with_entropy=with_entropy,
            most_likely=most_likely,
            began=began,
            repair=repair,
            drafter=drafter,
            reserve=reserve,
        )

    def repair(self, *, recheck: bool = False) -> Agreement:
        """Computes again, at full depth, what the last reply computed below it.

        Afterwards the cache equals the full model's. `stream` repairs as part of its prefill, so
        calling this is optional.

        Args:
            recheck: read the whole reply again and compare its full-depth tokens too. After a reply
                at full depth, the result is the highest agreement that rounding allows: below
                float32, reading many tokens at once may choose differently from reading one.

        Returns:
            The last reply's agreement.
        """
        shared = self._shared
        with self.model.gate.one_pass():
            audit = shared.audit
            held = shared.token_ids[: shared.kv.position]
            if recheck and audit is not None:
                audit.begin(math.inf, again=True)
                shared.kv.crop(audit.prompt_len)
        writer = Writer(shared, held)
        writer.begin(len(held), measure=shared.measuring)
        for _ in writer.read():
            pass
        return (audit and audit.result()) or Agreement(0, 0)

    def read_ahead(
        self,
        prompt_ids: Sequence[int],
        chunk_size: int = PREFILL_CHUNK,
        *,
        schedule: Schedule | None = None,
        repair: RepairChoice = "auto",
    ) -> Iterator[int]:
        """Reads the beginning of the next prompt, chunk by chunk, and repairs the cache on the way.

        Yields the number of positions that the cache holds. It can be left after any chunk: the
        rest is read with the prompt.

        Args:
            schedule: of the next reply. If that gets its order from the prompt, the units'
                influence is measured now.
            repair: see `RepairChoice`.
        """
        writer = Writer(self._shared, prompt_ids)
        writer.begin(len(prompt_ids), measure=units_to_measure(schedule), repair=repair)
        for _ in writer.read(chunk_size):
            yield self.cache.position

    def _encode(
        self,
        prompt: str | Sequence[Message],
        *,
        chat_template: str | None,
        think: bool | None,
        raw: bool,
    ) -> list[int]:
        """Token ids of a prompt, as for `stream`."""
        if raw:
            if not isinstance(prompt, str):
                raise UsageError("a raw prompt must be one text, not a list of messages")
            return encode_raw(self.model.tokenizer, prompt, self.model.context_length)
        return encode_chat(
            self.model.tokenizer,
            [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt,
            self.model.text.renderer,
            context=self.model.context_length,
            chat_template=chat_template,
            think=think,
        )

    def _check(self, schedule: Schedule, max_tokens: int | None) -> None:
        """Refuses what cannot be generated; raises as `stream` does."""
        self.model.check_schedule(schedule)
        if max_tokens is not None and max_tokens < 1:
            raise UsageError((Setting("max_tokens"), f" is {max_tokens}"), "it must be at least 1")

    def check_prompt(self, prompt_ids: Sequence[int]) -> None:
        """Refuses token ids that the model cannot read.

        Raises:
            PromptError: there are none, too many, or some that the model does not have.
        """
        if not prompt_ids:
            raise PromptError("the prompt is empty", "give it some text")
        vocabulary = self.model.causal_lm.get_input_embeddings().weight.shape[0]
        unknown = next((id_ for id_ in prompt_ids if not 0 <= id_ < vocabulary), None)
        if unknown is not None:
            raise PromptError(
                f"the prompt has token {unknown:,}, and the model's are 0 to {vocabulary - 1:,}",
                "if the prompt is text, the tokenizer and the weights do not belong together",
            )
        if len(prompt_ids) >= self.model.context_length:
            raise ContextFullError(len(prompt_ids), self.model.context_length)
