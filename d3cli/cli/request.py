"""The options of a reply: checked before a model is loaded, then applied to the model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from d3cli.base.errors import UsageError
from d3cli.cli import stdin
from d3cli.cli.depth import calibrate_command, check_planes
from d3cli.cli.draft_options import Drafting
from d3cli.cli.loading import announce, load_models
from d3cli.cli.options import GenerationOptions
from d3cli.cli.output import Output
from d3cli.cli.prompt_options import PromptOptions, Think
from d3cli.cli.prompts import check_utf8, estimate_tokens, read_text
from d3cli.decode.sampling import SamplingParams
from d3cli.depth.choice import Source
from d3cli.depth.parse import parse_alpha, parse_start
from d3cli.depth.prompt_order import Schedule
from d3cli.depth.units import UnitChoice
from d3cli.model.form_choice import lowers_depth
from d3cli.model.schedule_choice import choose_draft_schedule, choose_schedule
from d3cli.text.stop_strings import StopStrings, unescaped

if TYPE_CHECKING:
    from d3cli.decode.draft.drafter import Drafter
    from d3cli.model.load import CheckText
    from d3cli.model.load_plan import LoadOptions
    from d3cli.model.model import LoadedModel


@dataclass(frozen=True, slots=True)
class Request:
    """The options of a reply, parsed, before a model is loaded.

    Attributes:
        drafting: what drafts a lossless reply; None for plain ones.
        core: the numbers of first and last core layers; None keeps the schedule's.
        sampling: the fields of `SamplingParams`; for None, the checkpoint decides.
        chat_template: the text of a template that replaces the model's own.
        think: as typed; `resolve_think` makes of it what the library takes.
    """

    alpha: float | Literal["auto", "off"]
    start: int | None
    core: tuple[int | None, int | None]
    units: UnitChoice
    sampling: Mapping[str, Any]
    max_tokens: int | None
    stop: tuple[str, ...]
    system: str | None
    chat_template: str | None
    think: Think | None
    drafting: Drafting | None

    @classmethod
    def read(cls, output: Output, options: GenerationOptions) -> "Request":
        """Parses and checks the options. A mistake is found before a model is loaded.

        Raises:
            UsageError: a value is impossible, options contradict each other, or a text cannot be
                read.
        """
        template, depth, sampling = options.template, options.depth, options.sampling
        alpha = parse_alpha(depth.alpha)
        start = parse_start(depth.start, sampling.max_tokens)
        check_planes(depth.units.value, alpha, options.loading)
        SamplingParams.resolve(sampling.given, {})
        check_utf8(template.system or "", "--system")
        for text in sampling.stop or ():
            check_utf8(text, "--stop")
        stop = tuple(unescaped(text) for text in sampling.stop or ())
        StopStrings(stop)  # refuses an empty one
        return cls(
            alpha=alpha,
            start=start,
            core=(depth.core_first, depth.core_last),
            units=depth.units.value,
            sampling=sampling.given,
            max_tokens=sampling.max_tokens,
            stop=stop,
            system=template.system,
            chat_template=None
            if template.chat_template is None
            else _read_template(output, template.chat_template),
            think=template.think,
            drafting=options.drafts.read(),
        )

    @property
    def decays(self) -> bool:
        """Whether a number lowers the depth of replies, by units that d3 chooses."""
        return self.drafting is None and lowers_depth(self.alpha, self.units)

    @property
    def needs(self) -> "LoadOptions":
        """The options of `load_model` that depend on the replies."""
        drops = self.alpha != "off"
        if self.drafting is not None:  # only drafts drop something, and only by a number if need be
            drops = self.drafting.by_depth and isinstance(self.alpha, float)
        needs: LoadOptions = {"full_depth_only": not drops}
        if self.max_tokens is not None:
            needs["reply_tokens"] = self.max_tokens
        return needs

    def check_text(self, system: str | None) -> "CheckText":
        """Returns what refuses a chat template that cannot do what is asked for.

        The result raises ModelError if the template cannot render a conversation, and UsageError if
        it has no switch for thinking that is to be on or off.
        """

        def check(tokenizer: Any, renderer: Any) -> None:
            template_check(system, self.chat_template)(tokenizer, renderer)
            resolve_think(tokenizer, renderer, self.think, self.chat_template)

        return check


def template_check(system: str | None, chat_template: str | None = None) -> "CheckText":
    """Returns what raises ModelError if a chat template cannot render a conversation."""
    from d3cli.text.chat_template import check_template

    roles = ["system", "user"] if system else ["user"]
    return partial(check_template, roles=roles, chat_template=chat_template)


def _read_template(output: Output, path: Path) -> str:
    with stdin.waiting(output, str(path)):
        text = read_text(path, "chat template")
    if not text.strip():
        raise UsageError(
            f"the chat template {path} is empty", "without --chat-template, the model's own is used"
        )
    return text


class ReplySettings(Protocol):
    """What the settings of `d3 generate` and `d3 profile` have in common."""

    @property
    def typed(self) -> Mapping[str, str]: ...
    @property
    def prompts(self) -> PromptOptions: ...
    @property
    def reply(self) -> GenerationOptions: ...


@dataclass(frozen=True, slots=True)
class Ready:
    """A loaded model, and the options applied to it.

    Attributes:
        schedule: of the reply; in the lossless mode, of its drafts.
        source: where the schedule comes from.
        draft_model: None for none.
    """

    model: "LoadedModel"
    schedule: Schedule
    source: Source
    sampling: SamplingParams
    request: Request
    think: bool | None
    draft_model: "LoadedModel | None" = None

    def new_drafter(self) -> "Drafter | None":
        """What drafts the replies of a conversation; None if they are plain."""
        from d3cli.decode.draft.drafter import Drafter

        drafting = self.request.drafting
        if drafting is None:
            return None
        return Drafter.for_model(self.model, drafting.source, draft_model=self.draft_model)


def system_prompt(settings: ReplySettings) -> str | None:
    """The system prompt. With --raw, one from config.toml is ignored: no template would use it."""
    if settings.prompts.raw and "system" not in settings.typed:
        return None
    return settings.reply.template.system


def prepare(
    output: Output,
    settings: ReplySettings,
    name: str,
    longest_prompt: str,
    reply_tokens: int | None = None,
) -> Ready:
    """Checks the options, loads the model and chooses the schedule.

    Args:
        reply_tokens: how many tokens a reply may have, if not as many as --max-tokens says.

    Raises:
        UsageError: a value is impossible, or the options contradict each other.
    """
    raw, template = settings.prompts.raw, settings.reply.template
    system = system_prompt(settings)
    switched = template.think in (Think.on, Think.off)
    if raw and (system or template.chat_template or switched):
        raise UsageError(
            "--raw uses no chat template, so it excludes --system, --chat-template and --think "
            "on or off",
            "leave those out, or leave out --raw",
        )
    request, loading = Request.read(output, settings.reply), settings.reply.loading
    needs = request.needs
    if reply_tokens is not None:
        needs["reply_tokens"] = reply_tokens
    needs["prompt_tokens"] = estimate_tokens(longest_prompt, system or "")
    check_text = None if raw else request.check_text(system)
    announce(output, name, loading, request.drafting, decays=request.decays)
    model, draft_model = load_models(
        output, name, loading, request.drafting, check_text, decays=request.decays, **needs
    )
    depth = (request.alpha, request.start, request.core, request.units)
    if request.drafting is None:
        choice = choose_schedule(model, *depth, calibrate_command(name, loading))
    else:
        choice = choose_draft_schedule(model, request.drafting.source, *depth)
    for note in choice.notes:
        output.note(note)
    if not raw and not (request.chat_template or model.tokenizer.chat_template):
        output.note("this model has no chat template: it continues the prompt as it is")
    if not raw:
        note_turn_end(output, model, request.chat_template, request.stop)
    sampling = SamplingParams.resolve(request.sampling, model.text.generation_settings)
    text, think = model.text, None
    if not raw:
        think = resolve_think(text.tokenizer, text.renderer, request.think, request.chat_template)
    return Ready(model, choice.schedule, choice.source, sampling, request, think, draft_model)


def resolve_think(
    tokenizer: Any, renderer: Any, think: Think | None, chat_template: str | None
) -> bool | None:
    """A choice of thinking as the library takes it.

    Reasoning can be hidden also where the template has no switch: such models always think.

    Raises:
        UsageError: thinking is to be on or off, but the template has no switch for it.
        ModelError: the model has several chat templates, and none is the default.
    """
    if think is None:
        return None
    from d3cli.text.chat_template import check_thinking_switch, thinking_switch

    if think is Think.hide:
        return thinking_switch(tokenizer, renderer, chat_template) is not None or None
    check_thinking_switch(tokenizer, renderer, chat_template)
    return think is Think.on


def note_turn_end(
    output: Output, model: "LoadedModel", chat_template: str | None, stops: Sequence[str]
) -> None:
    """Says if nothing of what the chat template writes after a reply ends the reply."""
    end = model.text.turn_end(chat_template)
    if any(stop in end.text for stop in stops):
        return
    for note in end.notes:
        output.note(note)
