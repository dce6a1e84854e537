"""``d3 chat``: a conversation at the terminal."""

import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from d3cli.base.errors import UsageError
from d3cli.base.settings import default_model, state_dir
from d3cli.cli.chat.options import ChatCommandSettings, Keys
from d3cli.cli.chat.saving import Saving
from d3cli.cli.command_line import command
from d3cli.cli.depth import calibrate_command
from d3cli.cli.output import Output
from d3cli.cli.request import Request, load, note_turn_end, template_check
from d3cli.cli.terminal import is_dumb, typing_ahead
from d3cli.decode import transcript
from d3cli.files.names import find_local

if TYPE_CHECKING:
    from d3cli.cli.chat.loop import ChatLoop
    from d3cli.cli.chat.model_switch import Models
    from d3cli.cli.chat.settings import ChatSettings
    from d3cli.cli.model_options import ModelOptions
    from d3cli.decode.conversation import Conversation
    from d3cli.model.load import LoadOptions
    from d3cli.model.model import LoadedModel


@command(ChatCommandSettings)
def chat(settings: ChatCommandSettings) -> int:
    """Talk with a model, turn by turn.

    Depth can be changed during a conversation: /alpha 0.99, /alpha off; /regen alpha off writes
    the last reply again at full depth, /compare shows the price. /? lists all commands.

    Examples:
    - `d3 chat`

    - `d3 chat llama-3-8b --alpha 0.99`

    - `d3 chat -c`
    """
    output, keep = Output(), settings.keep
    if keep.list_all:
        _list(output)
        return 0
    _check_terminal()
    if keep.resume_last and keep.resume is not None:
        raise UsageError("--continue and --resume cannot be combined", "give one of them")
    request = Request.read(settings.reply)
    with typing_ahead():
        loop = _start(settings, request, output)
    return loop.run()


def _start(settings: ChatCommandSettings, request: Request, output: Output) -> "ChatLoop":
    """Loads the model and the conversation.

    Raises:
        D3Error: there is no such conversation, or the model cannot be loaded.
    """
    keep = settings.keep
    id_ = transcript.latest() if keep.resume_last else keep.resume and transcript.find(keep.resume)
    # Locked before it is read, so that no other process adds to it while the model loads.
    saving = Saving(None if keep.no_save else id_)
    messages = transcript.read(transcript.path_of(id_)) if id_ else []
    name = settings.model or transcript.last_model(messages) or default_model()
    loading = settings.reply.loading
    if settings.model is None and loading.revision is None:
        loading = replace(loading, revision=transcript.last_revision(messages))
    find_local(name)  # a wrong name is reported before the slow part
    # A conversation that continues keeps its own system prompt, unless one was typed.
    system = request.system or ""
    if messages and "system" not in settings.typed:
        system = messages[0].content if messages[0].role == "system" else ""
    loaded = load(output, name, loading, request.check_text(system), **request.needs)

    from d3cli.decode.conversation import Conversation

    conversation = Conversation(loaded, messages, revision=loading.revision)
    conversation.system = system
    if not (keep.no_save or id_):
        saving.save_as(transcript.new_id())
    return _loop(
        conversation,
        _session_settings(settings, request),
        saving,
        _models(output, loading, name),
        model_name=name,
        keep_history=not keep.no_save,
        vi=settings.keys is Keys.vi,
    )


def _models(output: Output, loading: "ModelOptions", first: str) -> "Models":
    """How a chat loads another model; a revision is one of the `first`, which may come back."""
    from d3cli.cli.chat.model_switch import Models

    def load_another(name: str, now: "ChatSettings", system: str | None) -> "LoadedModel":
        needs: LoadOptions = {"full_depth_only": now.alpha == "off"}
        if now.max_tokens is not None:
            needs["reply_tokens"] = now.max_tokens
        check_text = None if system is None else template_check(system, now.chat_template)
        model = load(output, name, options_for(name), check_text, **needs)
        note_turn_end(output, model, now.chat_template, now.stop)
        return model

    def options_for(name: str) -> "ModelOptions":
        return loading if name == first else replace(loading, revision=None)

    return Models(
        load_another,
        calibrate_with=lambda name: calibrate_command(name, options_for(name)),
        revision_of=lambda name: options_for(name).revision,
    )


def _session_settings(settings: ChatCommandSettings, request: Request) -> "ChatSettings":
    """The settings that a chat begins with; its commands change them."""
    from d3cli.cli.chat.settings import ChatSettings

    return ChatSettings(
        alpha=request.alpha,
        start=request.start,
        core_first=request.core[0],
        core_last=request.core[1],
        units=request.units,
        sampling=dict(request.sampling),
        max_tokens=request.max_tokens,
        stop=request.stop,
        think=request.think,
        chat_template=request.chat_template,
        stats=not settings.no_stats,
        plain=settings.plain,
        on_overflow=settings.on_overflow.value,
    )


def _loop(
    conversation: "Conversation",
    settings: "ChatSettings",
    saving: Saving,
    models: "Models",
    *,
    model_name: str,
    keep_history: bool,
    vi: bool,
) -> "ChatLoop":
    """The loop of a chat. Shows the last turn of a conversation that goes on."""
    from d3cli.cli.chat.commands import COMMANDS
    from d3cli.cli.chat.line_editor import ChatPrompt
    from d3cli.cli.chat.loop import ChatLoop
    from d3cli.cli.chat.markdown import reply_console
    from d3cli.cli.chat.plain_prompt import PlainPrompt
    from d3cli.cli.chat.screen import Screen
    from d3cli.cli.chat.session import Chat
    from d3cli.cli.chat.settings import spell_setting
    from d3cli.cli.chat.writer import Replies

    output, screen = Output(spell_setting), Screen(reply_console())
    prompt: ChatPrompt | PlainPrompt
    if is_dumb():
        prompt = PlainPrompt(lambda text: screen.print(text, "dim"))
    else:
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
    note_turn_end(output, conversation.model, settings.chat_template, settings.stop)
    if conversation.messages:
        chat.show_last()
    return ChatLoop(chat, prompt)


def _check_terminal() -> None:
    for stream in (sys.stdin, sys.stdout):
        if stream is None or not stream.isatty():
            raise UsageError("d3 chat needs a terminal", "for pipes and files, use d3 generate")


def _list(output: Output) -> None:
    from d3cli.cli.chat.views import listing

    found = transcript.all_conversations()
    if not found:
        output.note("no conversations yet; d3 chat starts one")
        return
    output.table(("id", "changed", "messages", "model", "first message"), listing(found))
