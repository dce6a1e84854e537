"""A chat's settings: what the options choose at first and ``/set`` changes later.

Knows nothing of models, prompts or screens.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from d3cli.base.errors import Setting, UsageError
from d3cli.cli.output import flag
from d3cli.cli.prompt_options import Think
from d3cli.depth.parse import parse_start
from d3cli.depth.units import UnitChoice
from d3cli.model.form_choice import lowers_depth
from d3cli.text.stop_strings import unescaped

if TYPE_CHECKING:
    from d3cli.decode.draft.drafter import SourceChoice


@dataclass(frozen=True, slots=True)
class ChatSettings:
    """How replies are written and shown.

    Attributes:
        sampling: fields of `SamplingParams` that were chosen; for a field that is None or missing,
            the checkpoint decides.
        on_overflow: what to do when the context is full.
        repair: see `d3cli.decode.shared_cache.RepairChoice`.
        lossless: what drafts; None for plain decoding.
    """

    alpha: float | Literal["auto", "off"] = "auto"
    start: int | None = None
    core_first: int | None = None
    core_last: int | None = None
    units: UnitChoice = "auto"
    sampling: dict[str, Any] = field(default_factory=dict)
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    think: Think | None = None
    chat_template: str | None = None
    stats: bool = True
    plain: bool = False
    on_overflow: Literal["stop", "drop-oldest"] = "stop"
    repair: Literal["auto", "always", "never"] = "auto"
    lossless: "SourceChoice | None" = None

    @property
    def decays(self) -> bool:
        """Whether a number lowers the depth of replies, by units that d3 chooses."""
        return self.lossless is None and lowers_depth(self.alpha, self.units)

    @property
    def drops(self) -> bool:
        """Whether replies or their drafts drop anything."""
        if self.lossless is None:
            return self.alpha != "off"
        return self.lossless in ("auto", "depth") and isinstance(self.alpha, float)


ON_OR_OFF = ("on", "off")
# The words that a setting accepts, where it accepts only these.
CHOICES = {
    "units": ("auto", "layer", "sublayer", "plane"),
    "think": tuple(Think),
    "stats": ON_OR_OFF,
    "plain": ON_OR_OFF,
    "on-overflow": ("stop", "drop-oldest"),
    "repair": ("auto", "always", "never"),
}
# What /lossless accepts, and what then drafts.
LOSSLESS: "dict[str, SourceChoice | None]" = {
    "on": "auto",
    "off": None,
    "auto": "auto",
    "lookup": "lookup",
    "depth": "depth",
    "model": "model",
}
# Each name that /set knows, and what it accepts.
SETTINGS = {
    "temperature": "a number, 0 for greedy",
    "top-p": "a number up to 1",
    "top-k": "a whole number, 0 or -1 for off",
    "min-p": "a number below 1",
    "repetition-penalty": "a number, 1 for off",
    "seed": "a whole number, -1 for a new one each time",
    "max-tokens": "a whole number, -1 for no limit",
    "stop": "a text; \\n is a new line",
    "start": "tokens, or a share of max-tokens: 20%",
    "core-first": "layers",
    "core-last": "layers",
} | {name: " or ".join(words) for name, words in CHOICES.items()}
SAMPLING: dict[str, Callable[[str], float]] = {
    "temperature": float,
    "top-p": float,
    "min-p": float,
    "repetition-penalty": float,
    "top-k": int,
    "seed": int,
}
COUNTS = {"max-tokens": 1, "core-first": 0, "core-last": 0}  # name -> minimum
MINUS_ONE = {"seed": None, "top-k": 0, "max-tokens": None}  # what -1 means, as in other tools
COMMANDS = ("alpha", "lossless", "system", "model")  # what a command of that name changes


def spell_setting(setting: Setting) -> str:
    """A setting as a chat names it: ``top-p``, ``/set top-p 0.9``, ``/alpha off``.

    What a chat cannot change keeps its option's name: ``--dtype``.
    """
    name = setting.name.replace("_", "-")
    if name not in SETTINGS and name not in COMMANDS:
        return flag(setting)
    if not setting.value:
        return name
    # Quotes keep the spaces at the ends of a stop string.
    value = f"'{setting.value}'" if name == "stop" else setting.value
    return f"/{name} {value}" if name in COMMANDS else f"/set {name} {value}"


def parse_change(name: str, text: str, settings: ChatSettings) -> dict[str, Any]:
    """The fields of `settings` that ``/set name text`` changes, with their new values.

    Raises:
        UsageError: the setting does not accept this text.
    """
    attribute = name.replace("-", "_")
    value: Any
    if name in SAMPLING:
        value = None if text == "default" else _number(text, SAMPLING[name])
        if value == -1:
            value = MINUS_ONE.get(name, value)
        return {"sampling": settings.sampling | {attribute: value}}
    if text == "default":
        value = getattr(ChatSettings(), attribute)
    elif name in COUNTS:
        value = _number(text, int)
        if value == -1 and name in MINUS_ONE:
            value = MINUS_ONE[name]
        elif value < COUNTS[name]:
            no_limit = ", or -1 for no limit" if name in MINUS_ONE else ""
            raise UsageError(f"{name} is {value}", f"it must be at least {COUNTS[name]}{no_limit}")
    elif name == "think":
        value = Think(_choice(name, text))
    elif name == "start":
        value = parse_start(text, settings.max_tokens)
    elif name == "stop":
        value = (unescaped(unquoted(text)),)
    else:
        word = _choice(name, text)
        value = word == "on" if CHOICES[name] == ON_OR_OFF else word
    return {attribute: value}


def parse_lossless(text: str) -> "SourceChoice | None":
    """What drafts, after ``/lossless text``; None for plain decoding.

    Raises:
        UsageError: it is none of the words.
    """
    if text.lower() not in LOSSLESS:
        words = ", ".join(list(LOSSLESS)[2:])
        raise UsageError(f'lossless cannot be "{text}"', f"give on, off, or what drafts: {words}")
    return LOSSLESS[text.lower()]


def unquoted(text: str) -> str:
    """A text without the quotes around it."""
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "\"'"
    return text[1:-1] if quoted else text


def _number(text: str, kind: Callable[[str], float]) -> float:
    try:
        return kind(text)
    except ValueError:
        what = "a whole number" if kind is int else "a number"
        raise UsageError(f'"{text}" is not {what}', f"give {what}, or default") from None


def _choice(name: str, text: str) -> str:
    word = text.lower()
    if word not in CHOICES[name]:
        raise UsageError(
            f'{name} cannot be "{text}"', f"give {', '.join(CHOICES[name])} or default"
        )
    return word
