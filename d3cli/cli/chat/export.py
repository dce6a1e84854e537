"""A conversation as a Markdown file that people can read."""

from collections.abc import Sequence
from pathlib import Path

from d3cli.base.atomic_files import replace_file
from d3cli.base.errors import TranscriptError, UsageError
from d3cli.base.inert import inert
from d3cli.cli.output_file import target_of
from d3cli.decode.transcript import ChatMessage, Summary
from d3cli.text.reasoning import split_reasoning

# A heading that a reply must not swallow, in an unclosed block of code or a comment.
_PROBE = "d3 probe"


def as_markdown(messages: Sequence[ChatMessage]) -> str:
    """The conversation: a section for each message, the user's text as quotations."""
    title = Summary("", 0, tuple(messages)).title
    parts = [f"# {inert(title)[:80]}"]
    for message in messages:
        if message.role == "system":
            parts += ["## System prompt", _quotation(message.content)]
        elif message.role == "user":
            parts += ["## You", _quotation(message.content)]
        else:
            parts += [f"## {inert(message.model or 'Model')}", *_reply(message.content)]
    return "\n\n".join(parts) + "\n"


def write_markdown(path: Path, text: str, *, replace: bool) -> None:
    """Writes the file with mode 0600.

    Args:
        replace: whether a file of this name may be replaced.

    Raises:
        UsageError: there is such a file, no such directory, or it cannot be a file's name.
        TranscriptError: it cannot be written.
    """
    target, is_there = target_of(path)
    if is_there and not target.is_file():
        what = "a directory" if target.is_dir() else "not a regular file"
        raise UsageError(f"{path} is {what}", "give the name of a file")
    if is_there and not replace:
        raise UsageError(f"{path} exists", "give another name, or replace it: /export --force FILE")
    try:
        replace_file(target, text)
    except OSError as error:
        raise TranscriptError(
            f"the conversation cannot be exported to {path}: {error.strerror}",
            "check the disk and the permissions, or export it elsewhere",
        ) from error


def _reply(text: str) -> list[str]:
    """A reply's reasoning, folded away, and its answer."""
    reasoning, answer = split_reasoning(text)
    parts = []
    if reasoning:
        parts = ["<details>\n<summary>Reasoning</summary>", _quotation(reasoning), "</details>"]
    answer = inert(answer).strip("\n")
    return [*parts, _quotation(answer) if _is_open(answer) else answer]


def _is_open(text: str) -> bool:
    """Whether a text ends inside a block of code or HTML, which would swallow what follows."""
    from markdown_it import MarkdownIt

    tokens = MarkdownIt().parse(f"{text}\n\n# {_PROBE}")
    return not any(
        token.type == "inline" and token.content == _PROBE and token.level == 1 for token in tokens
    )


def _quotation(text: str) -> str:
    """Lines as a quotation, whose end also closes every block that is open inside."""
    lines = inert(text).strip("\n").split("\n")
    return "\n".join(f"> {line}" if line else ">" for line in lines)
