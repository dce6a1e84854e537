"""Numbers in words: sizes and relative changes."""

import re

_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def parse_size(text: str) -> int | None:
    """Bytes from "10GiB", "1.5 GB", "800MB" or "0"; None if it is no size."""
    pattern = r"([0-9]{1,9}(?:\.[0-9]{1,9})?) ?([kmgt]?)(i?)b"
    found = re.fullmatch(pattern, text.strip(), re.IGNORECASE)
    if found is None or (found[3] and not found[2]):
        return 0 if text.strip() == "0" else None
    return int(float(found[1]) * (1024 if found[3] else 1000) ** _POWERS[found[2].lower()])


def readable_size(nbytes: float) -> str:
    """Bytes to three digits: "1.23 GB", "131 MB"."""
    amount, unit = (nbytes / 1e9, "GB") if nbytes >= 1e9 else (nbytes / 1e6, "MB")
    return f"{amount:,.0f} {unit}" if amount >= 100 else f"{amount:.3g} {unit}"


def signed_percent(change: float) -> str:
    """A relative change with its sign: 0.008 is "+0.80%"."""
    return f"{round(100 * change, 2) + 0.0:+.2f}%"  # + 0.0, since -0.001 % rounds to -0.0
