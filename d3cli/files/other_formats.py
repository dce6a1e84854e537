"""Says what a file is that was named as a model, by its first bytes, and what to do about it."""

import re
from difflib import get_close_matches
from pathlib import Path

from d3cli.base.errors import UnknownModelError
from d3cli.base.structure import binary_format
from d3cli.files.first_bytes import beginning
from d3cli.files.json_files import LFS_HINT, is_pointer

LOOKED_AT = 512  # bytes
WEB_PAGE = re.compile(rb"\s*<(!doctype html|html|head)\b", re.IGNORECASE)
SAFETENSORS = re.compile(rb".{8}\{\s*[\"}]", re.DOTALL)
PICKLE = re.compile(rb"\x80[\x02-\x05]")
# The formats that llama.cpp had before GGUF, by their first four bytes.
OLD_FORMATS = {b"lmgg": "GGML", b"fmgg": "GGMF", b"tjgg": "GGJT", b"algg": "GGLA"}
PICKLED = "d3 reads safetensors and GGUF: pickled weights can run code"


def not_a_model(path: Path) -> UnknownModelError:
    """The error for an existing file that is no GGUF file."""
    if not path.is_file():
        return UnknownModelError(f"{path} is not a regular file", "check the path")
    found, hint = _format(path)
    if path.suffix.lower() == ".gguf":
        return UnknownModelError(
            f"{path} is not a GGUF file, although its name says so{found}", hint
        )
    if found:
        return UnknownModelError(f"{path} is not a model that d3 can read{found}", hint)
    return UnknownModelError(
        f"{path} is a file, not a model directory or a GGUF file",
        "give a GGUF file, or the directory that holds config.json and *.safetensors",
    )


def no_such_file(path: Path) -> UnknownModelError:
    """The error for the name of a GGUF file that does not exist."""
    if path.is_symlink():
        return UnknownModelError(
            f"{path} is a broken link", "restore the file that it points to, or download it again"
        )
    try:
        there = sorted(each.name for each in path.parent.iterdir() if each.suffix == ".gguf")
    except OSError:
        return UnknownModelError(f"there is no directory {path.parent}", "check the path")
    near = get_close_matches(path.name, there, n=2, cutoff=0.5) or there[:2]
    return UnknownModelError(
        f"there is no file {path}",
        f"did you mean {' or '.join(str(path.with_name(name)) for name in near)}?"
        if near
        else "check the path",
    )


def _format(path: Path) -> tuple[str, str]:
    """What a file is, as the end of a sentence, and a hint; two empty texts if it is unknown."""
    again = "download it again"
    try:
        head = beginning(path, LOOKED_AT)
    except OSError as error:
        return f": it cannot be read: {error.strerror or error}", "check its permissions"
    if not head:
        return ": it is empty", again
    if is_pointer(head):
        return ": it is a Git LFS pointer, not the file itself", LFS_HINT
    if WEB_PAGE.match(head):
        return ": it is a web page", f"{again}, from the link to the file and not to its page"
    if SAFETENSORS.match(head):
        has_config = (path.parent / "config.json").is_file()
        holds = "it holds config.json" if has_config else "it must hold config.json, too"
        return ": it is a safetensors file", f"give its directory, {path.parent}: {holds}"
    if head[:4] in OLD_FORMATS:
        return (
            f": it is in {OLD_FORMATS[head[:4]]}, a format that came before GGUF",
            "get the model in GGUF or as safetensors",
        )
    if PICKLE.match(head):
        return ": it is a pickle", PICKLED
    if head.startswith(b"PK\x03\x04"):
        return ": it is a ZIP archive, perhaps a PyTorch checkpoint", PICKLED
    if binary := binary_format(head):
        return f": it is {binary}", "unpack it if it holds a model"
    if path.suffix.lower() == ".gguf":
        return f": it begins with {head[:4]!r}", again
    return "", ""
