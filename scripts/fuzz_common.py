"""What the parsers of ``scripts/fuzz.py`` share: a folder of their own, bytes as files and text.

Parsers import what they try inside: the fuzzer sees into modules that are imported after it began.
"""

import atexit
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

Parse = Callable[[bytes], object]

FOLDER = Path(tempfile.mkdtemp(prefix="d3-fuzz-"))
atexit.register(shutil.rmtree, FOLDER, ignore_errors=True)


def file_of(data: bytes, name: str) -> Path:
    """A file that holds this."""
    path = FOLDER / name
    path.write_bytes(data)
    return path


def text_of(data: bytes) -> str:
    """Text as Python decodes a command line: bytes that are not UTF-8 become lone surrogates."""
    return data.decode("utf-8", "surrogateescape")
