"""Numbers in words: sizes and relative changes."""


def readable_size(nbytes: float) -> str:
    """Bytes to three digits: "1.23 GB", "131 MB"."""
    amount, unit = (nbytes / 1e9, "GB") if nbytes >= 1e9 else (nbytes / 1e6, "MB")
    return f"{amount:,.0f} {unit}" if amount >= 100 else f"{amount:.3g} {unit}"


def signed_percent(change: float) -> str:
    """A relative change with its sign: 0.008 is "+0.80%"."""
    return f"{round(100 * change, 2) + 0.0:+.2f}%"  # + 0.0, since -0.001 % rounds to -0.0
