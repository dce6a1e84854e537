"""The prompt where the user types: keys, several lines, history, completion. By prompt_toolkit.

Knows nothing of models or conversations.
"""

import os
import shutil
import stat
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.application import Application
from prompt_toolkit.enums import EditingMode
from prompt_toolkit.filters import completion_is_selected, is_searching
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.input.typeahead import clear_typeahead, get_typeahead, store_typeahead
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.key_binding.key_processor import KeyPress
from prompt_toolkit.keys import Keys
from prompt_toolkit.styles import Style

from d3cli.base.atomic_files import make_directory
from d3cli.base.inert import inert
from d3cli.cli import signals
from d3cli.cli.chat.completer import Arguments, CommandCompleter
from d3cli.cli.output import Output

BLOCK = '"""'
PLACEHOLDER = "a message, or /? for help"
STYLE = Style.from_dict({"quiet": "dim", "placeholder": "dim"})

SEND, NEW_LINE = KeyPress(Keys.Enter, "\r"), KeyPress(Keys.ControlJ, "\n")

LARGEST_HISTORY = 16 << 20  # bytes: a hundred thousand lines


class ChatPrompt:
    """Reads the user's messages and commands.

    Args:
        history: the file for the input history; None keeps it in memory.
        vi: use the keys of vi instead of those of emacs.
        commands: for each name, with its slash, what may follow it.
    """

    def __init__(
        self, output: Output, *, history: Path | None, vi: bool, commands: dict[str, Arguments]
    ) -> None:
        self._above = ""
        self._first = True
        self._ended = False
        self._lock = threading.Lock()  # holds the next three
        self._reading = False
        self._next_above = ""
        self._waiting: list[Callable[[], None]] = []
        self._session: PromptSession[str] = PromptSession(
            message=self._message,
            multiline=True,
            prompt_continuation="... ",
            key_bindings=_bindings(self.show_above),
            history=_open_history(output, history),
            completer=CommandCompleter(commands),
            complete_while_typing=False,
            enable_suspend=True,
            enable_open_in_editor=True,
            tempfile_suffix=".md",
            editing_mode=EditingMode.VI if vi else EditingMode.EMACS,
            style=STYLE,
            placeholder=self._placeholder,
        )
        self._session.app.before_render += self._take_waiting

    def read(self, default: str = "") -> str:
        """Returns what the user types next, without ``\"\"\"`` around it.

        Afterwards signals only arrive, until `signals.stop_once`.

        Args:
            default: the text that the prompt begins with.

        Raises:
            EOFError: Ctrl-D, or the terminal is gone.
            KeyboardInterrupt: Ctrl-C.
            Stopped: SIGTERM or SIGHUP.
        """
        signals.tell(self._leave)
        # What was typed is not visible, so it must not be sent with a draft.
        self._take_typed_ahead(send=not default)
        try:
            with self._lock:
                self._reading = True
            text = self._session.prompt(
                default=default, handle_sigint=False, pre_run=self._leave_if_told
            )
            return whole(text)
        except BaseException:
            signals.stop_once()
            raise
        finally:
            self._above, self._first = "", False
            with self._lock:
                self._reading = False
                self._write_all()

    def end(self) -> None:
        """Ends the present prompt, or the next one; may be called on any thread.

        `read` then returns an empty text. What was typed stays on the screen.
        """
        self._ended = True
        self._exit()

    def write_above(self, write: Callable[[], None]) -> None:
        """Calls what writes to the terminal: above the prompt, or at once if there is none.

        May be called on any thread.
        """
        with self._lock:
            if not self._reading:
                write()
                return
            self._waiting.append(write)
        self._draw()

    def show_above(self, text: str) -> None:
        """Shows a dim line above the present or the next prompt; may be called on any thread."""
        with self._lock:
            self._next_above = text
        self._draw()

    def _draw(self) -> None:
        # The prompt may end while prompt_toolkit, on another thread, looks for its event loop.
        with suppress(RuntimeError, AttributeError):
            self._session.app.invalidate()

    def forget_typed_ahead(self) -> None:
        """Forgets what was typed for later prompts, as a terminal does with Ctrl-C."""
        clear_typeahead(self._session.input)

    def _take_typed_ahead(self, *, send: bool) -> None:
        """Hands the prompt what was typed before it appeared.

        Until then the terminal turns Enter into Ctrl-J. Line ends of a paste are not keys.

        Args:
            send: each Enter ends a message, and the next ones wait for later prompts; else a new
                line begins, here and with each Enter.
        """
        keys = get_typeahead(self._session.input)
        while new := self._session.input.read_keys():  # a kilobyte at most
            keys += new
        before, after = (Keys.ControlJ, SEND) if send else (Keys.Enter, NEW_LINE)
        keys = [after if key.key is before else key for key in keys]
        if not send and keys and keys[0].data.isprintable():
            keys.insert(0, NEW_LINE)
        store_typeahead(self._session.input, keys)

    def _take_waiting(self, app: Application[str]) -> None:
        """Takes what came for above the prompt, which is about to be drawn.

        Only here: a prompt that grew while it is drawn would be cut.
        """
        with self._lock:
            if self._next_above:
                self._above, self._next_above = self._next_above, ""
            if self._waiting:
                app.renderer.erase()
                self._write_all()
                if not app.is_done:
                    app.renderer.request_absolute_cursor_position()

    def _write_all(self) -> None:
        for write in self._waiting:
            write()
        self._waiting.clear()

    def _message(self) -> StyleAndTextTuples:
        above = self._above
        parts: StyleAndTextTuples = [("class:quiet", inert(above) + "\n")] if above else []
        return [*parts, ("bold", ">>> ")]

    def _placeholder(self) -> StyleAndTextTuples:
        return [("class:placeholder", PLACEHOLDER)] if self._first else []

    def _leave_if_told(self) -> None:
        """Ends the prompt that has just begun, if it was told so before it could be."""
        if self._ended:
            self._exit()
        for number in signals.take():
            self._leave(number)

    def _leave(self, number: int) -> bool:
        """Ends the prompt because of a signal; returns False if it has already ended."""
        interrupt = number == signals.INTERRUPT
        return self._exit(KeyboardInterrupt() if interrupt else signals.Stopped(number))

    def _exit(self, exception: BaseException | None = None) -> bool:
        """Ends the prompt, from any thread or a signal handler; returns False if it has ended."""
        app = self._session.app
        loop = app.loop
        if loop is None or not app.is_running or app.is_done:
            return False

        def leave() -> None:
            if app.is_running and not app.is_done:
                if exception is None:
                    app.exit(result="")
                else:
                    app.exit(exception=exception)

        with suppress(RuntimeError):  # it ends meanwhile, on the main thread
            loop.call_soon_threadsafe(leave)
            return True
        return False


def block_is_open(text: str) -> bool:
    """Whether a text begins with ``\"\"\"`` and is not yet ended by another."""
    begun = text.strip()
    return begun.startswith(BLOCK) and not (begun.endswith(BLOCK) and len(begun) >= 2 * len(BLOCK))


def whole(text: str) -> str:
    """What was typed, without the quotes around a block and without broken characters."""
    text = text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    begun = text.strip()
    if begun.startswith(BLOCK):
        return begun.removeprefix(BLOCK).removesuffix(BLOCK).strip("\n")
    return text


def _bindings(tell: Callable[[str], None]) -> KeyBindings:
    keys = KeyBindings()

    @keys.add("enter", filter=~is_searching & ~completion_is_selected)
    def _(event: KeyPressEvent) -> None:
        if block_is_open(event.current_buffer.text):
            event.current_buffer.insert_text("\n")
        else:
            event.current_buffer.validate_and_handle()

    @keys.add("enter", filter=completion_is_selected)
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.complete_state = None  # takes the completion; the next Enter sends

    @keys.add("c-j", filter=~is_searching)
    @keys.add("escape", "enter", filter=~is_searching)
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    @keys.add("c-g", filter=~is_searching)
    def _(event: KeyPressEvent) -> None:
        if has_editor():
            event.current_buffer.open_in_editor()
        else:
            tell("there is no editor: set $EDITOR to one")

    @keys.add(Keys.Vt100MouseEvent, eager=True)
    def _(event: KeyPressEvent) -> None:
        """Ignores it: colours in pasted text look like the mouse, and its own binding fails."""

    return keys


def has_editor() -> bool:
    """Whether prompt_toolkit finds an editor; without one, it silently does nothing."""
    named = [os.environ.get(name, "") for name in ("VISUAL", "EDITOR")]
    usual = [f"/usr/bin/{name}" for name in ("editor", "nano", "pico", "vi", "emacs")]
    return any(shutil.which(command.split()[0]) for command in (*named, *usual) if command.strip())


class _PrivateHistory(FileHistory):
    """A history file that only its owner can read. Errors of the file are ignored."""

    def store_string(self, string: str) -> None:
        with suppress(OSError):
            super().store_string(string.encode(errors="replace").decode())

    def load_history_strings(self) -> Iterable[str]:
        with suppress(OSError):
            return list(super().load_history_strings())
        return []


def _open_history(output: Output, path: Path | None) -> History:
    if path is None:
        return InMemoryHistory()
    try:
        make_directory(path.parent)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        status = os.fstat(descriptor)
        os.close(descriptor)
        problem = "" if stat.S_ISREG(status.st_mode) else "it is not a regular file"
        if status.st_size > LARGEST_HISTORY:  # it is read as a whole
            problem = f"it is larger than {LARGEST_HISTORY >> 20} MiB"
    except OSError as error:
        problem = error.strerror or str(error)
    if problem:
        output.note(f"the input history is not saved: {path}: {problem}")
        return InMemoryHistory()
    return _PrivateHistory(str(path))
