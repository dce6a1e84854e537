"""The errors that a user can cause or meet, as one family.

The library raises them and never prints. Only `d3cli.cli.app` turns an error into a line, a hint
and an exit code. A sentence about a setting holds a `Setting` instead of the spelling of one front
end: the command line writes ``--max-tokens``, Python ``max_tokens``. Knows nothing of models or
terminals.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple


class Setting(NamedTuple):
    """A setting in a sentence, by its name in the Python API.

    Attributes:
        name: such as ``"max_tokens"``.
        value: what to set it to; empty if the sentence is about the setting itself.
    """

    name: str
    value: str = ""


# A sentence, as text or in pieces that are joined without spaces.
Words = str | Sequence[str | Setting]
Spell = Callable[[Setting], str]


def in_python(setting: Setting) -> str:
    """A setting as Python code writes it: ``dtype``, ``dtype="float32"`` or ``seed=1``."""
    name, value = setting
    if not value:
        return name
    return f"{name}={value}" if _is_literal(value) else f'{name}="{value}"'


def _is_literal(value: str) -> bool:
    """Whether a value stands in Python code without quotes."""
    if value in ("True", "False", "None"):
        return True
    try:
        return math.isfinite(float(value))
    except ValueError:
        return False


def spelled(words: Words, spell: Spell = in_python) -> str:
    """A sentence as text; `spell` writes its settings."""
    if isinstance(words, str):
        return words
    return "".join(spell(piece) if isinstance(piece, Setting) else piece for piece in words)


class D3Error(Exception):
    """A problem with one clear sentence for the user, and what to do about it.

    Args:
        message: what is wrong, in one sentence without a full stop.
        hint: what to do next; empty if the message says it.
        field: the setting at fault; by default the first one that the message names.

    Attributes:
        message, hint: as text, with settings as Python spells them.
        field: the name of the setting at fault; empty if there is none.
    """

    exit_code = 1

    def __init__(self, message: Words, hint: Words = "", *, field: str = "") -> None:
        self._message, self._hint = message, hint
        named = (piece.name for piece in message if isinstance(piece, Setting))
        self.field = field or next(named, "")
        super().__init__(spelled(message))

    @property
    def message(self) -> str:
        return spelled(self._message)

    @property
    def hint(self) -> str:
        return spelled(self._hint)

    @property
    def settings(self) -> set[str]:
        """The names of all settings that the message or the hint names, and `field`."""
        pieces = (*self._message, *self._hint)
        named = {piece.name for piece in pieces if isinstance(piece, Setting)}
        return named | ({self.field} if self.field else set())

    def told(self, spell: Spell) -> tuple[str, str]:
        """Message and hint as text; `spell` writes their settings."""
        return spelled(self._message, spell), spelled(self._hint, spell)


class UsageError(D3Error):
    """The user's input cannot be used: an option, a prompt, a file or a name."""

    exit_code = 2


class ScheduleError(UsageError):
    """A depth schedule that is impossible or does not fit the model."""


class SamplingError(UsageError):
    """A sampling setting outside its range."""


class PromptError(UsageError):
    """A prompt that is empty, unreadable or does not fit the model's context."""


class ContextFullError(PromptError):
    """A prompt that does not fit the model's context, or what memory leaves of it.

    Attributes:
        tokens: the prompt's length.
        context: the context's length, which the reply shares.
        at_least: whether `tokens` is only a lower bound: the prompt was too long to count.

    Args:
        holder: what holds no more.
    """

    def __init__(
        self,
        tokens: int,
        context: int,
        *,
        at_least: bool = False,
        holder: str = "the model's context",
        hint: Words = "shorten the prompt, or use a model with a longer context",
    ) -> None:
        self.tokens = tokens
        self.context = context
        self.at_least = at_least
        super().__init__(
            f"the prompt is {self.length}, but {holder} holds {context:,}, including the reply",
            hint,
        )

    @property
    def length(self) -> str:
        """The prompt's length in words."""
        return f"{'at least ' * self.at_least}{self.tokens:,} tokens long"


class UnknownModelError(UsageError):
    """A name that is not an alias, a directory or an available model on the hub."""


class ModelError(D3Error):
    """A model was found but cannot be used: its files are broken, or its type is unsupported."""


class SeveralModelsError(ModelError):
    """A directory holds several models, so that its path does not tell which one to use."""

    exit_code = UsageError.exit_code


class DownloadError(D3Error):
    """A model's files could not be downloaded from the hub."""


class StoreError(D3Error):
    """A stored calibration that cannot be read or written."""


class TranscriptError(D3Error):
    """A saved conversation that cannot be read or written."""


class TraceError(UsageError):
    """A recorded run that cannot be read: damaged, not a trace, or written by a newer d3."""


class NotEnoughMemoryError(D3Error):
    """A model does not fit into the available memory."""


class GenerationError(D3Error):
    """Generation failed after it began, for example because logits are not finite."""


class CalibrationError(UsageError):
    """A calibration was given too little time to find anything."""


class TargetNotMetError(D3Error):
    """No depth schedule is worth its cost within the quality target."""

    exit_code = 3


def is_panic(error: BaseException) -> bool:
    """Whether Rust code panicked, as tokenizers does on some patterns. It is not an Exception."""
    return type(error).__name__ == "PanicException"


def one_line(error: BaseException) -> str:
    """An exception's message on one line; a message of a single word gets its class in front."""
    words = " ".join(str(error).split())[:400]
    return words if " " in words else f"{type(error).__name__} {words}".strip()
