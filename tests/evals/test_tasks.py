"""A user's own task: which files are read, and which answers are right."""

import json
from pathlib import Path

import pytest

from d3cli.base.errors import UsageError
from d3cli.evals.tasks import Question, read_task


def written(directory: Path, *lines: str) -> Path:
    path = directory / "task.jsonl"
    path.write_text("\n".join(lines))
    return path


GOOD = json.dumps({"prompt": "What is 3 + 4?", "answers": ["7"]})


def test_rows_have_answers_or_a_pattern(tmp_path: Path) -> None:
    pattern = json.dumps({"prompt": "Why?", "pattern": "because"})
    assert read_task(written(tmp_path, GOOD, "", pattern, GOOD)) == [
        Question("What is 3 + 4?", ("7",)),
        Question("Why?", pattern="because"),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: "),
        ("[]", "line 2: "),
        ('{"prompt": "Why?"}', 'line 2: a row needs exactly one of "answers" and "pattern"'),
        ('{"prompt": "Why?", "answers": ["a"], "pattern": "a"}', "line 2: a row needs exactly one"),
        ('{"prompt": " ", "pattern": "a"}', "line 2: the prompt is blank"),
        ('{"prompt": "Why?", "answers": []}', "line 2: the answers are empty"),
        ('{"prompt": "Why?", "answers": ["a", " "]}', "one of them is blank"),
        ('{"prompt": "Why?", "answers": "a"}', "line 2: expected `array"),
        ('{"prompt": "Why?", "pattern": "("}', "line 2: the pattern is no regular expression"),
        ('{"prompt": "Why?", "pattern": "a{99999999999}"}', "line 2: the pattern is no regular"),
        ('{"prompt": "Why?", "pattern": "a", "weight": 1}', "unknown field `weight`"),
        ('{"prompt": "What is 3 + 4?", "answers": ["8"]}', "line 2: its prompt is that of line 1"),
    ],
)
def test_a_bad_line_is_refused_with_its_number(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_task(written(tmp_path, GOOD, line))
    assert message in caught.value.message and "task.jsonl" in caught.value.message


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is empty"):
        read_task(written(tmp_path, "", " "))


def test_white_space_does_not_count_and_case_does() -> None:
    question = Question("?", ("The answer is 7.", "Seven"))
    assert question.is_right("  The answer\n is 7.\n")
    assert question.is_right("Seven")
    assert not question.is_right("seven")
    assert not question.is_right("The answer is 7. Or 8.")


def test_a_pattern_is_searched_line_by_line() -> None:
    question = Question("?", pattern=r"^Answer: 7$")
    assert question.is_right("Let us see.\nAnswer: 7\nThat was easy.")
    assert not question.is_right("Answer: 77")
