"""Where a prompt comes from: arguments, files, pipes; and which argument is the model."""

import os
import stat
import sys
from pathlib import Path

from d3cli.config import default_model, names_a_model
from d3cli.errors import PromptError, UsageError
from d3cli.files import find_local


def read_arguments(
    first: str | None, second: str | None, prompt: str | None, prompt_file: Path | None
) -> tuple[str, bool, str]:
    """The model's name, whether the user named it, and the whole prompt.

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
    name = model or default_model()
    find_local(name)
    wanted = text if prompt is None else prompt
    from_stdin = text == "-" or prompt_file == Path("-")
    if from_stdin:
        wanted = None
    elif prompt_file is not None:
        wanted = read_text(prompt_file, "prompt file")
    piped = _read_stdin() if from_stdin or _stdin_is_fed() else ""
    whole = "\n\n".join(part for part in (piped, wanted) if part)
    try:
        whole.encode()
    except UnicodeEncodeError:
        raise PromptError("the prompt is not UTF-8 text") from None
    if not whole.strip():
        raise PromptError(
            "the prompt is empty", 'for example: d3 generate "Tell me a story about a fox."'
        )
    return name, model is not None, whole


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
        return _decode(sys.stdin.buffer.read())
    except UnicodeDecodeError:
        raise PromptError("the text on stdin is not UTF-8") from None


def read_text(path: Path, what: str) -> str:
    """A UTF-8 file that the user named; `what` is what to call it in an error.

    Raises:
        PromptError: it cannot be read.
    """
    try:
        return _decode(path.expanduser().read_bytes())
    except FileNotFoundError:
        raise PromptError(f"there is no {what} {path}", "check the path") from None
    except IsADirectoryError:
        raise PromptError(f"the {what} {path} is a directory", "give a text file") from None
    except UnicodeDecodeError:
        raise PromptError(f"the {what} {path} is not UTF-8 text") from None
    except OSError as error:
        raise PromptError(f"the {what} {path} cannot be read: {error.strerror}") from None


def _decode(data: bytes) -> str:
    """UTF-8 with or without a BOM; one newline at the end is the file's, not the prompt's."""
    return data.decode("utf-8-sig").removesuffix("\n").removesuffix("\r")
