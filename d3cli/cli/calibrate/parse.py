"""Targets and times as typed on a command line."""

import math
import re

from d3cli.base.errors import UsageError

LONGEST = 100 * 24 * 3600  # seconds


def parse_target(text: str) -> float:
    """``--target-drop`` as a fraction: "1%", or a fraction such as "0.01".

    Raises:
        UsageError: it is neither, or is outside (0, 100%].
    """
    percent = text.strip().endswith("%")
    try:
        number = float(text.strip().removesuffix("%"))
    except ValueError:
        raise UsageError(f'--target-drop is "{text}"', "give a percentage: 1%") from None
    if math.isfinite(number) and not percent and number >= 1:
        raise UsageError(
            f'--target-drop is "{text}", which would be {100 * number:g}%',
            f"write {number:g}% for {number:g} percent",
        )
    target = number / 100 if percent else number
    if not 0 < target <= 1:  # NaN, too
        raise UsageError(f'--target-drop is "{text}"', "it must be above 0% and at most 100%")
    return target


def parse_duration(text: str) -> float:
    """``--max-time`` in seconds: "90s", "10m", "1h30m".

    Raises:
        UsageError: anything else, and no time at all or more than 100 days.
    """
    units = {"h": 3600, "m": 60, "s": 1}
    parts = re.findall(r"(\d+(?:\.\d+)?)([hms])", text.strip())
    if not parts or "".join(number + unit for number, unit in parts) != text.strip():
        raise UsageError(f'--max-time is "{text}"', "write 90s, 10m or 1h")
    seconds = sum(float(number) * units[unit] for number, unit in parts)
    if not 0 < seconds <= LONGEST:
        raise UsageError(f'--max-time is "{text}"', "it must be above 0 and at most 100 days")
    return seconds
