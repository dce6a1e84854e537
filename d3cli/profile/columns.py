"""The columns of a table of tokens, for the terminal and for the HTML report."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from d3cli.base.inert import quoted
from d3cli.profile.trace import TokenTrace


@dataclass(frozen=True, slots=True)
class Column:
    """One column.

    Attributes:
        cell: a token's text in this column, inert; empty if there is no value.
        value: what the column is sorted by; None if there is no value.
        is_text: whether it holds text, which may be cut and is aligned to the left.
    """

    title: str
    cell: Callable[[TokenTrace], str]
    value: Callable[[TokenTrace], str | float | None]
    is_text: bool = False


def _number(title: str, name: str, form: str) -> Column:
    def value(token: TokenTrace) -> float | None:
        found: float | None = getattr(token, name)
        return found

    def cell(token: TokenTrace) -> str:
        number = value(token)
        return "" if number is None else format(number, f"z{form}")  # z: no negative zero

    return Column(title, cell, value)


def _text(title: str, cell: Callable[[TokenTrace], str]) -> Column:
    return Column(title, cell, cell, is_text=True)


def _full_choice(token: TokenTrace) -> str:
    if token.full_text is None:
        return ""
    return "same" if token.agrees else quoted(token.full_text)


# A narrow screen leaves out columns from the end.
COLUMNS = (
    _number("step", "step", ".0f"),
    _text("token", lambda token: quoted(token.text)),
    _text("drafted by", lambda token: token.drafted_by or ""),
    _text(
        "instead of",
        lambda token: quoted(token.rejected_text) if token.rejected_text is not None else "",
    ),
    _number("layers", "depth", ".4g"),
    _number("ms", "ms", ".1f"),
    _text("full depth", _full_choice),
    _number("needed", "needed_depth", ".4g"),
    _number("logprob", "logprob", ".3f"),
    _number("entropy", "entropy", ".3f"),
    _number("full logprob", "full_logprob", ".3f"),
    _number("KL", "kl", ".4f"),
    _number("lens", "saturation_layer", ".0f"),
    _number("± ms", "ms_sd", ".1f"),
    _number("active", "active_layers", ".0f"),
    _number("pass", "pass_number", ".0f"),
)


def columns_of(tokens: Sequence[TokenTrace]) -> list[Column]:
    """The columns in which at least one of these tokens has a value."""
    return [column for column in COLUMNS if any(column.cell(token) for token in tokens)]
