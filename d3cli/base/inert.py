"""Anyone's text made inert: nothing in it commands a terminal or turns a line around."""

_BIDI = (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
_INERT: dict[int, str | None] = {
    **{code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\n\t"},
    ord("\r"): None,  # CRLF becomes a line end; a lone one would let text overwrite its line
    0x7F: "\u2421",
    **{code: f"\\x{code:02x}" for code in range(0x80, 0xA0)},
    **{code: f"\\u{code:04x}" for code in (*_BIDI, 0x2028, 0x2029)},  # the last two end lines
    **dict.fromkeys(range(0xD800, 0xE000), "\ufffd"),
}


def inert(text: str) -> str:
    """Text that a terminal only shows: control, escape and bidi characters made visible.

    Character by character, so that it does not matter where chunks of a stream are cut.
    """
    return text.translate(_INERT)


def quoted(text: str) -> str:
    """A piece of text in quotes, on one line: what it begins and ends with can be seen."""
    escaped = text.replace("\\", "\\\\").replace("\r", "\\r")
    return '"' + inert(escaped.replace("\n", "\\n").replace("\t", "\\t")) + '"'
