"""Every error that a user can cause or meet, as one family.

The library raises these and never prints; only `d3cli.cli.app` turns one into a line, a hint and
an exit code. A sentence that speaks of a setting holds a `Setting`, not the spelling of one front
end: the command line writes ``--max-tokens``, Python ``max_tokens``. Knows nothing of models or
terminals.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple


class Setting(NamedTuple):
    """A setting in a sentence, by its name in the Python API, with a value to give it.

    Attributes:
        name: ``"max_tokens"``, say.
        value: what to set it to; empty where the setting itself is meant.
    """

    name: str
    value: str = ""


# A sentence, whole or in pieces; the pieces are joined as they are.
Words = str | Sequence[str | Setting]
Spell = Callable[[Setting], str]


def in_python(setting: Setting) -> str:
    """A setting as Python code names it: ``dtype`` or ``dtype=float32``."""
    return f"{setting.name}={setting.value}" if setting.value else setting.name


def spelled(words: Words, spell: Spell = in_python) -> str:
    """A sentence as text, its settings spelled by `spell`."""
    if isinstance(words, str):
        return words
    return "".join(spell(piece) if isinstance(piece, Setting) else piece for piece in words)


class D3Error(Exception):
    """A problem with one clear sentence for the user, and what to do about it.

    Args:
        message: what is wrong, one sentence, without a final full stop being required.
        hint: what to do next; empty where the message already says it.
        field: the setting at fault; taken from the message where that names one.

    Attributes:
        message, hint: as text, settings spelled as in Python.
        field: the name of the setting at fault, empty where there is none.
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

    def told(self, spell: Spell) -> tuple[str, str]:
        """Message and hint, with settings spelled by `spell`."""
        return spelled(self._message, spell), spelled(self._hint, spell)


class UsageError(D3Error):
    """What the user typed or fed in cannot be used: an option, a prompt, a file, a name."""

    exit_code = 2


class ScheduleError(UsageError):
    """A depth schedule that cannot exist, or does not fit the model."""


class SamplingError(UsageError):
    """A sampling setting outside its range."""


class PromptError(UsageError):
    """A prompt that is empty, unreadable or does not fit the model's context."""


class ContextFullError(PromptError):
    """A prompt that does not fit the model's context.

    Attributes:
        tokens: how many it has.
        context: how many the context holds, the reply included.
        at_least: it was too long to be counted to its end.
    """

    def __init__(self, tokens: int, context: int, *, at_least: bool = False) -> None:
        self.tokens = tokens
        self.context = context
        self.at_least = at_least
        super().__init__(
            f"the prompt is {self.length}, and the model's context holds {context:,} with the "
            "reply",
            "shorten the prompt, or use a model with a longer context",
        )

    @property
    def length(self) -> str:
        """How long it is, in words."""
        return f"{'at least ' * self.at_least}{self.tokens:,} tokens long"


class UnknownModelError(UsageError):
    """A name that is no alias, no directory and no model id that can be had."""


class ModelError(D3Error):
    """A model was found but cannot be used: broken files, an unsupported stack."""


class DownloadError(D3Error):
    """A model's files could not be fetched from the hub."""


class StoreError(D3Error):
    """A stored calibration that cannot be read or written."""


class TranscriptError(D3Error):
    """A saved conversation that cannot be read or written."""


class TraceError(UsageError):
    """A recorded run that cannot be read: damaged, no trace at all, or of a newer d3."""


class NotEnoughMemoryError(D3Error):
    """A model will not fit into the memory there is."""


class GenerationError(D3Error):
    """Generation went wrong in the middle, for example logits that are not finite."""


class CalibrationError(D3Error):
    """A calibration could not come to a result, in the time it had, say."""


class TargetNotMetError(D3Error):
    """No depth schedule is worth its cost within the quality target."""

    exit_code = 3


def is_panic(error: BaseException) -> bool:
    """Whether Rust code gave up, as tokenizers' does on some regular expressions; no Exception."""
    return type(error).__name__ == "PanicException"


def one_line(error: BaseException) -> str:
    """An exception's words on one line; its kind too, where they are too few to understand."""
    words = " ".join(str(error).split())[:400]
    return words if " " in words else f"{type(error).__name__} {words}".strip()
