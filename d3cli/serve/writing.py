"""Writes one reply, as events: chooses a session, reads the prompt, writes token by token.

Runs in the worker's thread. Knows nothing of HTTP.
"""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import asdict
from typing import Any

from d3cli.base.errors import ContextFullError
from d3cli.decode.conversation import inside
from d3cli.decode.reply import Reply
from d3cli.decode.session import Engine
from d3cli.model.kv_cache import DEFAULT_RESERVE
from d3cli.model.model import LoadedModel
from d3cli.scoring.prompt import score_prompt
from d3cli.serve.drafts import Drafts
from d3cli.serve.errors import in_words
from d3cli.serve.events import Closed, Event, Opened, TokenScore, Written
from d3cli.serve.plans import Plan
from d3cli.serve.scores import ReplyScores, Scorer
from d3cli.serve.sessions import Sessions
from d3cli.text.chat_template import encode_chat, own_template
from d3cli.text.tokens import Detokenizer, encode_raw


class Writing:
    """Writes replies of one model, one after the other.

    Args:
        drafts: what drafts lossless replies.
    """

    def __init__(
        self,
        model: LoadedModel,
        sessions: Sessions,
        drafts: Drafts,
        chat_template: str | None = None,
    ) -> None:
        self._model, self._sessions, self._drafts = model, sessions, drafts
        self._template = chat_template

    def write(self, plan: Plan, began: float) -> Generator[Event | None]:
        """The events of a reply. It can be left after any of them; None means only that.

        Args:
            began: when the wait for the first token began, by `time.perf_counter`.

        Raises:
            D3Error: as `Engine.stream` does.
        """
        # What others have sent must not decide this reply.
        self._model.influence.forget()
        try:
            ids = self._encode(plan)
        except ContextFullError as error:
            raise self._sessions.explained(error) from error
        beside = len(ids) if plan.echo and plan.with_scores else 0  # to score the prompt
        engine = self._sessions.take(ids, plan.max_tokens, beside=beside, source=plan.lossless)
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
            drafter=None if plan.lossless is None else self._drafts.drafter(plan.lossless),
            reserve=DEFAULT_RESERVE if plan.max_tokens is None else None,
        )
        for _ in reply.prefill():
            yield None
        yield self._opened(inside(reply) if plan.is_chat else "", plan, ids, scores)
        of_reply = ReplyScores(reply, self._ends()) if plan.with_scores else None
        for chunk in reply:
            found = () if of_reply is None else of_reply.after(chunk)
            yield Written(chunk.text, found, chunk.finish_reason)
            if chunk.finish_reason is None:
                self._sessions.make_way(engine)
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

    def _most(self, plan: Plan, ids: Sequence[int]) -> int | None:
        """The most tokens of the reply, where memory leaves fewer than the context does."""
        if plan.max_tokens is None and self._sessions.context < self._model.context_length:
            return self._sessions.context - len(ids)
        return plan.max_tokens

    def _score_prompt(self, plan: Plan, ids: Sequence[int]) -> Iterator[list[TokenScore]]:
        scorer = Scorer(Detokenizer(self._model.tokenizer), self._model.tokenizer)
        for tokens in score_prompt(self._model, ids, plan.most_likely):
            yield [
                scorer.score(token.token_id, token.logprob, token.most_likely) for token in tokens
            ]

    def _opened(
        self, tag: str, plan: Plan, ids: Sequence[int], scores: Sequence[TokenScore]
    ) -> Opened:
        text = ""
        if plan.echo or (plan.with_scores and not plan.is_chat):
            writer = Detokenizer(self._model.tokenizer)
            text = "".join(map(writer.push, ids)) + writer.flush()
        if plan.echo:
            return Opened(tag, text, tuple(scores))
        return Opened(tag, before=len(text))


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
