"""Writes one reply, as events: chooses a session, reads the prompt, writes token by token.

Runs in the worker's thread. Knows nothing of HTTP.
"""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import asdict
from typing import Any

from d3cli.decode.conversation import inside
from d3cli.decode.draft.drafter import Drafter, SourceChoice
from d3cli.decode.reply import Reply
from d3cli.decode.session import Engine
from d3cli.model.model import LoadedModel
from d3cli.scoring.prompt import score_prompt
from d3cli.serve.errors import in_words
from d3cli.serve.events import Closed, Event, Opened, TokenScore, Written
from d3cli.serve.plans import Plan
from d3cli.serve.sessions import Sessions
from d3cli.text.chat_template import encode_chat, own_template
from d3cli.text.control_tokens import reply_writing, skipped_tokens
from d3cli.text.tokens import Detokenizer, encode_raw


class Writing:
    """Writes replies of one model, one after the other.

    Args:
        draft_model: drafts for lossless replies; None for none.
    """

    def __init__(
        self,
        model: LoadedModel,
        sessions: Sessions,
        *,
        draft_model: LoadedModel | None = None,
        chat_template: str | None = None,
    ) -> None:
        self._model, self._sessions = model, sessions
        self._draft_model, self._template = draft_model, chat_template
        self._drafters: dict[SourceChoice, Drafter] = {}

    def write(self, plan: Plan, began: float) -> Generator[Event | None]:
        """The events of a reply. It can be left after any of them; None means only that.

        Args:
            began: when the wait for the first token began, by `time.perf_counter`.

        Raises:
            D3Error: as `Engine.stream` does.
        """
        # What others have sent must not decide this reply.
        self._model.influence.forget()
        ids = self._encode(plan)
        beside = len(ids) if plan.echo and plan.with_scores else 0  # to score the prompt
        engine = self._sessions.take(ids, plan.max_tokens, beside=beside)
        keep = False
        try:
            usage = yield from self._write(plan, ids, engine, began)
            keep = True
        except GeneratorExit:  # the client has gone: what was read stays useful
            keep = True
            raise
        finally:
            self._sessions.give_back(engine, keep=keep)
        yield Closed(usage)

    def _write(
        self, plan: Plan, ids: list[int], engine: Engine, began: float
    ) -> Generator[Event | None, None, dict[str, Any]]:
        """The events of a reply but for the last; returns the usage."""
        engine.check_prompt(ids)
        scores: list[TokenScore] = []
        for scored in self._score_prompt(plan, ids) if plan.echo and plan.with_scores else ():
            scores += scored
            yield None
        if plan.max_tokens == 0:
            yield self._opened("", plan, ids, scores)
            yield Written("", finish_reason="length")
            return _usage_of_prompt(len(ids))
        reply = engine.stream_ids(
            ids,
            schedule=plan.schedule,
            sampling=plan.sampling,
            max_tokens=self._most(plan, ids),
            stop=plan.stop,
            ends=self._ends(),
            continues=not self._has_template(plan),
            most_likely=plan.most_likely,
            began=began,
            drafter=self._drafter(plan.lossless),
        )
        for _ in reply.prefill():
            yield None
        yield self._opened(inside(reply) if plan.is_chat else "", plan, ids, scores)
        scorer, ends = self._scorer(reply) if plan.with_scores else None, self._ends()
        for chunk in reply:
            self._sessions.settle(engine)
            token, score = chunk.token, None
            if scorer and token.token_id not in ends:
                score = scorer.score(token.token_id, token.logprob, token.most_likely)
            yield Written(chunk.text, score, chunk.finish_reason)
        return _usage(reply, plan)

    def _encode(self, plan: Plan) -> list[int]:
        if isinstance(plan.prompt, str):
            return encode_raw(self._model.tokenizer, plan.prompt, self._sessions.context)
        if not plan.is_chat:
            return [id_ for id_ in plan.prompt if isinstance(id_, int)]
        return encode_chat(
            self._model.tokenizer,
            [message for message in plan.prompt if isinstance(message, dict)],
            self._model.text.renderer,
            context=self._sessions.context,
            chat_template=self._template,
            think=plan.think,
        )

    def _has_template(self, plan: Plan) -> bool:
        return plan.is_chat and bool(self._template or own_template(self._model.tokenizer))

    def _ends(self) -> frozenset[int]:
        return self._model.text.reply_ends(self._template)

    def _scorer(self, reply: Reply) -> "_Scorer":
        tokenizer = self._model.tokenizer
        written, _ = reply_writing(tokenizer, (), self._ends())
        return _Scorer(reply.new_detokenizer(written), tokenizer)

    def _most(self, plan: Plan, ids: Sequence[int]) -> int | None:
        """The most tokens of the reply, where memory leaves fewer than the context does."""
        if plan.max_tokens is None and self._sessions.context < self._model.context_length:
            return self._sessions.context - len(ids)
        return plan.max_tokens

    def _drafter(self, source: SourceChoice | None) -> Drafter | None:
        if source is None:
            return None
        if source not in self._drafters:
            self._drafters[source] = Drafter.for_model(
                self._model, source, draft_model=self._draft_model
            )
        return self._drafters[source]

    def _score_prompt(self, plan: Plan, ids: Sequence[int]) -> Iterator[list[TokenScore]]:
        scorer = _Scorer(Detokenizer(self._model.tokenizer), self._model.tokenizer)
        for tokens in score_prompt(self._model, ids, plan.most_likely):
            yield [
                scorer.score(token.token_id, token.logprob, token.most_likely) for token in tokens
            ]

    def _opened(
        self, tag: str, plan: Plan, ids: Sequence[int], scores: Sequence[TokenScore]
    ) -> Opened:
        echo = ""
        if plan.echo:
            writer = Detokenizer(self._model.tokenizer)
            echo = "".join(map(writer.push, ids)) + writer.flush()
        return Opened(tag, echo, tuple(scores))


class _Scorer:
    """Turns tokens, in their order, into scores.

    A special token has no text. Among the most likely tokens it is called by its name, since
    several may be there.
    """

    def __init__(self, writer: Detokenizer, tokenizer: Any) -> None:
        self._writer = writer
        self._names = {id_: name for name, id_ in skipped_tokens(tokenizer).items()}

    def score(
        self, token_id: int, logprob: float | None, most_likely: Sequence[tuple[int, float]]
    ) -> TokenScore:
        """The score of the next token."""
        others = tuple((self._called(other), chance) for other, chance in most_likely)
        return TokenScore(self._writer.push(token_id), logprob, others)

    def _called(self, token_id: int) -> str:
        return self._writer.peek(token_id) or self._names.get(token_id, "")


def _usage_of_prompt(tokens: int) -> dict[str, Any]:
    return {"prompt_tokens": tokens, "completion_tokens": 0, "total_tokens": tokens}


def _usage(reply: Reply, plan: Plan) -> dict[str, Any]:
    """OpenAI's usage of a reply, with d3's figures."""
    stats = reply.stats
    drafted = stats.lossless
    notes = [*plan.notes, *map(in_words, reply.notes)]
    return {
        "prompt_tokens": stats.prompt_tokens,
        "completion_tokens": stats.completion_tokens,
        "total_tokens": stats.prompt_tokens + stats.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": reply.reused},
        "d3": {
            "depth": stats.mean_depth,
            "min_depth": stats.min_depth,
            "num_layers": reply.model.num_layers,
            "layer_ratio": stats.layer_ratio,
            "byte_ratio": stats.byte_ratio,
            "bits": stats.bits,
            "ttft_s": stats.ttft_s,
            "decode_s": stats.decode_s,
            "tokens_per_second": stats.tokens_per_second,
            "acceptance": drafted.accepted / drafted.drafted
            if drafted and drafted.drafted
            else None,
            "lossless": None if drafted is None else asdict(drafted),
            "source": "off" if drafted is not None else plan.source,
            "seed": stats.seed,
            "notes": notes,
        },
    }
