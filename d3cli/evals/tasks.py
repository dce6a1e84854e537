"""A task of a user's own: prompts, and what makes an answer right.

Knows nothing of models.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from d3cli.base.bounded_files import FileKind
from d3cli.base.errors import UsageError
from d3cli.base.json_rows import parse_rows

FORM = (
    'a row is {"prompt": "…", "answers": ["…"]}, or {"prompt": "…", "pattern": "…"} with a '
    "regular expression"
)
_TASK = FileKind(
    what="task file",
    largest=64 << 20,
    large_hint="a few hundred rows are enough",
    expand_home=True,
)


class _Row(msgspec.Struct, forbid_unknown_fields=True):
    prompt: str
    answers: list[str] | None = None
    pattern: str | None = None

    def __post_init__(self) -> None:
        if not self.prompt.strip():
            raise ValueError("the prompt is blank")
        if (self.answers is None) == (self.pattern is None):
            raise ValueError('a row needs exactly one of "answers" and "pattern"')
        if self.answers is not None and not (self.answers and all(map(str.strip, self.answers))):
            raise ValueError("the answers are empty, or one of them is blank")
        if self.pattern is not None:
            try:
                re.compile(self.pattern)
            except (re.error, OverflowError, RecursionError) as error:
                raise ValueError(f"the pattern is no regular expression: {error}") from error


@dataclass(frozen=True, slots=True)
class Question:
    """One row of a task.

    Attributes:
        answers: each is right by itself; empty if there is a pattern.
        pattern: a regular expression that a right answer contains; not used if there are answers.
    """

    prompt: str
    answers: tuple[str, ...] = ()
    pattern: str = ""

    def is_right(self, answer: str) -> bool:
        """Whether an answer is right.

        It must equal an accepted answer, except for white space: runs of it count as one space,
        and at both ends it does not count. Or it must contain a match of the pattern, in which
        ``^`` and ``$`` stand for the ends of lines.
        """
        if not self.answers:
            return re.search(self.pattern, answer, re.MULTILINE) is not None
        return " ".join(answer.split()) in (" ".join(right.split()) for right in self.answers)


def read_task(path: Path) -> list[Question]:
    """The questions of a file of JSON lines; a prompt that appears twice counts once.

    Raises:
        UsageError: the file cannot be read, is empty, or a line is no such row; with its number.
    """
    found: dict[str, tuple[int, Question]] = {}
    for number, question in _questions(path):
        line, other = found.setdefault(question.prompt, (number, question))
        if other != question:
            raise UsageError(
                f"{path}, line {number}: its prompt is that of line {line}, with other answers",
                "keep one of them",
            )
    if not found:
        raise UsageError(f"the task file {path} is empty", FORM)
    return [question for _, question in found.values()]


def _questions(path: Path) -> Iterator[tuple[int, Question]]:
    for number, row in parse_rows(_TASK.read_text(path), _Row, name=str(path), hint=FORM):
        yield number, Question(row.prompt, tuple(row.answers or ()), row.pattern or "")
