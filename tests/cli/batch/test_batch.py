"""`d3 generate --input`: rows in, results out, in order, resumed, each with its own errors."""

import errno
import json
import os
import signal
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from d3cli.base.atomic_files import replace_file
from d3cli.base.errors import UsageError
from d3cli.cli import output_file
from d3cli.cli.batch import results
from d3cli.cli.batch.options import MOST_ROWS
from d3cli.cli.batch.results import in_use
from d3cli.cli.signals import Stopped
from d3cli.decode import batch
from d3cli.model.decoder_pass import MOST_TOKENS
from tests.conftest import D3, check
from tests.copies import stranger
from tests.forks import Forks

FOX = "Tell me a story about a fox."
ROWS: list[dict[str, Any]] = [
    {"prompt": FOX, "id": "a"},
    {"messages": [{"role": "user", "content": "What is 2 + 3?"}], "max_tokens": 5},
    {"prompt": "Hello.", "system": "Be kind.", "id": 7},
    {"prompt": "Tell me a story about an owl.", "seed": 3},
]
OPTIONS = ("--dtype", "float32", "--threads", "1", "--max-tokens", "12")
WHOLE = ("index", "id", "text", "finish_reason", "schedule", "tokens")


def write_rows(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def results_of(path: Path) -> list[dict[str, Any]]:
    """What does not depend on time."""
    return [{key: line[key] for key in WHOLE} for line in lines(path)]


@pytest.fixture
def given(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "in.jsonl", ROWS)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl"


def test_each_row_gets_the_reply_that_it_gets_alone(d3: D3, given: Path, out: Path) -> None:
    sampled = ("--temp", "0.9", "--seed", "5")
    result = d3("generate", "--input", given, "--output-file", out, *OPTIONS, *sampled)
    assert result.code == 0, result.err
    assert result.out == ""
    found = lines(out)
    assert [one["index"] for one in found] == [0, 1, 2, 3]
    assert [one["id"] for one in found] == ["a", None, 7, None]
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    alone = (
        (FOX, "--seed", "5"),
        ("What is 2 + 3?", "--seed", "5", "--max-tokens", "5"),
        ("Hello.", "--seed", "5", "--system", "Be kind."),
        ("Tell me a story about an owl.", "--seed", "3"),
    )
    for one, (prompt, *options) in zip(found, alone, strict=True):
        words = (*OPTIONS, "--temp", "0.9", *options, "--json")
        expected = json.loads(d3("generate", "--prompt", prompt, *words).out)
        for key in ("text", "finish_reason", "schedule", "reasoning", "answer", "model"):
            assert one[key] == expected[key]
        pairs = zip(one["tokens"], expected["tokens"], strict=True)
        for token, other in pairs:
            assert token.pop("logprob") == pytest.approx(other.pop("logprob"), abs=1e-5)
            assert token == other
        assert one["stats"].keys() == expected["stats"].keys()


@pytest.mark.parametrize("size", ["1", "2"])
def test_other_rows_do_not_decide_the_order_of_a_short_prompt(
    size: str, d3: D3, tmp_path: Path
) -> None:
    model = stranger(tmp_path / "model")  # without a schedule of its own
    long, short = {"prompt": f"{FOX} It lives by the river with its friends."}, {"prompt": "Hi."}
    words = ("generate", model, *OPTIONS, "--alpha", "0.9", "--start", "0", "--batch-size", size)
    both = d3(*words, "--input", write_rows(tmp_path / "both.jsonl", [long, short]))
    alone = d3(*words, "--input", write_rows(tmp_path / "one.jsonl", [short]))
    assert both.code == alone.code == 0, both.err
    first, second = (json.loads(line)["schedule"] for line in both.out.splitlines())
    assert first["skip_order"]
    assert second == json.loads(alone.out)["schedule"]


@pytest.mark.parametrize("size", ["1", "3", "auto"])
def test_the_size_of_a_batch_changes_no_reply(
    size: str, d3: D3, given: Path, out: Path, tmp_path: Path
) -> None:
    single = tmp_path / "single.jsonl"
    words = ("generate", "--input", given, *OPTIONS, "--batch-size")
    assert d3(*words, "1", "--output-file", single).code == 0
    assert d3(*words, size, "--output-file", out).code == 0
    texts = [[one["text"] for one in lines(path)] for path in (single, out)]
    assert texts[0] == texts[1]


def test_stdout_gets_the_rows_in_order(d3: D3, given: Path) -> None:
    result = d3("generate", "--input", given, "--batch-size", "4", *OPTIONS)
    assert result.code == 0
    assert [json.loads(line)["index"] for line in result.out.splitlines()] == [0, 1, 2, 3]
    assert "4 prompts, 4 at a time" in result.err


def test_rows_may_come_from_stdin(d3: D3) -> None:
    row = json.dumps({"prompt": FOX, "max_tokens": 2}).encode()
    result = d3("generate", "--input", "-", *OPTIONS, stdin=row)
    assert json.loads(result.out)["stats"]["completion_tokens"] == 2


def test_lossless_replies_are_written_one_by_one(d3: D3, given: Path) -> None:
    plain = d3("generate", "--input", given, *OPTIONS, "--alpha", "off")
    result = d3("generate", "--input", given, *OPTIONS, "--lossless", "lookup")
    assert result.code == 0, result.err
    texts = [[json.loads(line)["text"] for line in one.out.splitlines()] for one in (plain, result)]
    assert texts[0] == texts[1]
    words = ("--lossless", "lookup", "--batch-size", "2")
    check(d3("generate", "--input", given, *OPTIONS, *words), 2, "not in batches")


def test_finished_rows_are_not_run_again(
    d3: D3, given: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("generate", "--input", given, "--output-file", out, *OPTIONS)
    assert d3(*words).code == 0
    whole = out.read_text()
    # The second line is missing, and a kill has cut the last one.
    kept = whole.splitlines(keepends=True)
    out.write_text(kept[0] + kept[2] + kept[3][:50])
    asked: list[int] = []
    real = batch.write_together

    def counted(replies: Any, size: int) -> Iterator[Any]:
        for reply, news in real(replies, size):
            asked.append(id(reply))
            yield reply, news

    monkeypatch.setattr(batch, "write_together", counted)
    result = d3(*words)
    assert result.code == 0
    assert "2 of 4 prompts are finished already" in result.err
    assert len(set(asked)) == 2
    again = out.read_text().splitlines(keepends=True)
    assert (again[0], again[2]) == (kept[0], kept[2])
    assert [json.loads(line)["text"] for line in again] == [json.loads(one)["text"] for one in kept]
    asked.clear()
    assert "4 of 4 prompts are finished already" in d3(*words).err
    assert asked == []
    assert out.read_text().splitlines(keepends=True) == again


def test_what_has_changed_is_refused(d3: D3, given: Path, out: Path) -> None:
    words = ("generate", "--input", given, "--output-file", out, *OPTIONS)
    assert d3(*words).code == 0
    before = out.read_bytes()
    check(d3(*words, "--temp", "0.7"), 2, "of another model or of other options")
    check(d3(*words, "--alpha", "off"), 2, "of another model or of other options")
    write_rows(given, [*ROWS[:2], {"prompt": "Bye."}, ROWS[3]])
    check(d3(*words), 2, "row 3 of the input has changed since")
    write_rows(given, ROWS[:3])
    refused = d3(*words)
    check(refused, 2, "row 4 of the input has changed since")
    assert "model:" not in refused.err  # none was loaded
    assert out.read_bytes() == before
    write_rows(given, [*ROWS, {"prompt": "Bye."}])  # more rows are new work
    assert d3(*words).code == 0
    assert len(lines(out)) == 5
    assert out.read_bytes().startswith(before)


@pytest.mark.skipif(not Path("/dev/fd").exists(), reason="files of open pipes")
def test_a_pipe_is_refused_before_a_model_is_loaded(d3: D3, given: Path) -> None:
    reader, writer = os.pipe()
    try:
        words = ("generate", "--input", given, "--output-file", f"/dev/fd/{writer}")
        check(d3(*words), 2, "is not a regular file")
    finally:
        os.close(reader)
        os.close(writer)


@pytest.mark.parametrize(
    "content", ["mine\n", '{"text": "x"}\n', "[1]\n", "mine", '{"text": "x"}', '{"id']
)
def test_another_file_is_never_touched(content: str, d3: D3, given: Path, out: Path) -> None:
    out.write_text(content)
    words = ("generate", "--input", given, "--output-file", out, *OPTIONS)
    result = d3(*words)
    check(result, 2, "line 1, is not a result of d3 generate --input")
    assert "model:" not in result.err  # none was loaded
    assert out.read_text() == content


def test_without_a_file_of_results_the_error_names_one(d3: D3, tmp_path: Path) -> None:
    given = write_rows(tmp_path / "in.jsonl", [{"prompt": "fox " * 3000}, ROWS[1]])
    result = d3("generate", "--input", given, *OPTIONS)
    assert result.code == 1
    assert "with --output-file, the same command tries them alone again" in result.err


def test_a_prompt_beside_the_file_is_not_taken_for_a_model(d3: D3, tmp_path: Path) -> None:
    given = write_rows(tmp_path / "in.jsonl", ROWS)
    for prompt in ("Tell me a story.", "Tell me a story. " * 60):  # no file has so long a name
        result = d3("generate", "--input", given, prompt)
        check(result, 2, "with --input, all prompts come from that file")
        assert 'leave out "Tell me a story.' in result.err


def test_a_row_that_fails_does_not_lose_the_others(d3: D3, out: Path, tmp_path: Path) -> None:
    rows = [{"prompt": "fox " * 3000, "id": "long"}, ROWS[1], ROWS[2]]
    given = write_rows(tmp_path / "in.jsonl", rows)
    words = ("generate", "--input", given, "--output-file", out, *OPTIONS)
    result = d3(*words)
    assert result.code == 1
    assert "error: 1 of 3 prompts failed" in result.err
    assert "the same command tries them alone again" in result.err
    assert "the prompt of index 0 failed: the prompt is" in result.err
    first, *others = lines(out)
    assert (first["index"], first["id"]) == (0, "long")
    assert "the model's context holds 1,024" in first["error"]
    assert all(one["text"] and "error" not in one for one in others)
    again = d3(*words)  # which tries it again
    assert again.code == 1
    assert "2 of 3 prompts are finished already" in again.err
    assert len(lines(out)) == 3


def test_what_was_finished_before_a_signal_stays(
    d3: D3, given: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = batch.write_together

    def stopped(replies: Any, size: int) -> Iterator[Any]:
        ended = 0
        for reply, news in real(replies, size):
            yield reply, news
            ended += getattr(news, "finish_reason", None) is not None
            if ended == 2:
                raise Stopped(signal.SIGTERM)

    words = ("generate", "--input", given, "--output-file", out, *OPTIONS, "--batch-size", "4")
    with monkeypatch.context() as patch:
        patch.setattr(batch, "write_together", stopped)
        ended = d3(*words)
    assert ended.code == 143
    assert "2 of 4 prompts are finished; the same command writes the others" in ended.err
    done = {one["index"] for one in lines(out)}
    assert len(done) == 2
    assert 1 in done  # the shortest: not in the order of the input
    result = d3(*words)
    assert result.code == 0
    assert "2 of 4 prompts are finished already" in result.err
    assert [one["index"] for one in lines(out)] == [0, 1, 2, 3]


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_whole_lines(
    number: signal.Signals, code: int, forks: Forks, tmp_path: Path
) -> None:
    given = write_rows(tmp_path / "in.jsonl", [{"prompt": FOX, "max_tokens": 3}] * 120)
    ended = forks.run("generate", "--input", str(given), signal=number, after_out=10)
    assert ended.code == code
    assert "Traceback" not in ended.err
    found = [json.loads(line)["index"] for line in ended.out.splitlines()]
    assert 0 < len(found) < 120
    assert found == list(range(len(found)))


def test_a_full_disk_keeps_what_is_finished(
    d3: D3, given: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        """A file whose third write fits in half."""

        def __init__(self, file: Any) -> None:
            self._file, self._writes = file, 0

        def write(self, data: memoryview) -> int:
            self._writes += 1
            if self._writes == 4:
                raise OSError(28, "No space left on device")
            return self._file.write(data[: 20 if self._writes == 3 else None])

        def __getattr__(self, name: str) -> Any:
            return getattr(self._file, name)

    def open_full(*words: Any, **options: Any) -> Full:
        return Full(open(*words, **options))  # noqa: PTH123

    monkeypatch.setattr(results, "open", open_full, raising=False)
    words = ("generate", "--input", given, "--output-file", out, *OPTIONS)
    ended = d3(*words)
    check(ended, 1, "cannot be written: No space left on device")
    assert "2 of 4 prompts are finished; the same command writes the others" in ended.err
    assert len(lines(out)) == 2
    monkeypatch.undo()
    assert d3(*words).code == 0


def test_two_processes_cannot_write_one_file(d3: D3, given: Path, out: Path) -> None:
    words = ("generate", "--input", given, "--output-file", out, *OPTIONS)
    with in_use(out):
        result = d3(*words)
    check(result, 2, "another d3 is writing")
    assert "model:" not in result.err  # none was loaded
    assert not out.exists()
    assert list(out.parent.iterdir()) == [given]


@pytest.mark.parametrize("letter", ["x", "\N{OWL}"])  # a name may have 255 bytes
def test_files_with_the_same_beginning_have_locks_of_their_own(letter: str, tmp_path: Path) -> None:
    beginning = letter.encode() * (250 // len(letter.encode()))
    first, second = (tmp_path / os.fsdecode(beginning + end) for end in (b"a", b"b"))
    with in_use(first), in_use(second):
        assert len(list(tmp_path.iterdir())) == 2
        with pytest.raises(UsageError, match="another d3 is writing"), in_use(second):
            pass
    replace_file(first, "text")  # its temporary file has a shorter name


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "line 2: "),
        ("7", "line 2: expected `object`"),
        ("{}", 'line 2: it needs exactly one of "prompt" and "messages"'),
        ('{"prompt": "a", "messages": []}', "line 2: it needs exactly one"),
        ('{"prompt": " "}', "line 2: the prompt is empty"),
        ('{"messages": []}', "line 2: the last message must be the user's"),
        ('{"messages": [{"role": "assistant", "content": "a"}]}', "line 2: the last message"),
        ('{"messages": [{"role": "x", "content": "a"}]}', "line 2: invalid enum value 'x'"),
        ('{"prompt": "a", "max_token": 5}', "line 2: object contains unknown field `max_token`"),
        ('{"prompt": "a", "max_tokens": 0}', "line 2: expected `int` >= 1, at `$.max_tokens`"),
        ('{"prompt": "a", "seed": -1}', "line 2: expected `int` >= 0, at `$.seed`"),
        ('{"prompt": "a", "seed": 1.5}', "line 2: expected `int"),
        ('{"prompt": 5}', "line 2: expected `str | null`, got `int`, at `$.prompt`"),
        ('{"prompt": "\\ud800"}', "line 2: "),
        (
            '{"system": "a", "messages": [{"role": "system", "content": "b"}, '
            '{"role": "user", "content": "c"}]}',
            "line 2: a system prompt must be the first message, and the only one",
        ),
    ],
)
def test_a_bad_row_is_named_before_anything_runs(
    line: str, says: str, d3: D3, tmp_path: Path, out: Path
) -> None:
    given = tmp_path / "in.jsonl"
    given.write_text(json.dumps(ROWS[0]) + "\n" + line + "\n")
    result = d3("generate", "--input", given, "--output-file", out)
    check(result, 2, says)
    assert "model:" not in result.err
    assert not out.exists()


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--output-file", "x"], 2, "--output-file belongs to --input"),
        (["--batch-size", "2", "Hello."], 2, "--batch-size belongs to --input"),
        (["--batch-size", "2", "Hello."], 2, "give the prompts with --input FILE"),
        (["--input", "IN", "--prompt", "a"], 2, "from --input and from --prompt"),
        (["--input", "IN", "--batch-size", "0"], 2, '"0" is neither auto nor a number'),
        (["--input", "IN", "--batch-size", "17"], 2, "from 1 to 16"),
        (["--input", "IN", "--batch-size", "many"], 2, '"many" is neither auto'),
        (["--input", "IN", "--raw"], 2, "line 2: it has messages or a system prompt"),
        (["--input", "IN", "--output-file", "IN"], 2, "is an input, so results cannot go there"),
        (["--input", "IN", "--output-file", "."], 2, "is a directory"),
        (["--input", "IN", "--output-file", "/dev/null"], 2, "is not a regular file"),
        (["--input", "IN", "--output-file", "/nowhere/x"], 2, "there is no directory /nowhere"),
        (["--input", "IN", "--output-file", "IN/x"], 2, "there is no directory"),
        (
            ["--input", "IN", "--output-file", "~no-such-user/x"],
            2,
            "no-such-user/x cannot be written",
        ),
        (["--input", "IN", "--output-file", "x" * 300], 2, "cannot be written: File name too long"),
        (["--input", "/nowhere"], 2, "there is no prompts file /nowhere"),
        (["--input", "EMPTY"], 2, "has no prompts"),
    ],
)
def test_options_that_make_no_batch(
    words: list[str], code: int, says: str, d3: D3, given: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty.jsonl").write_text("\n\n")
    names = {"IN": str(given), "EMPTY": str(tmp_path / "empty.jsonl"), "IN/x": f"{given}/x"}
    result = d3("generate", *(names.get(word, word) for word in words))
    check(result, code, says)
    assert "model:" not in result.err  # none was loaded


def test_a_file_that_cannot_be_written_is_refused_before_a_model_is_loaded(
    d3: D3, given: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("generate", "--input", given, "--output-file", out)
    refused = {errno.EACCES: 2, errno.EROFS: 2, errno.ENOSPC: 1}
    for number, code in refused.items():

        def fail(*_: Any, number: int = number, **__: Any) -> None:
            raise OSError(number, os.strerror(number))

        with monkeypatch.context() as patch:
            patch.setattr(output_file.tempfile, "NamedTemporaryFile", fail)
            result = d3(*words)
        check(result, code, f"cannot be written: {os.strerror(number)}")
        assert "model:" not in result.err
    out.write_text("")
    out.chmod(0o444)
    result = d3(*words)
    check(result, 2, "is read-only")
    assert "model:" not in result.err


def test_caches_that_do_not_fit_are_refused(
    d3: D3, given: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("d3cli.model.memory.rows_that_fit", lambda *_: 1)
    words = ("generate", "--input", given, *OPTIONS, "--batch-size", "3")
    check(d3(*words), 1, "the KV caches of 3 prompts do not fit")
    assert d3(*words, "--force").code == 0


def test_a_batch_is_one_pass() -> None:
    assert MOST_ROWS == MOST_TOKENS
