"""Where a prompt comes from: arguments, files, pipes; and which argument is the model."""

import json
import os
import stat
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from d3cli.base.errors import PromptError, UsageError
from d3cli.base.settings import default_model, names_a_model
from d3cli.files.names import find_local

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
            'give it in quotes, by --prompt or through a pipe: "Tell me a story about a fox."'
            if model is None
            else f'"{model}" was taken for the model: give a prompt after it, or --prompt',
        )
    return name, whole


@dataclass(frozen=True, slots=True)
class PromptRow:
    """One prompt: what the user asked last, and the whole conversation."""

    text: str
    messages: tuple[dict[str, str], ...]

    @property
    def whole_text(self) -> str:
        """All that is read for it."""
        return "\n".join(message["content"] for message in self.messages)

    def with_system(self, system: str) -> "PromptRow":
        """With a system prompt before it, unless it has its own."""
        if self.messages[0]["role"] == "system":
            return self
        return replace(self, messages=({"role": "system", "content": system}, *self.messages))


def read_prompts(
    first: str | None,
    second: str | None,
    prompt: str | None,
    prompt_file: Path | None,
    path: Path,
) -> tuple[str, list[PromptRow]]:
    """The model's name and the prompts of a ``.jsonl`` file; ``-`` reads it from stdin.

    A row has "prompt", or "messages" of which the last one is the user's.

    Raises:
        UsageError: there is another prompt as well.
        UnknownModelError, ModelError: no usable model has that name.
        PromptError: the file cannot be read, or a row is neither; with the row's number.
    """
    others = {"an argument": second, "--prompt": prompt, "--prompt-file": prompt_file}
    for name, value in others.items():
        if value is not None:
            raise UsageError(f"the prompt comes from --input and from {name}", "give one of them")
    model = default_model() if first is None else first
    find_local(model)
    text = _read_stdin() if path == Path("-") else read_text(path, "prompts file")
    rows = [
        _read_row(f"{path}, line {number}", line)
        for number, line in enumerate(text.split("\n"), start=1)
        if line.strip()
    ]
    if not rows:
        raise PromptError(f"{path} has no prompts", ROW_FORM)
    return model, rows


ROW_FORM = 'a row is {"prompt": "…"} or {"messages": [{"role": "user", "content": "…"}]}'


def _read_row(where: str, line: str) -> PromptRow:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise PromptError(f"{where} is not JSON: {error}", ROW_FORM) from error
    if not isinstance(row, dict) or ("prompt" in row) == ("messages" in row):
        raise PromptError(f'{where} has not one of "prompt" and "messages"', ROW_FORM)
    messages = row.get("messages", [{"role": "user", "content": row.get("prompt")}])
    if not isinstance(messages, list) or not messages:
        raise PromptError(f'{where} has no "messages"', ROW_FORM)
    for message in messages:
        known = isinstance(message, dict) and message.get("role") in ("system", "user", "assistant")
        if not known or not isinstance(message.get("content"), str):
            raise PromptError(f"{where} has a message without role or content", ROW_FORM)
        check_utf8(message["content"], f"a text of {where}")
    text = messages[-1]["content"]
    if messages[-1]["role"] != "user" or not text.strip():
        raise PromptError(f"{where} does not end with a user's text", ROW_FORM)
    return PromptRow(
        text, tuple({"role": each["role"], "content": each["content"]} for each in messages)
    )


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
