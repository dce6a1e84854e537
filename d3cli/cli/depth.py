"""What the texts of the depth options mean."""

from typing import Literal

from d3cli.errors import UsageError
from d3cli.schedule import DepthSchedule


def parse_alpha(text: str) -> float | Literal["auto", "off"]:
    """``--alpha``: a number in (0, 1], "auto" or "off".

    Raises:
        UsageError: anything else.
    """
    if text == "auto":
        return "auto"
    if text == "off":
        return "off"
    try:
        return DepthSchedule(num_layers=1, alpha=float(text)).alpha
    except ValueError:
        raise UsageError(
            f'--alpha is "{text}"', 'give a number in (0, 1], "auto" or "off"'
        ) from None


def parse_start(text: str | None, max_tokens: int | None) -> int | None:
    """``--start``: tokens, or a share of an explicit ``--max-tokens``.

    Raises:
        UsageError: neither, or a share of an unknown length.
    """
    if text is None:
        return None
    share = text.endswith("%")
    try:
        number = float(text[:-1]) if share else int(text)
    except ValueError:
        raise UsageError(f'--start is "{text}"', "give tokens (32) or a share (20%)") from None
    if not share:
        return int(number)
    if max_tokens is None:
        raise UsageError(f"--start {text} is a share of --max-tokens", "give --max-tokens too")
    if not 0 <= number <= 100:
        raise UsageError(f"--start is {text}", "a share lies between 0% and 100%")
    return round(number / 100 * max_tokens)
