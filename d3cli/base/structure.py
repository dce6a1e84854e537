"""What a text is by its content: prose, or data in a format such as JSON or CSV.

Knows nothing of files' names. Prose is the default: a format is named only if the text shows it.
"""

import csv
import re
from collections.abc import Iterator
from itertools import islice

UTF_16 = "UTF-16 text"
# What a file begins with, and what to call it.
_MAGIC = {
    b"\x1f\x8b": "compressed by gzip",
    b"BZh": "compressed by bzip2",
    b"\xfd7zXZ": "compressed by xz",
    b"\x28\xb5\x2f\xfd": "compressed by zstd",
    b"PK\x03\x04": "a ZIP archive or an office document",
    b"PAR1": "a Parquet file",
    b"ARROW1": "an Arrow file",
    b"\xff\xff\xff\xff": "an Arrow stream",
    b"SQLite format 3": "an SQLite database",
    b"%PDF-": "a PDF",
    b"\x93NUMPY": "a NumPy array",
    b"\xff\xfe": UTF_16,
    b"\xfe\xff": UTF_16,
}
_LINES = 200  # of a text that are looked at
_FEWEST_ROWS = 3  # of a table whose columns have unknown names
_COLUMNS = {
    *("prompt", "completion", "response", "text", "messages", "instruction", "input", "output"),
    *("question", "answer", "query", "context", "conversations", "chosen", "rejected", "system"),
    *("role", "content", "label"),
}
_PIECE = 1 << 20  # characters
_JSON_START = re.compile(r"\s*(\[\s*)?\{\s*[\"'}]")
_JSON_LIST = re.compile(r"\s*\[\s*([\"\[\]]|-?\d)")
# A line of JSON: an object, or one field of an object that is spread over lines.
_JSON_LINE = re.compile(r"""\[?\s*\{\s*["'].*[}\]],?|["'][\w .-]+["']\s*:\s.*|[\[\]{}]+,?""")
_COLUMN = re.compile(r"[A-Za-z_][\w.-]{0,40}")
_YAML_ROW = re.compile(r"-\s+[\"']?(\w+)[\"']?\s*:(\s|$)")
_YAML_FIELD = re.compile(r"([a-z_]+):(\s|$)")
_TOML_ROW = re.compile(r"\[\[[\w.-]+\]\]")
_MARKUP = re.compile(r"<(\?xml\b|!doctype\b|html\b)", re.IGNORECASE)
_ELEMENT = re.compile(r"<([A-Za-z][\w:.-]*)(\s[^<>]*)?>")


def filled_lines(text: str) -> Iterator[tuple[int, str]]:
    """The lines of a text that are not blank, with their numbers, from 1.

    Some at a time: a list of 64 million empty lines takes 500 MB. Many blank ones are counted at
    once, since a loop over them takes seconds.
    """
    start, number = 0, 1
    while start < len(text):
        end = text.find("\n", start + _PIECE)
        end = len(text) if end < 0 else end
        piece = text[start:end]
        if piece.isspace():
            number += piece.count("\n") + 1
        else:
            for line in piece.split("\n"):
                if line.strip():
                    yield number, line
                number += 1
        start = end + 1


def binary_format(data: bytes) -> str:
    """What bytes that are not text are, such as "compressed by gzip"; empty if unknown."""
    return next((name for start, name in _MAGIC.items() if data.startswith(start)), "")


def may_be_json(text: str) -> bool:
    """Whether a text begins as a JSON array or object does; prose may begin as an array, too."""
    return bool(_JSON_START.match(text) or _JSON_LIST.match(text))


def text_format(text: str) -> str:
    """Names the format of data: JSON, CSV, YAML, TOML or markup; empty for prose."""
    if _JSON_START.match(text):
        return "JSON"
    lines = [line for _, line in islice(filled_lines(text), _LINES)]
    if not lines:
        return ""
    if 2 * sum(bool(_JSON_LINE.fullmatch(line.strip())) for line in lines) > len(lines):
        return "JSON"
    first = lines[0].strip()
    if _MARKUP.match(first) or _is_one_element(text, lines):
        return "markup"
    if _TOML_ROW.fullmatch(first):
        return "TOML"
    field = _YAML_FIELD.match(next((line for line in lines if line.strip() != "---"), ""))
    if field and field[1] in _COLUMNS and any(line.strip() == "---" for line in lines[1:]):
        return "YAML"
    row = next((found for found in map(_YAML_ROW.match, lines[:3]) if found), None)
    if row and row[1].lower() in _COLUMNS:
        return "YAML"
    return "CSV" if any(_is_table(lines, delimiter) for delimiter in ",\t;|") else ""


def _is_one_element(text: str, lines: list[str]) -> bool:
    """Whether a text is one element of XML, and most of its lines begin with a tag."""
    element = _ELEMENT.match(text.lstrip())
    if element is None or not text.rstrip().endswith(f"</{element[1]}>"):
        return False
    return 2 * sum(line.lstrip().startswith("<") for line in lines) > len(lines)


def _is_table(lines: list[str], delimiter: str) -> bool:
    """Whether lines begin with the names of columns, and rows with as many values follow."""
    try:
        header, *rows = csv.reader(lines, delimiter=delimiter)
    except csv.Error:  # such as a very long field
        return False
    names = [name.strip("\ufeff") for name in header]
    if len(names) < 2 or not all(map(_COLUMN.fullmatch, names)):
        return False
    if _COLUMNS & {name.lower() for name in names}:
        return bool(rows)
    whole = rows[:-1] if len(lines) == _LINES else rows  # the last one may go on
    return len(whole) >= _FEWEST_ROWS and all(len(row) == len(names) for row in whole)
