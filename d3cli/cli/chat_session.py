"""One chat at the terminal: reads a line, answers it or runs its command, keeps what was said."""

import gc
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from d3cli import transcript
from d3cli.cli import figures, signals
from d3cli.cli.chat_prompt import Arguments, ChatPrompt
from d3cli.cli.chat_report import stats_line
from d3cli.cli.chat_settings import ChatSettings, Totals
from d3cli.cli.depth import choose_schedule
from d3cli.cli.output import Output, inert
from d3cli.cli.reply_view import ReplyView
from d3cli.cli.signals import Stopped
from d3cli.conversation import Conversation, ReplyOptions, inside
from d3cli.errors import ContextFullError, D3Error, TranscriptError, UsageError
from d3cli.read_ahead import ReadAhead
from d3cli.reasoning import TAGS
from d3cli.sampling import SamplingParams
from d3cli.transcript import ChatMessage

if TYPE_CHECKING:
    from d3cli.engine import Reply
    from d3cli.model import LoadedModel

# From so many tokens to read on, a bar shows how far it is.
PROGRESS_FROM = 1024
# A second Ctrl-C within these seconds leaves, also where the prompt has come back meanwhile.
AT_ONCE = 1.0
HUNG_UP, INTERRUPTED = 129, 130
HOW_TO_LEAVE = "Ctrl-D or /bye leaves"


@dataclass(frozen=True, slots=True)
class Command:
    """One command.

    Attributes:
        usage: what follows its name, for people; empty for nothing.
        run: does it; gives an exit code where the chat ends.
        arguments: words to complete with; None where a file's name follows.
    """

    usage: str
    help: str
    run: Callable[["Chat", str], int | None]
    arguments: Arguments = tuple


class Chat:
    """A conversation at a terminal.

    Attributes:
        model_name: what the user calls the model.
        load: loads a model by name.
        calibrate_with: gives the command that calibrates a model.
        commands: by their names, with the slash.
        draft: what the next prompt begins with.
        id: the saved conversation's; None where nothing is saved.
    """

    def __init__(
        self,
        output: Output,
        console: Console,
        conversation: Conversation,
        settings: ChatSettings,
        *,
        model_name: str,
        load: Callable[[str], "LoadedModel"],
        calibrate_with: Callable[[str], str],
        prompt: ChatPrompt,
        commands: Mapping[str, Command],
        id_: str | None,
        draft: str = "",
    ) -> None:
        self.output, self.console = output, console
        self.conversation, self.settings = conversation, settings
        self.model_name, self.load, self.calibrate_with = model_name, load, calibrate_with
        self.prompt, self.commands, self.draft = prompt, commands, draft
        self.id: str | None = None
        self.totals = Totals()
        self._kept = ExitStack()  # holds the saved conversation for this process
        self._ahead: ReadAhead | None = None
        self._untold: Reply | None = None  # its agreement was not shown yet
        self._interrupted = -AT_ONCE
        self._unsaved = ""  # why the conversation could not be saved, once said
        self._warned = False
        self.options = self.choose_options()
        if id_ is not None:
            self.keep_as(id_)

    def run(self) -> int:
        """Until the user leaves; gives the exit code."""
        try:
            with self._kept:
                return self._loop()
        except OSError:  # the terminal has gone, and with it whoever could be told; all is saved
            return HUNG_UP
        finally:
            if self._ahead is not None:
                self._ahead.abandon()

    def _loop(self) -> int:
        self.read_ahead()
        while True:
            try:
                text = self.prompt.read(self.draft)
            except EOFError:
                return 0
            except Stopped as stopped:
                return stopped.exit_code
            except KeyboardInterrupt:
                if time.monotonic() - self._interrupted < AT_ONCE:
                    return INTERRUPTED
                self.draft = ""
                self.output.note(HOW_TO_LEAVE)
                continue
            self.draft = ""
            try:
                code = self._take(text, time.perf_counter())
            except Stopped as stopped:
                code = self._leave_after(stopped.number)
            except (D3Error, MemoryError) as error:
                self.show_error(error)
                code = None
            if code is not None:
                return code
            self.read_ahead()

    def _take(self, text: str, began: float) -> int | None:
        """What the user typed: a command or a message. Gives an exit code to leave with."""
        if not text.strip():
            return None
        with signals.deferred():
            self.stop_reading()
        signals.check()
        name, argument = parse_command(text)
        if name is None:
            self._turn(text[1:] if text.startswith("//") else text, began)
            return self._leave_after(*signals.arrived())
        code = run_command(self, name, argument)
        return self._leave_after(*signals.arrived()) if code is None else code

    def _leave_after(self, *numbers: int) -> int | None:
        """The exit code that signals ask for, now that what they stopped is in order."""
        self._interrupted = time.monotonic() if numbers else self._interrupted
        hard = [number for number in numbers if number != signals.INTERRUPT]
        if hard:
            return 128 + hard[0]
        return INTERRUPTED if len(numbers) > 1 else None

    def _turn(self, text: str, began: float) -> None:
        self.conversation.say(text)
        self.save()
        if self.respond(self.options, began) is None:
            # Nothing came: what the user wrote is theirs again.
            self.draft = self.conversation.take_back() or ""
            self.save()

    def respond(self, options: ReplyOptions, began: float | None = None) -> "Reply | None":
        """Writes a reply to the last message and keeps it; None where not one token came."""
        reply, view = None, None
        try:
            self._make_room(options)
            reply = self.conversation.answer(options, began=began)
            view = ReplyView(self.console, plain=self._plain, inside=inside(reply))
            with quiet_keys():
                self._read_prompt(reply)
                for chunk in reply:
                    with signals.deferred():
                        view.push(chunk.text)
                    signals.check()
        except Stopped:
            pass
        except ContextFullError as error:
            self._say_full(error)
        except (D3Error, MemoryError) as error:
            self.show_error(error)
        with signals.deferred():
            return self._close(reply, view, options)

    def _close(
        self, reply: "Reply | None", view: ReplyView | None, options: ReplyOptions
    ) -> "Reply | None":
        """Keeps what there is of a reply, before anything else is shown."""
        if reply is None or view is None or not reply.tokens:
            return None
        rest = reply.release() if reply.finish_reason == "interrupted" else ""
        self.conversation.keep(reply, options)
        self._count(reply)
        self._untold = reply
        self.save()
        view.push(rest)
        view.finish()
        if self.settings.stats:
            self.output.note(stats_line(reply))
        if reply.finish_reason == "context":
            self.output.note(
                f"the context is full, {self.conversation.model.context_length:,} tokens: /clear "
                "begins anew, /set on-overflow drop-oldest leaves out the oldest turns"
            )
        self._warn_of_thinking(reply)
        return reply

    def _make_room(self, options: ReplyOptions) -> None:
        if self.settings.on_overflow != "drop-oldest":
            return
        dropped = self.conversation.make_room(options)
        for message in dropped:
            if message.role == "user":
                title = message.content.strip().partition("\n")[0]
                self.output.note(f'no longer shown to the model: "{title[:60]}" and its reply')

    def _say_full(self, error: ContextFullError) -> None:
        over = 1 + error.tokens - error.context
        room = f"{over:,} more than the model's context of {error.context:,} leaves room for"
        if self.settings.on_overflow == "drop-oldest" or len(self.conversation.shown()) == 1:
            self.output.error(
                f"the message is {error.tokens:,} tokens long, {room}",
                "shorten it; it stands at the prompt",
            )
            return
        self.output.error(
            f"the conversation is {error.tokens:,} tokens long, {room}",
            "/clear begins anew, /undo takes back a turn, /set on-overflow drop-oldest leaves out "
            "the oldest",
        )

    def _read_prompt(self, reply: "Reply") -> None:
        """Reads the prompt; its repair tells the agreement of the reply before."""
        before = self._untold
        new = len(reply.prompt_ids) - self.conversation.engine.cache.full_length
        if new >= PROGRESS_FROM:
            self.output.track(reply.prefill(), len(reply.prompt_ids), "reading the conversation")
        else:
            for _ in reply.prefill():
                signals.check()
        if before is not None and self.settings.stats:
            self._tell_agreement(before, self.output.note)

    def _count(self, reply: "Reply") -> None:
        stats, totals = reply.stats, self.totals
        totals.replies += 1
        totals.tokens += stats.completion_tokens
        totals.decode_s += stats.decode_s
        totals.steps += max(0, stats.completion_tokens - 1)
        totals.depth += sum(token.depth for token in reply.tokens[1:])

    def _tell_agreement(self, reply: "Reply", tell: Callable[[str], None]) -> None:
        """Shows, once, what the repair of a reply found."""
        if reply is not self._untold or reply.agreement is None:
            return
        self._untold = None
        self.totals.compared += reply.agreement.compared
        self.totals.agreed += reply.agreement.agreed
        text = figures.agreement(reply.agreement)
        if text and self.settings.stats:
            tell(f"agreement with full depth: {text} tokens")

    def _warn_of_thinking(self, reply: "Reply") -> None:
        """Says once that a reply was still thinking when it reached its least depth."""
        steps = thinking_steps(reply)
        floor = reply.schedule.floor
        if self._warned or not steps or reply.schedule.alpha == 1:
            return
        if floor < reply.model.num_layers and reply.schedule.depth(steps) == floor:
            self._warned = True
            self.output.note(
                f"the model thought for {steps:,} tokens, and ran at its least depth before it "
                f"was done: /set start {steps} keeps full depth for so long"
            )

    def read_ahead(self) -> None:
        """Reads what the next prompt begins with, until the user has typed it."""
        conversation, options, last = self.conversation, self.options, self._untold

        def done() -> None:
            if last is not None:
                self._tell_agreement(last, self.prompt.show_above)

        self._ahead = ReadAhead(conversation.engine, lambda: conversation.opening(options), done)

    def stop_reading(self) -> None:
        """Ends reading ahead; the engine is then free."""
        if self._ahead is not None:
            self._ahead.stop()
            self._ahead = None

    def choose_options(self) -> ReplyOptions:
        """How replies are written by the present settings; says what a user should know.

        Raises:
            UsageError: the settings do not fit the model.
        """
        settings, model = self.settings, self.conversation.model
        core = (settings.core_first, settings.core_last)
        sampling = SamplingParams.resolve(settings.sampling, model.generation_settings)
        command = self.calibrate_with(self.model_name)
        schedule, source = choose_schedule(
            self.output, model, settings.alpha, settings.start, core, command
        )
        return ReplyOptions(
            schedule,
            source,
            sampling,
            max_tokens=settings.max_tokens,
            stop=settings.stop,
            chat_template=settings.chat_template,
            think=settings.think,
        )

    def options_at(self, alpha: float | Literal["auto", "off"]) -> ReplyOptions:
        """The present options at another alpha.

        Raises:
            UsageError: it does not fit.
        """
        before = self.settings
        self.settings = replace(before, alpha=alpha)
        try:
            return self.choose_options()
        finally:
            self.settings = before

    def change_model(self, name: str) -> None:
        """Goes on with another model; where it cannot be loaded, with the present one.

        Both may not fit into memory, so the present one is given up first, and loaded again.

        Raises:
            D3Error: it cannot be loaded.
        """
        system, messages = self.conversation.system, self.conversation.messages
        old_name, self._untold = self.model_name, None
        self.options = None  # type: ignore[assignment] # it is set again below
        self.conversation = None  # type: ignore[assignment]
        gc.collect()
        failure: D3Error | None = None
        signals.exit_at_once()  # all is saved; loading cannot be left in the middle
        try:
            model = self.load(name)
            self.model_name = name
        except D3Error as error:
            failure = error
            model = self.load(old_name)
        finally:
            signals.stop_once()
        self.conversation = Conversation(model, system=system, messages=messages)
        try:
            self.options = self.choose_options()
        except D3Error:  # core layers that the new model does not have, say
            self.settings = replace(
                self.settings, alpha="auto", start=None, core_first=None, core_last=None
            )
            self.output.note("depth: the settings do not fit this model, so they are auto again")
            self.options = self.choose_options()
        if failure is not None:
            raise failure

    def begin_anew(self) -> None:
        """A new conversation; the one before stays on disk."""
        self.conversation.clear()
        self._untold = None
        if self.id is not None:
            self.keep_as(transcript.new_id())

    def take_over(self, messages: Sequence[ChatMessage]) -> None:
        """Goes on with a copy of a saved conversation, in place of the present one."""
        self.begin_anew()
        self.conversation.system, self.conversation.messages = split_system(messages)
        self.draft = give_back_unanswered(self.conversation)
        self.save()
        self.show_last()

    def show_last(self) -> None:
        """The last turn of a conversation that goes on, so that its user knows where it is."""
        count = len(self.conversation.messages)
        self.output.note(f"{count} message{'' if count == 1 else 's'} so far; the last:")
        for message in self.conversation.messages[-2:]:
            if message.role == "user":
                self.print(f">>> {message.content}", "dim")
            else:
                view = ReplyView(self.console, plain=self._plain)
                view.push(message.content)
                view.finish()
        if self.draft:
            self.output.note("the message at the prompt has no reply yet")

    def change(self, **changes: Any) -> None:
        """Changes settings, all or none.

        Raises:
            UsageError: they do not fit.
        """
        before = self.settings
        self.settings = replace(before, **changes)
        try:
            self.options = self.choose_options()
        except BaseException:
            self.settings = before
            raise

    def keep_as(self, id_: str) -> None:
        """Saves the conversation under this id from now on.

        Raises:
            UsageError: another d3 has it.
        """
        self._kept.close()
        self.id = id_
        self._kept.enter_context(transcript.in_use(id_))

    def save(self) -> None:
        """Saves the conversation; says once why that fails, and goes on."""
        if self.id is None:
            return
        path = transcript.path_of(self.id)
        try:
            if self.conversation.messages:
                transcript.write(path, self.conversation.record())
            else:
                path.unlink(missing_ok=True)
            self._unsaved = ""
        except (TranscriptError, OSError) as error:
            if str(error) != self._unsaved:
                self._unsaved = str(error)
                self.show_error(error)

    def show_error(self, error: BaseException) -> None:
        """One line, and one with what to do."""
        if isinstance(error, D3Error):
            self.output.error(error.message, error.hint)
        elif isinstance(error, MemoryError):
            self.output.error(f"out of memory: {error}", "/clear, or a smaller /set max-tokens")
        else:
            self.output.error(f"the system refused: {error}", "check the disk and the permissions")

    def print(self, text: str, style: str = "") -> None:
        """Text on stdout, inert."""
        self.console.print(Text(inert(text), style=style, overflow="fold"))

    def print_rows(self, rows: Sequence[tuple[str, str]]) -> None:
        """Names and values on stdout, inert."""
        grid = Table.grid(padding=(0, 2))
        grid.add_column(no_wrap=True)
        grid.add_column(overflow="fold")
        for name, value in rows:
            grid.add_row(Text(inert(name)), Text(inert(value)))
        self.console.print(grid)

    @property
    def _plain(self) -> bool:
        return self.settings.plain or self.console.is_dumb_terminal


def parse_command(text: str) -> tuple[str | None, str]:
    """A command's name, with its slash, and what follows it; None for a message."""
    if not text.startswith("/") or text.startswith("//"):
        return None, text
    name, _, argument = text.strip().partition(" ")
    return name, argument.strip()


def run_command(chat: "Chat", name: str, argument: str) -> int | None:
    """Runs a command; gives an exit code where the chat ends.

    Raises:
        UsageError: there is no such command, or its argument cannot be.
        D3Error: it failed.
    """
    command = chat.commands.get(name.lower())
    if command is None:
        short = name[:40].partition("\n")[0]
        near = get_close_matches(name.lower(), chat.commands, n=2)
        meant = f"did you mean {' or '.join(near)}? " if near else ""
        raise UsageError(
            f"there is no command {short}",
            f"{meant}/? lists them; // at the beginning sends a text that begins with a slash",
        )
    if argument and not command.usage:
        raise UsageError(f"{name} takes nothing after it", f"type {name} alone")
    return command.run(chat, argument)


def split_system(messages: Sequence[ChatMessage]) -> tuple[str, list[ChatMessage]]:
    """The system prompt, empty for none, and the rest."""
    if messages and messages[0].role == "system":
        return messages[0].content, list(messages[1:])
    return "", list(messages)


def give_back_unanswered(conversation: Conversation) -> str:
    """The user's last message where it has no reply; it is then no longer part of it."""
    if conversation.messages and conversation.messages[-1].role == "user":
        return conversation.take_back() or ""
    return ""


def thinking_steps(reply: "Reply") -> int:
    """How many tokens of a reply are reasoning, the closing tag included; 0 without any."""
    text = inside(reply)
    for step, piece in enumerate(reply.pieces):
        text += piece
        opened = next((end for start, end in TAGS if text.lstrip().startswith(start)), None)
        if opened and opened in text:
            return step + 1
    opens = any(text.lstrip().startswith(start) for start, _ in TAGS)
    return len(reply.pieces) if opens else 0


@contextmanager
def quiet_keys() -> Iterator[None]:
    """Within, what is typed does not show; it is there when the prompt is."""
    try:
        import termios
    except ImportError:  # Windows
        yield
        return
    import signal

    stdin = sys.stdin.fileno()
    try:
        before = termios.tcgetattr(stdin)
    except termios.error:
        yield
        return
    quiet = before[:]
    quiet[3] &= ~termios.ECHO

    def hide(*_: object) -> None:
        with suppress(termios.error):
            termios.tcsetattr(stdin, termios.TCSANOW, quiet)

    previous = signal.signal(signal.SIGCONT, hide)  # a shell changes it while this is stopped
    hide()
    try:
        yield
    finally:
        signal.signal(signal.SIGCONT, previous)
        with suppress(termios.error):  # the terminal may be what has gone
            termios.tcsetattr(stdin, termios.TCSANOW, before)
