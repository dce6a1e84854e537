"""One chat at the terminal: reads a line, then answers it or runs its command."""

import errno
import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from d3cli.base.errors import D3Error, UsageError
from d3cli.base.inert import inert
from d3cli.cli import signals
from d3cli.cli.chat.line_editor import Arguments, ChatPrompt
from d3cli.cli.chat.saving import Saving
from d3cli.cli.chat.settings import ChatSettings
from d3cli.cli.chat.writer import Replies
from d3cli.cli.depth import choose_schedule
from d3cli.cli.output import Output
from d3cli.cli.signals import Stopped
from d3cli.cli.terminal import line_mode
from d3cli.decode import transcript
from d3cli.decode.conversation import Conversation, ReplyOptions
from d3cli.decode.sampling import SamplingParams
from d3cli.decode.transcript import ChatMessage
from d3cli.files.names import find_local

if TYPE_CHECKING:
    from d3cli.decode.session import Reply
    from d3cli.model.model import LoadedModel

# A second Ctrl-C within these seconds leaves, also where the prompt has come back meanwhile.
AT_ONCE = 1.0
HUNG_UP, INTERRUPTED = 129, 130
# Of each message of a conversation that goes on, so much is shown.
MOST_LINES, MOST_CHARACTERS = 100, 8000
# What the system says where there is no terminal any more.
GONE = (errno.EIO, errno.EPIPE, errno.ENXIO, errno.EBADF, errno.ENOTTY)


@dataclass(frozen=True, slots=True)
class Command:
    """What a line that begins with a slash does.

    Attributes:
        usage: what follows its name, for people; empty for nothing.
        run: does it; gives an exit code where the chat ends.
        arguments: words to complete with; None where a file's name follows.
    """

    usage: str
    help: str
    run: Callable[["Chat", str], int | None]
    arguments: Arguments = tuple


@dataclass(frozen=True, slots=True)
class Models:
    """How models are loaded in this chat.

    Attributes:
        load: loads one by its name, for full depth alone or for any.
        calibrate_with: gives the command that calibrates it.
    """

    load: Callable[[str, bool], "LoadedModel"]
    calibrate_with: Callable[[str], str]


class NoModelLeftError(D3Error):
    """Neither the model that was asked for nor the one before can be loaded."""


class Chat:
    """A conversation at a terminal, and what its commands may use.

    Attributes:
        model_name: what the user calls the model.
        options: how replies are written by the present settings.
        draft: what the next prompt begins with.
    """

    def __init__(
        self,
        output: Output,
        console: Console,
        prompt: ChatPrompt,
        saving: Saving,
        models: Models,
        commands: Mapping[str, Command],
        conversation: Conversation,
        settings: ChatSettings,
        model_name: str,
    ) -> None:
        self.output, self.console, self.saving = output, console, saving
        self.conversation, self.settings = conversation, settings
        self.model_name, self.draft = model_name, ""
        self.replies = Replies(output, console, prompt, saving)
        self._prompt, self._models, self._commands = prompt, models, commands
        self._interrupted = -AT_ONCE
        self.options = self._choose_options()

    def run(self) -> int:
        """Until the user leaves; gives the exit code."""
        try:
            # The prompt has its own mode, and comes back to this one.
            with line_mode(False, after_stops=False):
                return self._loop()
        except OSError as error:  # all is saved, and there is nobody to be told
            if error.errno not in GONE:
                raise
            return HUNG_UP
        finally:
            self.replies.abandon_reading()
            self.saving.close()

    def _loop(self) -> int:
        while True:
            self.replies.read_ahead(self.conversation, self.options, self.settings)
            text = self._read()
            if isinstance(text, int):
                return text
            try:
                with line_mode(False):
                    code = self._take(text, time.perf_counter())
            except Stopped:
                code = None
            except NoModelLeftError:
                raise
            except (D3Error, MemoryError) as error:
                self.output.failure(error)
                code = None
            except OSError as error:
                if error.errno in GONE:
                    raise
                self.output.failure(error)
                code = None
            code = self._leave_after(*signals.arrived()) if code is None else code
            if code is not None:
                return code

    def _read(self) -> str | int:
        """What the user typed, or an exit code."""
        while True:
            draft, self.draft = self.draft, ""
            try:
                return self._prompt.read(draft)
            except EOFError:
                return 0
            except Stopped as stopped:
                return stopped.exit_code
            except KeyboardInterrupt:
                if time.monotonic() - self._interrupted < AT_ONCE:
                    return INTERRUPTED
                self.output.note("Ctrl-D or /bye leaves")

    def _take(self, text: str, began: float) -> int | None:
        """Answers a message or runs a command, which may give an exit code."""
        if not text.strip():
            return None
        with signals.deferred():
            self.replies.stop_reading()
        if signals.arrived():
            self.draft = text
            return None
        if text.startswith("/") and not text.startswith("//"):
            return self._run(text)
        self.conversation.say(text[1:] if text.startswith("//") else text)
        self.saving.save(self.conversation)  # if that fails, it is said with the reply
        if self.respond(self.options, began) is None:
            # Nothing came: what the user wrote is theirs again.
            self.draft = self.conversation.take_back() or ""
            self.save()
        return None

    def _run(self, text: str) -> int | None:
        """Runs a command.

        Raises:
            UsageError: there is no such command, or nothing may follow it.
            D3Error: it failed.
        """
        # By any space: "/bye" may be typed twice before the prompt is back, which makes two lines.
        name, argument = [*text.split(maxsplit=1), ""][:2]
        command = self._commands.get(name.lower())
        if command is None:
            near = get_close_matches(name.lower(), self._commands, n=2) if len(name) > 1 else []
            meant = f"did you mean {' or '.join(near)}? " if near else ""
            raise UsageError(
                f"there is no command {name[:40]}",
                f"{meant}/? lists them; // at the beginning sends a text that begins with a slash",
            )
        # Nor may what was meant as the next command become this one's file or number.
        if "\n" in text.strip() and command.usage and name.lower() != "/system":
            raise UsageError(
                f"{name} is one line, and more was typed with it", "type one at a time"
            )
        if argument.strip() and not command.usage:
            raise UsageError(f"{name} takes nothing after it", f"type {name} alone")
        return command.run(self, argument.strip())

    def _leave_after(self, *numbers: int) -> int | None:
        """The exit code that signals ask for, now that what they stopped is in order."""
        self._interrupted = time.monotonic() if numbers else self._interrupted
        hard = [number for number in numbers if number != signals.INTERRUPT]
        if hard:
            return 128 + hard[0]
        return INTERRUPTED if len(numbers) > 1 else None

    def respond(self, options: ReplyOptions, began: float | None = None) -> "Reply | None":
        """Writes a reply to the last message and keeps it; None where not one token came."""
        return self.replies.write(self.conversation, options, self.settings, began)

    def save(self) -> None:
        """Saves the conversation as it is; says why that fails, and goes on."""
        self.saving.save(self.conversation)
        if self.saving.problem is not None:
            self.output.failure(self.saving.problem)

    def _choose_options(self) -> ReplyOptions:
        """How replies are written by the present settings; says what a user should know.

        Raises:
            UsageError: the settings do not fit the model.
        """
        settings, model = self.settings, self.conversation.model
        if settings.start is not None and settings.start > model.context_length:
            raise UsageError(
                f"start is {settings.start:,}, beyond the model's context of "
                f"{model.context_length:,} tokens",
                "give fewer tokens",
            )
        choice = choose_schedule(
            model,
            settings.alpha,
            settings.start,
            (settings.core_first, settings.core_last),
            self._models.calibrate_with(self.model_name),
        )
        for note in choice.notes:
            self.output.note(note)
        return ReplyOptions(
            choice.schedule,
            choice.source,
            SamplingParams.resolve(settings.sampling, model.text.generation_settings),
            max_tokens=settings.max_tokens,
            stop=settings.stop,
            chat_template=settings.chat_template,
            think=settings.think,
        )

    def change(self, **changes: Any) -> None:
        """Changes settings, all or none.

        Raises:
            UsageError: they do not fit.
        """
        before = self.settings
        self.settings = replace(before, **changes)
        try:
            self.options = self._choose_options()
        except BaseException:
            self.settings = before
            raise

    def options_with(self, **changes: Any) -> ReplyOptions:
        """The options that these settings would lead to.

        Raises:
            UsageError: they do not fit.
        """
        before = self.settings
        self.settings = replace(before, **changes)
        try:
            return self._choose_options()
        finally:
            self.settings = before

    def change_model(self, name: str) -> None:
        """Goes on with another model; where it cannot be loaded, with the present one.

        Both may not fit into memory, so the present one is given up first, and loaded again.

        Raises:
            D3Error: it cannot be loaded.
        """
        find_local(name)  # a wrong name is told before anything is given up
        record, old_name = self.conversation.record(), self.model_name
        failure: Exception | None = None
        self.replies.forget()
        del self.conversation, self.options
        gc.collect()
        signals.exit_at_once()  # all is saved; loading cannot be left in the middle
        try:
            with line_mode(True):  # as it is to be, should a signal end the process
                model = self._models.load(name, self.settings.alpha == "off")
            # Refused now, while the present model can still come back.
            SamplingParams.resolve(self.settings.sampling, model.text.generation_settings)
            self.model_name = name
        except Exception as error:  # whatever it was, first there must be a model again
            failure = error
            with line_mode(True):
                model = self._load_again(old_name, error)
        finally:
            signals.stop_once()
        self.conversation = Conversation(model, record)
        try:
            self.options = self._choose_options()
        except UsageError:  # core layers that the new model does not have, say
            self.output.note("depth: the settings do not fit this model, so they are auto again")
            self.change(alpha="auto", start=None, core_first=None, core_last=None)
        if failure is not None:
            raise failure

    def _load_again(self, name: str, failure: Exception) -> "LoadedModel":
        """The model that was given up for another.

        Raises:
            NoModelLeftError: it is no longer there.
        """
        try:
            return self._models.load(name, self.settings.alpha == "off")
        except Exception as error:
            self.output.failure(failure)
            raise NoModelLeftError(
                f"{name} cannot be loaded again: {error}", "the conversation is saved: d3 chat -c"
            ) from error

    def begin_anew(self) -> None:
        """A new conversation; the one before stays on disk."""
        self.conversation.clear()
        self.replies.forget()
        if self.saving.id is not None:
            self.saving.save_as(transcript.new_id())

    def take_over(self, record: Sequence[ChatMessage]) -> None:
        """Goes on with a copy of a saved conversation, in place of the present one."""
        self.begin_anew()
        self.conversation.resume(record)
        self.show_last()
        self.save()

    def show_last(self) -> None:
        """The last turn of a conversation that goes on, so that its user knows where it is.

        A last message without a reply stands at the prompt.
        """
        self.draft = self.conversation.take_back_unanswered()
        messages = self.conversation.messages
        if messages:
            self.output.note(f"{len(messages)} messages so far; the last:")
        for message in messages[-2:]:
            text = shortened(message.content)
            if message.role == "user":
                self.print(f">>> {text}", "dim")
            else:
                view = self.replies.view(self.settings)
                view.push(text)
                view.finish()
        if self.draft:
            self.output.note("the message at the prompt has no reply yet")

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


def shortened(text: str) -> str:
    """The end of a text that is longer than anyone would read again."""
    lines = text.split("\n")
    shown = "\n".join(lines[-MOST_LINES:])[-MOST_CHARACTERS:]
    left_out = len(text) - len(shown)
    return f"… {left_out:,} characters …\n{shown}" if left_out else text
