"""Numbers in words: sizes, limits of memory, and relative changes."""

import re

from d3cli.base.errors import Setting, UsageError

_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def parse_size(text: str) -> int | None:
    """Bytes from "10GiB", "1.5 GB", "800MB" or "0"; None if it is no size."""
    pattern = r"([0-9]{1,9}(?:\.[0-9]{1,9})?) ?([kmgt]?)(i?)b"
    found = re.fullmatch(pattern, text.strip(), re.IGNORECASE)
    if found is None or (found[3] and not found[2]):
        return 0 if text.strip() == "0" else None
    return int(float(found[1]) * (1024 if found[3] else 1000) ** _POWERS[found[2].lower()])


def parse_limits(text: str) -> dict[str, int]:
    """`max_memory` as typed, such as "0=10GiB,cpu=32GiB", as bytes by place.

    A semicolon also separates places, where another program would split the text at commas.

    Raises:
        UsageError: it cannot be read.
    """
    limits: dict[str, int] = {}
    for part in re.split("[,;]", text):
        place, _, size = part.partition("=")
        nbytes = parse_size(size)
        if not place.strip() or nbytes is None or place.strip() in limits:
            raise UsageError(
                (Setting("max_memory"), f' has the part "{part.strip()}"'),
                "name each place once, with a size: 0=10GiB,cpu=32GiB",
            )
        limits[place.strip()] = nbytes
    return limits


def readable_size(nbytes: float) -> str:
    """Bytes to three digits: "1.23 GB", "131 MB"."""
    amount, unit = (nbytes / 1e9, "GB") if nbytes >= 1e9 else (nbytes / 1e6, "MB")
    return f"{amount:,.0f} {unit}" if amount >= 100 else f"{amount:.3g} {unit}"


def signed_percent(change: float) -> str:
    """A relative change with its sign: 0.008 is "+0.80%"."""
    return f"{round(100 * change, 2) + 0.0:+.2f}%"  # + 0.0, since -0.001 % rounds to -0.0
