"""Reads an alpha and a start as users write them. No torch."""

from typing import Literal

from d3cli.base.errors import Setting, UsageError
from d3cli.depth.schedule import DepthSchedule


def parse_alpha(text: str) -> float | Literal["auto", "off"]:
    """Reads an alpha: a number in (0, 1], "auto" or "off".

    Raises:
        UsageError: it is none of these.
    """
    if text == "auto":
        return "auto"
    if text == "off":
        return "off"
    try:
        return DepthSchedule(num_layers=1, alpha=float(text)).alpha
    except ValueError:
        raise UsageError(
            (Setting("alpha"), f' is "{text}"'), 'use a number in (0, 1], "auto" or "off"'
        ) from None


def parse_start(text: str | None, max_tokens: int | None) -> int | None:
    """Reads a start: a number of tokens, or a share of `max_tokens` such as "20%".

    Raises:
        UsageError: it is neither, or a share while `max_tokens` is None.
    """
    if text is None:
        return None
    share = text.endswith("%")
    try:
        number = float(text[:-1]) if share else int(text)
    except ValueError:
        raise UsageError(
            (Setting("start"), f' is "{text}"'), "use tokens (32) or a share (20%)"
        ) from None
    if not share:
        if number < 0:
            raise UsageError((Setting("start"), f" is {text}"), "it must be at least 0")
        return int(number)
    if max_tokens is None:
        raise UsageError(
            (Setting("start", text), " is a share of ", Setting("max_tokens")),
            ("set ", Setting("max_tokens"), " as well"),
        )
    if not 0 <= number <= 100:
        raise UsageError((Setting("start"), f" is {text}"), "a share must be between 0% and 100%")
    return round(number / 100 * max_tokens)
