"""Where a prompt comes from: arguments, files, pipes; and which argument is the model."""

from collections.abc import Container
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from d3cli.base.bounded_files import FileKind
from d3cli.base.errors import PromptError, UnknownModelError, UsageError
from d3cli.base.settings import default_model, names_a_model
from d3cli.cli import stdin
from d3cli.cli.output import Output
from d3cli.cli.prompt_options import PromptOptions
from d3cli.files.names import find_local
from d3cli.text.data_rows import known_prompt, read_data

ROW_FORM = 'a row is {"prompt": "…"} or {"messages": [{"role": "user", "content": "…"}]}'
NOT_UTF8 = "save it as UTF-8, or convert it with iconv"
STDIN = "the text on stdin"


def read_prompt(
    output: Output, given: PromptOptions, typed: Container[str] = ()
) -> tuple[str, str]:
    """The model's name and the whole prompt.

    Args:
        typed: as in `CommandSettings`.

    Raises:
        UsageError: there are two prompts, or --no-stdin forbids the only one.
        UnknownModelError, ModelError: no usable model has that name.
        PromptError: there is no prompt, or it cannot be read.
    """
    model, text = given.model, given.text
    if model is not None and (text, given.prompt, given.prompt_file) == (None, None, None):
        model, text = (model, None) if names_a_model(model) else (None, model)
    sources = {"an argument": text, "--prompt": given.prompt, "--prompt-file": given.prompt_file}
    used = [name for name, value in sources.items() if value is not None]
    if len(used) > 1:
        raise UsageError(f"the prompt comes from {used[0]} and from {used[1]}", "use only one")
    from_stdin = text == "-" or given.prompt_file in stdin.NAMES
    if from_stdin:
        _check_stdin_is_allowed(given, typed)
    name = default_model() if model is None else model
    find_local(name)
    wanted = text if given.prompt is None else given.prompt
    if from_stdin:
        wanted = None
    elif given.prompt_file is not None:
        with stdin.waiting(output, str(given.prompt_file)):
            wanted = read_text(given.prompt_file, "prompt file")
    piped = ""
    if from_stdin or (stdin.is_fed() and not given.no_stdin):
        piped = _read_stdin(output, beside=wanted)
    whole = "\n\n".join(part for part in (piped, wanted) if part)
    check_utf8(whole, "the prompt")
    if not whole.strip():
        raise PromptError("the prompt is empty", _how_to_give_one(model, given, from_stdin))
    return name, whole


def _check_stdin_is_allowed(given: PromptOptions, typed: Container[str]) -> None:
    """A typed --no-stdin excludes stdin as the prompt; one from a setting gives way to it."""
    if given.no_stdin and "no_stdin" in typed:
        raise UsageError("--no-stdin excludes a prompt on stdin", "leave out one of the two")


def _how_to_give_one(model: str | None, given: PromptOptions, from_stdin: bool) -> str:
    """What to do about an empty prompt, by where it was looked for."""
    if from_stdin:
        return "stdin has no text: send some through a pipe, or give the prompt in quotes"
    if given.prompt_file is not None:
        return f"{given.prompt_file} has no text"
    if model is not None and given.prompt is None and given.text is None:
        return f'"{model}" was taken for the model: give a prompt after it, or use --prompt'
    return 'give it in quotes, with --prompt or through a pipe: "Tell me a story about a fox."'


@dataclass(frozen=True, slots=True)
class PromptRow:
    """One prompt: the last message's text, and the whole conversation."""

    text: str
    messages: tuple[dict[str, str], ...]

    @property
    def whole_text(self) -> str:
        """The text of all messages."""
        return "\n".join(message["content"] for message in self.messages)

    def with_system(self, system: str) -> "PromptRow":
        """The prompt with a system prompt before it, unless it has one."""
        if self.messages[0]["role"] == "system":
            return self
        return replace(self, messages=({"role": "system", "content": system}, *self.messages))


def read_prompts(
    output: Output, given: PromptOptions, path: Path, typed: Container[str] = ()
) -> tuple[str, list[PromptRow]]:
    """The model's name and the prompts of a file of rows; ``-`` reads it from stdin.

    A row has "prompt", or "messages" whose last one is the user's, or the keys that other tools use
    for these (`data_rows`). A response, or a reply at the end, is left out.

    Args:
        typed: as in `CommandSettings`.

    Raises:
        UsageError: there is another prompt as well.
        UnknownModelError, ModelError: no usable model has that name.
        PromptError: the file cannot be read, or a row is neither; with the line number.
    """
    model, text = read_input(output, given, path, typed)
    # On stdin, and under any other name, prose is no row either.
    rows = read_data(text, _Row, path, error=PromptError, form=ROW_FORM, prepare=known_prompt)
    if rows is None:
        raise PromptError(f"{path} holds no rows of JSON", ROW_FORM)
    prompts = [row.prompt_row() for row in rows]
    if not prompts:
        raise PromptError(f"{path} has no prompts", ROW_FORM)
    return model, prompts


def read_input(
    output: Output, given: PromptOptions, path: Path, typed: Container[str] = ()
) -> tuple[str, str]:
    """The model's name and the text of a file of rows; raises as `read_prompts` does."""
    others = {
        "an argument": given.text,
        "--prompt": given.prompt,
        "--prompt-file": given.prompt_file,
    }
    for name, value in others.items():
        if value is not None:
            raise UsageError(f"the prompt comes from --input and from {name}", "use only one")
    if path in stdin.NAMES:
        _check_stdin_is_allowed(given, typed)
    model = default_model() if given.model is None else given.model
    try:
        find_local(model)
    except UnknownModelError as error:
        if " " not in model:
            raise
        raise UsageError(
            "with --input, all prompts come from that file",
            f'leave out "{model[:80]}", or name a model in its place',
        ) from error
    if path in stdin.NAMES:
        return model, _read_stdin(output)
    with stdin.waiting(output, str(path)):
        return model, read_text(path, "prompts file")


class _Message(msgspec.Struct):
    role: Literal["system", "user", "assistant"]
    content: str


class _Row(msgspec.Struct):
    """A row by `known_row`. Other keys are for other programs."""

    prompt: str | None = None
    messages: Annotated[list[_Message], msgspec.Meta(min_length=1)] | None = None

    def __post_init__(self) -> None:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError('it needs exactly one of "prompt" and "messages"')
        last = self._messages()[-1]
        if last.role != "user" or not last.content.strip():
            raise ValueError("the last message must be the user's, with some text")

    def _messages(self) -> list[_Message]:
        if self.messages is not None:
            return self.messages
        assert self.prompt is not None
        return [_Message("user", self.prompt)]

    def prompt_row(self) -> PromptRow:
        messages = [{"role": each.role, "content": each.content} for each in self._messages()]
        return PromptRow(messages[-1]["content"], tuple(messages))


def estimate_tokens(*texts: str) -> int:
    """An upper estimate of a prompt's tokens, for use before there is a tokenizer.

    Today's tokenizers make a token of 3 to 5 bytes of prose; a chat template adds a few.
    """
    return sum(len(text.encode()) for text in texts) // 3 + 64


def check_utf8(text: str, what: str) -> None:
    """Raises PromptError if an argument held bytes that are not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise PromptError(f"{what} is not UTF-8 text", NOT_UTF8) from None


def read_text(path: Path, what: str) -> str:
    """A UTF-8 file that the user named; `what` names it in an error.

    Raises:
        PromptError: it cannot be read.
    """
    return _without_newline(_kind(what).read_text(path))


def _read_stdin(output: Output, beside: str | None = None) -> str:
    """The text on stdin.

    Args:
        beside: the prompt that it stands before, if there is one.

    Raises:
        PromptError: it cannot be read.
    """
    stream = stdin.stream()
    if stream is None:
        return ""
    kind = _kind("text")
    with stdin.waiting(output, hint="--no-stdin answers without it" if beside else ""):
        try:
            data = kind.read_stream(stream, STDIN)
        except OSError as error:
            raise PromptError(
                f"stdin cannot be read: {error.strerror or error}", "redirect it from a file"
            ) from error
    if beside and data:
        stand = "byte of stdin stands" if len(data) == 1 else "bytes of stdin stand"
        output.note(f"{len(data):,} {stand} before the prompt; --no-stdin leaves stdin unread")
    return _without_newline(kind.decode(data, STDIN))


def _kind(what: str) -> FileKind:
    """A text of at most 64 MiB: no model's context is longer."""
    return FileKind(
        what=what,
        largest=64 << 20,
        error=PromptError,
        large_hint="use a shorter text",
        expand_home=True,
        pipes=True,
    )


def _without_newline(text: str) -> str:
    """One newline at the end belongs to the file, not to the prompt."""
    return text.removesuffix("\n").removesuffix("\r")
