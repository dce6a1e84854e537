"""From the fields of a request to what the worker shall write, with the server's own settings.

What is wrong with a request is found here, before it waits, but for its prompt: tokenizer and
chat template are the worker's, since one thread at a time may use them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from d3cli.base.errors import Setting, UsageError
from d3cli.decode.sampling import SamplingParams
from d3cli.depth.choice import Choice, Source
from d3cli.depth.parse import parse_alpha, parse_start
from d3cli.depth.prompt_order import Schedule
from d3cli.depth.units import UnitChoice
from d3cli.model.schedule_choice import choose_draft_schedule, choose_schedule
from d3cli.serve.errors import in_words
from d3cli.serve.fields import ChatFields, ReplyFields, TextFields
from d3cli.serve.refusals import check_chat, check_common, check_text, messages_of, prompt_of
from d3cli.text.chat_template import Message

if TYPE_CHECKING:
    from d3cli.decode.draft.drafter import SourceChoice
    from d3cli.model.model import LoadedModel

TEXT_MAX_TOKENS = 16  # OpenAI's default for /v1/completions
SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed")
MINUS_ONE: Mapping[str, int | None] = {"seed": None, "top_k": 0}  # what -1 means, as elsewhere


@dataclass(frozen=True, slots=True)
class Defaults:
    """How replies are written where a request says nothing.

    Attributes:
        core: the numbers of first and last core layers; None keeps the schedule's.
        sampling: the fields of `SamplingParams`; for None, the checkpoint decides.
        lossless: what drafts; None for plain replies.
        chat_template: replaces the model's own.
        calibrate_with: the command that calibrates the model, for notes.
    """

    alpha: float | Literal["auto", "off"] = "auto"
    start: int | None = None
    core: tuple[int | None, int | None] = (None, None)
    units: UnitChoice = "auto"
    sampling: Mapping[str, Any] | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    lossless: "SourceChoice | None" = None
    chat_template: str | None = None
    calibrate_with: str = "d3 calibrate"


@dataclass(frozen=True, slots=True)
class Plan:
    """One reply to write.

    Attributes:
        prompt: a conversation, or a text or token ids to continue.
        field: the field of the request that holds the prompt.
        schedule: in a lossless reply, of its drafts.
        notes: what the user should know about the schedule.
        with_scores: whether log-probabilities are asked for, and `most_likely` how many others
            beside each token.
        echo: whether the prompt is part of the text.
    """

    prompt: Sequence[Message] | str | Sequence[int]
    field: str
    schedule: Schedule
    source: Source
    notes: tuple[str, ...]
    sampling: SamplingParams
    max_tokens: int | None
    stop: tuple[str, ...]
    lossless: "SourceChoice | None"
    think: bool | None = None
    with_scores: bool = False
    most_likely: int = 0
    echo: bool = False

    @property
    def is_chat(self) -> bool:
        return self.field == "messages"


class Planner:
    """Makes plans for one model.

    Args:
        has_draft_model: whether the server has a draft model.
    """

    def __init__(
        self, model: "LoadedModel", defaults: Defaults, *, has_draft_model: bool = False
    ) -> None:
        self._model, self._defaults = model, defaults
        self._has_draft_model = has_draft_model

    def chat(self, fields: ChatFields) -> Plan:
        """The plan for a request to `/v1/chat/completions`.

        Raises:
            ApiError, D3Error: a field cannot be used.
        """
        check_common(fields)
        check_chat(fields)
        default = self._defaults.max_tokens
        max_tokens = _limit(fields.max_tokens, default)
        if fields.max_completion_tokens is not None:
            max_tokens = _limit(fields.max_completion_tokens, default, "max_completion_tokens")
        return self._plan(
            fields,
            max_tokens,
            prompt=messages_of(fields.messages),
            field="messages",
            think=fields.think,
            with_scores=bool(fields.logprobs),
            most_likely=fields.top_logprobs or 0,
        )

    def text(self, fields: TextFields) -> Plan:
        """The plan for a request to `/v1/completions`; raises as `chat` does."""
        check_common(fields)
        check_text(fields)
        prompt, default = prompt_of(fields.prompt), self._defaults.max_tokens or TEXT_MAX_TOKENS
        max_tokens = 0 if fields.max_tokens == 0 else _limit(fields.max_tokens, default)
        return self._plan(
            fields,
            max_tokens,
            prompt=prompt,
            field="prompt",
            with_scores=fields.logprobs is not None,
            most_likely=fields.logprobs or 0,
            echo=bool(fields.echo),
        )

    def _plan(self, fields: ReplyFields, max_tokens: int | None, **more: Any) -> Plan:
        source = self._drafting(fields)
        choice = self._choose(fields, max_tokens, source)
        stop = self._defaults.stop
        if fields.stop is not None:
            stop = (fields.stop,) if isinstance(fields.stop, str) else tuple(fields.stop)
        return Plan(
            schedule=choice.schedule,
            source=choice.source,
            notes=tuple(map(in_words, choice.notes)),
            sampling=self._sampling(fields),
            max_tokens=max_tokens,
            stop=stop,
            lossless=source,
            **more,
        )

    def _sampling(self, fields: ReplyFields) -> SamplingParams:
        given = dict(self._defaults.sampling or {})
        for name in SAMPLING:
            value = getattr(fields, name)
            if value is not None:
                given[name] = MINUS_ONE[name] if value == -1 and name in MINUS_ONE else value
        return SamplingParams.resolve(given, self._model.text.generation_settings)

    def _drafting(self, fields: ReplyFields) -> "SourceChoice | None":
        asked = fields.lossless
        if asked is None:
            return self._defaults.lossless
        if asked is False or asked == "off":
            return None
        if asked == "model" and not self._has_draft_model:
            raise UsageError(
                (Setting("lossless", asked), " needs a draft model, and this server has none"),
                ("use ", Setting("lossless", "auto")),
            )
        return "auto" if asked is True else asked

    def _choose(
        self, fields: ReplyFields, max_tokens: int | None, source: "SourceChoice | None"
    ) -> Choice:
        own, model = self._defaults, self._model
        alpha = own.alpha if fields.alpha is None else _alpha(fields.alpha)
        start = own.start if fields.start is None else parse_start(str(fields.start), max_tokens)
        core = (
            own.core[0] if fields.core_first is None else fields.core_first,
            own.core[1] if fields.core_last is None else fields.core_last,
        )
        units = fields.units or own.units
        if source is not None:
            return choose_draft_schedule(model, source, alpha, start, core, units)
        return choose_schedule(model, alpha, start, core, units, own.calibrate_with)


def _alpha(value: float | Literal["auto", "off"]) -> float | Literal["auto", "off"]:
    return parse_alpha(str(value))


def _limit(asked: int | None, default: int | None, name: str = "max_tokens") -> int | None:
    """The most tokens of a reply; None for as many as the context leaves."""
    if asked is None:
        return default
    if asked == -1:
        return None
    if asked < 1:
        raise UsageError((Setting(name), f" is {asked}"), "it must be at least 1")
    return asked
