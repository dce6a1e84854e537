"""Where a prompt comes from: arguments, files, pipes; and which argument is the model."""

import os
import stat
import sys
from pathlib import Path
from typing import BinaryIO

from d3cli.config import default_model, names_a_model
from d3cli.errors import PromptError, UsageError
from d3cli.files import find_local

LARGEST_TEXT = 64 * 2**20
NOT_UTF8 = "save it as UTF-8, or convert it with iconv"


def read_arguments(
    first: str | None, second: str | None, prompt: str | None, prompt_file: Path | None
) -> tuple[str, str]:
    """The model's name and the whole prompt.

    Raises:
        UsageError: two prompts.
        UnknownModelError, ModelError: no usable model has that name.
        PromptError: none, or one that cannot be read.
    """
    model, text = first, second
    if first is not None and second is None and prompt is None and prompt_file is None:
        model, text = (first, None) if names_a_model(first) else (None, first)
    sources = {"an argument": text, "--prompt": prompt, "--prompt-file": prompt_file}
    used = [name for name, value in sources.items() if value is not None]
    if len(used) > 1:
        raise UsageError(f"the prompt comes from {used[0]} and from {used[1]}", "give one of them")
    name = default_model() if model is None else model
    find_local(name)
    wanted = text if prompt is None else prompt
    from_stdin = text == "-" or prompt_file == Path("-")
    if from_stdin:
        wanted = None
    elif prompt_file is not None:
        wanted = read_text(prompt_file, "prompt file")
    piped = _read_stdin() if from_stdin or _stdin_is_fed() else ""
    whole = "\n\n".join(part for part in (piped, wanted) if part)
    check_utf8(whole, "the prompt")
    if not whole.strip():
        raise PromptError(
            "the prompt is empty",
            'for example: d3 generate "Tell me a story about a fox."'
            if model is None
            else f'"{model}" was taken for the model: give a prompt after it, or --prompt',
        )
    return name, whole


def estimate_tokens(*texts: str) -> int:
    """About how many tokens a prompt will have, rather too many, before there is a tokenizer.

    Tokenizers of today make a token of 3 to 5 bytes of prose; a chat template adds a few.
    """
    return sum(len(text.encode()) for text in texts) // 3 + 64


def check_utf8(text: str, what: str) -> None:
    """Raises PromptError where an argument held bytes that are not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise PromptError(f"{what} is not UTF-8 text", NOT_UTF8) from None


def _stdin_is_fed() -> bool:
    """Whether stdin is a pipe or a file; a terminal or /dev/null has nothing for us."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError, AttributeError):  # closed, or not a real stream
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)


def _read_stdin() -> str:
    if sys.stdin is None:  # the shell closed it
        return ""
    try:
        return _decode(_read_limited(sys.stdin.buffer, "the text on stdin"))
    except UnicodeDecodeError:
        raise PromptError("the text on stdin is not UTF-8", NOT_UTF8) from None


def read_text(path: Path, what: str) -> str:
    """A UTF-8 file that the user named; `what` is what to call it in an error.

    Raises:
        PromptError: it cannot be read.
    """
    try:
        with path.expanduser().open("rb") as file:
            return _decode(_read_limited(file, f"the {what} {path}"))
    except FileNotFoundError:
        raise PromptError(f"there is no {what} {path}", "check the path") from None
    except IsADirectoryError:
        raise PromptError(f"the {what} {path} is a directory", "give a text file") from None
    except UnicodeDecodeError:
        raise PromptError(f"the {what} {path} is not UTF-8 text", NOT_UTF8) from None
    except (OSError, RuntimeError, ValueError) as error:  # no such user's home, a NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise PromptError(f"the {what} {path} cannot be read: {reason}", "check the path") from None


def _read_limited(file: BinaryIO, what: str) -> bytes:
    """All bytes, unless it never ends: no model's context is that long."""
    data = file.read(LARGEST_TEXT + 1)
    if len(data) > LARGEST_TEXT:
        raise PromptError(f"{what} is larger than 64 MiB", "give a shorter text")
    return data


def _decode(data: bytes) -> str:
    """UTF-8 with or without a BOM; one newline at the end is the file's, not the prompt's."""
    return data.decode("utf-8-sig").removesuffix("\n").removesuffix("\r")
