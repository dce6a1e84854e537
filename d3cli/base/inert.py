"""Makes text inert: it cannot send commands to a terminal or reverse the order of a line."""

_BIDI = (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
_INERT: dict[int, str | None] = {
    **{code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\n\t"},
    ord("\r"): None,  # CRLF becomes LF; a lone CR would let text overwrite its line
    0x7F: "\u2421",
    **{code: f"\\x{code:02x}" for code in range(0x80, 0xA0)},
    **{code: f"\\u{code:04x}" for code in (*_BIDI, 0x2028, 0x2029)},  # the last two are line ends
    **dict.fromkeys(range(0xD800, 0xE000), "\ufffd"),
}


def inert(text: str) -> str:
    """Text with control, escape and bidirectional characters made visible.

    It works character by character, so a stream may be cut anywhere.
    """
    return text.translate(_INERT)


def quoted(text: str) -> str:
    """Text in quotes on one line, so that its first and last characters are visible."""
    escaped = text.replace("\\", "\\\\").replace("\r", "\\r")
    return '"' + inert(escaped.replace("\n", "\\n").replace("\t", "\\t")) + '"'
