"""``d3 chat``: a conversation at the terminal."""

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from d3cli.base.errors import UsageError
from d3cli.base.settings import default_model, state_dir
from d3cli.cli import options
from d3cli.cli.chat.saving import Saving
from d3cli.cli.completion import complete_model
from d3cli.cli.depth import parse_alpha, parse_start
from d3cli.cli.loading import load
from d3cli.cli.output import Output
from d3cli.cli.prompts import check_utf8, read_text
from d3cli.decode import transcript
from d3cli.decode.sampling import SamplingParams
from d3cli.depth.calibration_store import calibrate_command
from d3cli.files.names import find_local

if TYPE_CHECKING:
    from d3cli.cli.chat.model_switch import Models
    from d3cli.cli.chat.settings import ChatSettings
    from d3cli.decode.conversation import Conversation
    from d3cli.model.load import LoadOptions
    from d3cli.model.model import LoadedModel

KEPT = "Conversations"


class Keys(StrEnum):
    """Which editor's keys the prompt has."""

    emacs = "emacs"
    vi = "vi"


class Overflow(StrEnum):
    """What happens where the context is full."""

    stop = "stop"
    drop_oldest = "drop-oldest"


def chat(
    ctx: typer.Context,
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            autocompletion=complete_model,
            help=options.MODEL_HELP
            + "; the one that wrote the last reply where a conversation goes on.",
        ),
    ] = None,
    resume_last: Annotated[
        bool,
        typer.Option(
            "--continue", "-c", rich_help_panel=KEPT, help="Go on with the last conversation."
        ),
    ] = False,
    resume: Annotated[
        str | None,
        typer.Option(
            metavar="ID",
            rich_help_panel=KEPT,
            help="Go on with this conversation; the beginning of its id (--list) will do.",
        ),
    ] = None,
    list_all: Annotated[
        bool, typer.Option("--list", rich_help_panel=KEPT, help="List the conversations.")
    ] = False,
    no_save: Annotated[
        bool,
        typer.Option(
            "--no-save",
            rich_help_panel=KEPT,
            help="Keep neither this conversation nor what is typed.",
        ),
    ] = False,
    system: options.System = None,
    system_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            rich_help_panel=options.INPUT,
            help="Read the system prompt from a file.",
        ),
    ] = None,
    chat_template: options.ChatTemplate = None,
    think: options.ThinkSwitch = None,
    keys: Annotated[
        Keys,
        typer.Option(
            envvar="D3_KEYS", rich_help_panel=options.INPUT, help="Editing keys at the prompt."
        ),
    ] = Keys.emacs,
    on_overflow: Annotated[
        Overflow,
        typer.Option(
            envvar="D3_ON_OVERFLOW",
            rich_help_panel=options.INPUT,
            help="Where the context is full: say so and stop, or show the model the oldest turns "
            "no longer, and say which.",
        ),
    ] = Overflow.stop,
    alpha: options.Alpha = "auto",
    start: options.Start = None,
    core_first: options.CoreFirst = None,
    core_last: options.CoreLast = None,
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
    top_k: options.TopK = None,
    min_p: options.MinP = None,
    repetition_penalty: options.RepetitionPenalty = None,
    seed: options.Seed = None,
    max_tokens: options.MaxTokens = None,
    stop: options.Stop = None,
    dtype: options.Dtype = options.DtypeName.auto,
    quantization: options.QuantizationOption = None,
    quantize_head: options.QuantizeHead = None,
    device: options.Device = "auto",
    threads: options.Threads = None,
    offline: options.Offline = False,
    force: options.Force = False,
    verify: options.Verify = False,
    plain: Annotated[
        bool,
        typer.Option(
            "--plain", rich_help_panel=options.OUTPUT, help="Show replies as text, not as Markdown."
        ),
    ] = False,
    no_stats: Annotated[
        bool,
        typer.Option(
            "--no-stats", rich_help_panel=options.OUTPUT, help="No line of figures after a reply."
        ),
    ] = False,
    debug: options.Debug = False,  # noqa: ARG001 - its callback does the work
) -> int:
    """Talk with a model, turn by turn.

    Depth can be turned in the middle of a conversation: /alpha 0.99, /alpha off; /regen alpha off
    writes the last reply again at full depth, /compare shows the price. /? lists all commands.

    Examples:
    - `d3 chat`

    - `d3 chat llama-3-8b --alpha 0.99`

    - `d3 chat -c`
    """
    output = Output()
    if list_all:
        _list(output)
        return 0
    _check_terminal()
    if resume_last and resume is not None:
        raise UsageError("--continue and --resume ask for two conversations", "give one of them")
    decay = parse_alpha(alpha)
    given = {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "seed": seed,
    }
    SamplingParams.resolve(given, {})
    start_tokens = parse_start(start, max_tokens)
    template = None if chat_template is None else read_text(chat_template, "chat template")
    # A conversation that goes on keeps its own, unless this command line gives another.
    typed = system if options.was_typed(ctx, "system") else None
    system_text = _system(typed, system_file)
    for name, text in (
        ("--system", system_text or system),
        *(("--stop", text) for text in stop or ()),
    ):
        check_utf8(text or "", name)
    id_ = transcript.latest() if resume_last else resume and transcript.find(resume)
    # Held before it is read: else another d3 might say more in it while the model loads.
    saving = Saving(None if no_save else id_)
    messages = transcript.read(transcript.path_of(id_)) if id_ else []
    name = model or transcript.last_model(messages) or default_model()
    find_local(name)  # a wrong name is told at once
    loading: LoadOptions = {
        "dtype": dtype.value,
        "quantization": None if quantization is None else quantization.value,
        "quantize_head": None if quantize_head is None else quantize_head.value,
        "device": device,
        "force": force,
        "verify": verify,
        "full_depth_only": decay == "off",
    }
    if max_tokens is not None:
        loading["reply_tokens"] = max_tokens
    loaded = load(output, name, offline, threads, **loading)

    from d3cli.cli.chat.model_switch import Models
    from d3cli.cli.chat.settings import ChatSettings
    from d3cli.decode.conversation import Conversation

    conversation = Conversation(loaded, messages)
    if system_text is not None or not messages:
        conversation.system = system_text or system or ""
    settings = ChatSettings(
        alpha=decay,
        start=start_tokens,
        core_first=core_first,
        core_last=core_last,
        sampling=given,
        max_tokens=max_tokens,
        stop=tuple(stop or ()),
        think=None if think is None else think is options.Think.on,
        chat_template=template,
        stats=not no_stats,
        plain=plain,
        on_overflow=on_overflow.value,
    )
    if not (no_save or id_):
        saving.save_as(transcript.new_id())

    def load_another(other: str, now: ChatSettings) -> "LoadedModel":
        wanted = loading.copy()
        wanted["full_depth_only"] = now.alpha == "off"
        if now.max_tokens is not None:
            wanted["reply_tokens"] = now.max_tokens
        return load(output, other, offline, threads, **wanted)

    return _run(
        conversation,
        settings,
        saving,
        Models(
            load_another,
            lambda other: calibrate_command(other, dtype.value, loading["quantization"]),
        ),
        model_name=name,
        keep_history=not no_save,
        vi=keys is Keys.vi,
    )


def _run(
    conversation: "Conversation",
    settings: "ChatSettings",
    saving: Saving,
    models: "Models",
    *,
    model_name: str,
    keep_history: bool,
    vi: bool,
) -> int:
    """Talks until the user leaves, and returns the exit code."""
    from d3cli.cli.chat.commands import COMMANDS
    from d3cli.cli.chat.line_editor import ChatPrompt
    from d3cli.cli.chat.loop import ChatLoop
    from d3cli.cli.chat.markdown import reply_console
    from d3cli.cli.chat.screen import Screen
    from d3cli.cli.chat.session import Chat
    from d3cli.cli.chat.settings import spell_setting
    from d3cli.cli.chat.writer import Replies

    output, screen = Output(spell_setting), Screen(reply_console())
    prompt = ChatPrompt(
        output,
        history=state_dir() / "chat-history" if keep_history else None,
        vi=vi,
        commands={name: one.arguments for name, one in COMMANDS.items()},
    )
    replies = Replies(output, screen, saving, prompt.show_above)
    chat = Chat(output, screen, replies, saving, models, conversation, settings, model_name)
    if not (settings.chat_template or conversation.model.tokenizer.chat_template):
        output.note("this model has no chat template: it continues the conversation as it is")
    if conversation.messages:
        chat.show_last()
    return ChatLoop(chat, prompt).run()


def _check_terminal() -> None:
    for stream in (sys.stdin, sys.stdout):
        if stream is None or not stream.isatty():
            raise UsageError("d3 chat needs a terminal", "for pipes and files there is d3 generate")


def _list(output: Output) -> None:
    from d3cli.cli.chat.views import listing

    found = transcript.all_conversations()
    if not found:
        output.note("no conversations yet; d3 chat begins one")
        return
    output.table(("id", "changed", "messages", "model", "begins"), listing(found))


def _system(text: str | None, file: Path | None) -> str | None:
    if text is not None and file is not None:
        raise UsageError("--system and --system-file both give a system prompt", "give one of them")
    return text if file is None else read_text(file, "system prompt")
