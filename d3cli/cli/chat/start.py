"""How a chat begins: its conversation, its prompt, and its model, which loads beside the prompt.

A model that must be downloaded first loads before the prompt, and so do all models on a terminal
without escape sequences.
"""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, TextIO

from d3cli.base.settings import default_model, state_dir
from d3cli.cli import signals
from d3cli.cli.chat.commands import BYE, COMMANDS, HELP, show_help
from d3cli.cli.chat.drafts import Drafts
from d3cli.cli.chat.keyboard import Keyboard
from d3cli.cli.chat.line_editor import ChatPrompt
from d3cli.cli.chat.loading import Loading, PassedOn
from d3cli.cli.chat.loop import ChatLoop
from d3cli.cli.chat.markdown import reply_console
from d3cli.cli.chat.model_switch import models_from
from d3cli.cli.chat.options import ChatCommandSettings, Keys
from d3cli.cli.chat.plain_prompt import PlainPrompt
from d3cli.cli.chat.saved import read_saved
from d3cli.cli.chat.saving import Saving
from d3cli.cli.chat.screen import Screen
from d3cli.cli.chat.session import Chat, as_typed, show_last
from d3cli.cli.chat.settings import ChatSettings, spell_setting
from d3cli.cli.chat.writer import Replies
from d3cli.cli.loading import announce, load_models
from d3cli.cli.model_options import ModelOptions
from d3cli.cli.output import Output
from d3cli.cli.request import Request, note_turn_end
from d3cli.cli.terminal import is_dumb, line_mode, typing_ahead
from d3cli.decode import transcript
from d3cli.decode.transcript import ChatMessage
from d3cli.files.names import find_local, find_on_disk

if TYPE_CHECKING:
    from rich.text import Text


Write = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Beginning:
    """What is known of a chat before its model is loaded.

    Attributes:
        model: what the user calls the model.
        system: the system prompt; empty for none.
        messages: those of the conversation that goes on, without one that has no reply.
        draft: the text that the first prompt begins with.
        is_new: whether this is a new conversation that will be saved.
        note: about the file of the conversation; empty if it is whole.
    """

    request: Request
    settings: ChatSettings
    model: str
    loading: ModelOptions
    system: str
    messages: list[ChatMessage]
    draft: str
    saving: Saving
    is_new: bool
    note: str


class ChatOutput(Output):
    """Notes and errors of a chat.

    Args:
        write_above: calls its argument when that can write to the terminal.
    """

    def __init__(self, write_above: Callable[[Write], None]) -> None:
        super().__init__(spell_setting, _own_stderr())
        self._write_above = write_above

    def _say(self, text: "Text") -> None:
        self._write_above(partial(super()._say, text))


def _own_stderr() -> TextIO | None:
    """Stderr as it is now: loading a model silences the process's own for moments."""
    try:
        stderr = sys.stderr
        return os.fdopen(os.dup(stderr.fileno()), "w", encoding=stderr.encoding, errors="replace")
    except (OSError, ValueError, AttributeError):  # closed, missing, or a test's
        return None


def begin(options: ChatCommandSettings, request: Request) -> Beginning:
    """Finds the conversation that goes on, and checks what can be checked without torch.

    Raises:
        D3Error: there is no such conversation or no such model.
    """
    keep = options.keep
    id_ = transcript.latest() if keep.resume_last else keep.resume and transcript.find(keep.resume)
    # Locked before it is read, so that no other process adds to it while the model loads.
    saving = Saving(None if keep.no_save else id_)
    record: list[ChatMessage] = []
    note = ""
    if id_:
        record, note = read_saved(transcript.path_of(id_), will_replace=not keep.no_save)
    model = options.model or transcript.last_model(record) or default_model()
    loading = options.reply.loading
    if options.model is None and loading.revision is None:
        loading = replace(loading, revision=transcript.last_revision(record))
    find_local(model)  # a wrong name is reported before the slow part
    if request.drafting is not None and request.drafting.model is not None:
        find_local(request.drafting.model)
    messages = [message for message in record if message.role != "system"]
    # A conversation that continues keeps its own system prompt, unless one was typed.
    system = request.system or ""
    if record and "system" not in options.typed:
        system = record[0].content if record[0].role == "system" else ""
    has_draft = bool(messages) and messages[-1].role == "user"
    return Beginning(
        request=request,
        settings=_settings(options, request),
        model=model,
        loading=loading,
        system=system,
        messages=messages[:-1] if has_draft else messages,
        draft=as_typed(messages[-1].content) if has_draft else "",
        saving=saving,
        is_new=not (keep.no_save or id_),
        note=note,
    )


def _settings(options: ChatCommandSettings, request: Request) -> ChatSettings:
    """The settings that a chat begins with; its commands change them."""
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
        stats=not options.no_stats,
        plain=options.plain,
        on_overflow=options.on_overflow.value,
        repair=options.repair.value,
        lossless=None if request.drafting is None else request.drafting.source,
    )


def start(options: ChatCommandSettings, request: Request) -> int:
    """Runs a chat and returns its exit code.

    Raises:
        D3Error: there is no such conversation, or the model cannot be loaded.
    """
    with typing_ahead():
        beginning = begin(options, request)
        screen = Screen(reply_console())
        prompt = _prompt(options, screen)
        output = ChatOutput(prompt.write_above)
        drafting = request.drafting
        announce(output, beginning.model, beginning.loading, drafting, decays=request.decays)
        if beginning.note:
            output.note(beginning.note)
        show_last(output, screen, beginning.messages, beginning.settings, draft=beginning.draft)
        make = partial(_make_chat, beginning, output, screen, prompt)
        on_disk = find_on_disk(beginning.model, beginning.loading.revision) is not None
        if drafting is not None and drafting.model is not None:
            on_disk = on_disk and find_on_disk(drafting.model) is not None
        chat = make() if is_dumb() or not on_disk else None
    if chat is not None:
        chat.draft = beginning.draft
        return _go_on(chat, beginning, Keyboard(prompt, output))
    assert isinstance(prompt, ChatPrompt)
    with line_mode(False, after_stops=False):
        return _load_beside_prompt(beginning, output, screen, prompt, make)


def _load_beside_prompt(
    beginning: Beginning,
    output: Output,
    screen: Screen,
    prompt: ChatPrompt,
    make: Callable[[], Chat],
) -> int:
    """Loads the model while the user types the first message, and then runs the chat."""

    def make_and_read_ahead() -> Chat:
        chat = make()
        chat.read_ahead()
        return chat

    spinners = output.progress
    output.progress = passed_on = PassedOn(spinners.console)
    keyboard = Keyboard(prompt, output)
    loading = Loading(make_and_read_ahead, failed=prompt.end)
    loading.start()
    draft, text = beginning.draft, ""
    while not (text.strip() or loading.has_failed):
        typed = keyboard.read(draft)
        if isinstance(typed, int):
            return typed
        draft, text = "", typed
        command = COMMANDS.get(text.strip().lower())
        if command is BYE:
            return 0
        if command is HELP:
            show_help(screen)
            text = ""
    signals.exit_at_once()
    if numbers := signals.take():
        return 128 + numbers[0]
    if loading.is_running:
        with typing_ahead(), passed_on.shown("loading"):
            loading.wait()
    output.progress = spinners
    chat = loading.result()
    return _go_on(chat, beginning, keyboard, text)


def _go_on(chat: Chat, beginning: Beginning, keyboard: Keyboard, text: str = "") -> int:
    if beginning.is_new:
        beginning.saving.save_as(transcript.new_id())
    return ChatLoop(chat, keyboard).run(text)


def _prompt(options: ChatCommandSettings, screen: Screen) -> ChatPrompt | PlainPrompt:
    if is_dumb():
        return PlainPrompt(lambda text: screen.print(text, "dim"))
    return ChatPrompt(
        Output(spell_setting),
        history=None if options.keep.no_save else state_dir() / "chat-history",
        vi=options.keys is Keys.vi,
        commands={name: one.arguments for name, one in COMMANDS.items()},
    )


def _make_chat(
    beginning: Beginning, output: Output, screen: Screen, prompt: ChatPrompt | PlainPrompt
) -> Chat:
    """Loads the model and makes the chat.

    Raises:
        D3Error: the model cannot be loaded, or the options do not fit it.
    """
    request, settings = beginning.request, beginning.settings
    check_text = request.check_text(beginning.system)
    model, draft_model = load_models(
        output,
        beginning.model,
        beginning.loading,
        request.drafting,
        check_text,
        decays=request.decays,
        **request.needs,
    )

    from d3cli.decode.conversation import Conversation

    conversation = Conversation(model, beginning.messages, revision=beginning.loading.revision)
    conversation.system = beginning.system
    replies = Replies(output, screen, beginning.saving, prompt.show_above)
    chat = Chat(
        output,
        screen,
        replies,
        beginning.saving,
        models_from(output, beginning.loading, beginning.model),
        conversation,
        settings,
        beginning.model,
        Drafts(draft_model),
    )
    if not (settings.chat_template or model.tokenizer.chat_template):
        output.note("this model has no chat template: it continues the conversation as it is")
    note_turn_end(output, model, settings.chat_template, settings.stop)
    return chat
