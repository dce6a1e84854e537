"""Saved conversations: written whole, checked when read, found by id."""

import json
import multiprocessing
import os
import stat
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from d3cli.base.errors import TranscriptError, UsageError
from d3cli.base.settings import state_dir
from d3cli.decode import transcript
from d3cli.decode.transcript import ChatMessage
from d3cli.decode.transcript_files import in_use, keep_damaged, remove_damaged

USER, REPLY = ChatMessage("user", "Hello."), ChatMessage("assistant", "Hi!", model="demo")


def saved(*messages: ChatMessage, id_: str = "20260101-000000-aaaa") -> Path:
    path = transcript.path_of(id_)
    transcript.write(path, messages or (USER, REPLY))
    return path


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


@given(
    st.lists(
        st.builds(
            ChatMessage,
            role=st.just("assistant"),
            content=texts,
            model=st.none() | texts,
            revision=st.none() | texts,
            finish_reason=st.sampled_from(["stop", "length", "interrupted", None]),
            schedule=st.none() | st.just({"alpha": 0.9}),
            stats=st.none() | st.dictionaries(texts, st.integers() | st.none(), max_size=3),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_a_conversation_reads_back_as_written(messages: list[ChatMessage]) -> None:
    path = transcript.path_of("20260101-000000-bbbb")
    transcript.write(path, messages)
    assert transcript.read(path) == messages
    lines = path.read_text().splitlines()
    assert len(lines) == len(messages)
    assert all(json.loads(line)["schema"] == 1 for line in lines)


def test_a_conversation_of_0_1_0_is_read() -> None:
    path = Path(__file__).parents[1] / "data" / "v0.1.0" / "conversation.jsonl"
    messages = transcript.read(path)
    assert [message.role for message in messages] == ["system", *["user", "assistant"] * 2]
    assert transcript.last_model(messages) == "demo"
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [message.to_json() for message in messages] == [json.loads(line) for line in lines]


def test_only_the_user_may_read_it() -> None:
    path = saved()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "is empty"),
        (b"\n", "is empty"),
        (b"hello\n", "line 1: "),
        (b"[" * 100_000, "line 1: "),
        (b"\xff\xfe", "is not UTF-8 text"),
        (b'{"role": "user", "content": "no schema"}\n', "line 1: "),
        (b'{"schema": 2, "role": "user", "content": "x"}\n', r"a newer d3 \(schema 2,"),
        (b'{"schema": true, "role": "user", "content": "x"}\n', "line 1: "),
        (b'{"schema": 1, "role": "tool", "content": "x"}\n', "line 1: "),
        (b'{"schema": 1, "role": "user", "content": 3}\n', "line 1: "),
        (b'{"schema": 1, "role": "user", "content": "\\ud800"}\n', "line 1: "),
        (b'{"schema": 1, "role": "user", "content": "x", "stats": []}\n', "line 1: "),
        (b'{"schema": 1, "role": "user", "content": "x", "stats": {"a": NaN}}\n', "line 1"),
        (b'{"schema": 1, "role": "user", "content": "x"}\n{"schema": 1, "ro\n', "line 2: "),
        (
            b'{"schema": 1, "role": "user", "content": "x"}\n'
            b'{"schema": 1, "role": "system", "content": "late"}\n',
            "line 2: ",
        ),
    ],
)
def test_a_damaged_file_is_reported_and_left_unchanged(data: bytes, says: str) -> None:
    path = saved()
    path.write_bytes(data)
    with pytest.raises(TranscriptError, match=says):
        transcript.read(path)
    assert path.read_bytes() == data
    [summary] = transcript.all_conversations()
    assert summary.problem


@pytest.mark.parametrize("end", [b"", b"\0\0\0"])
def test_a_last_line_that_is_cut_off_costs_that_line_alone(end: bytes) -> None:
    path = saved(USER, REPLY, USER)
    whole = path.read_bytes()
    last = whole.rindex(b"\n", 0, -1) + 1
    for length in range(last, len(whole) - 1):
        path.write_bytes(whole[:length] + end)
        messages, torn = transcript.read_whole_lines(path)
        assert messages == [USER, REPLY]
        assert torn.encode() == whole[last:length] + end
        [summary] = transcript.all_conversations()
        assert (len(summary.messages), summary.problem) == (2, "")
    path.write_bytes(whole[:-1])  # only the new line is missing
    assert transcript.read_whole_lines(path) == ([USER, REPLY, USER], "")
    path.write_bytes(whole[: last - 5] + b"\n" + whole[last:])  # damaged in the middle
    with pytest.raises(TranscriptError, match="line 2: "):
        transcript.read_whole_lines(path)
    path.write_bytes(whole[:30])  # not one whole line
    with pytest.raises(TranscriptError, match="line 1: "):
        transcript.read_whole_lines(path)


def test_copies_of_damaged_files_are_kept_apart_and_removed_together() -> None:
    path = saved()
    path.write_bytes(b"first")
    first = keep_damaged(path)
    assert (keep_damaged(path), first.read_bytes()) == (first, b"first")
    assert stat.S_IMODE(first.stat().st_mode) == 0o600
    path.write_bytes(b"second")
    second = keep_damaged(path)
    assert (first.read_bytes(), second.read_bytes()) == (b"first", b"second")
    assert [one.id for one in transcript.all_conversations()] == [path.stem]
    remove_damaged(path)
    assert list(path.parent.iterdir()) == [path]


def test_unicode_line_separators_do_not_end_a_line() -> None:
    path = saved()
    line = json.dumps({"schema": 1, "role": "user", "content": "a\u2028b\x85c"}, ensure_ascii=False)
    path.write_text(line + "\n", encoding="utf-8")
    assert transcript.read(path)[0].content == "a\u2028b\x85c"


def test_a_file_that_is_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transcript, "CONVERSATION", replace(transcript.CONVERSATION, largest=100))
    path = saved(ChatMessage("user", "x" * 200))
    with pytest.raises(TranscriptError, match="larger than 100 bytes"):
        transcript.read(path)


def test_the_latest_is_found_and_an_id_by_its_beginning() -> None:
    with pytest.raises(UsageError, match="no conversation to continue"):
        transcript.latest()
    first = saved(id_="20260101-000000-aaaa")
    saved(id_="20260102-000000-bbbb")
    os.utime(first, (time.time() + 9,) * 2)
    assert transcript.latest() == "20260101-000000-aaaa"
    assert transcript.find("20260102") == "20260102-000000-bbbb"
    assert [one.id[:8] for one in transcript.all_conversations()] == ["20260101", "20260102"]
    with pytest.raises(UsageError, match="more than one"):
        transcript.find("2026")
    for wrong in ("", "x", "../20260101-000000-aaaa", "20260103"):
        with pytest.raises(UsageError, match=r"no conversation|more than one"):
            transcript.find(wrong)


def test_links_pipes_and_directories_are_not_listed() -> None:
    path = saved()
    loop, pipe = path.with_name("loop.jsonl"), path.with_name("pipe.jsonl")
    loop.symlink_to(loop)
    os.mkfifo(pipe)
    path.with_name("directory.jsonl").mkdir()
    assert [one.id for one in transcript.all_conversations()] == [path.stem]
    with pytest.raises(TranscriptError, match="is not a regular file"):
        transcript.read(pipe)
    for wrong in (loop, path.with_name("directory.jsonl")):
        with pytest.raises(TranscriptError):
            transcript.read(wrong)


def test_a_byte_order_mark_is_ignored() -> None:
    path = saved(USER)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert transcript.read(path) == [USER]


def test_a_summary_has_the_first_line_of_the_user_and_the_model() -> None:
    saved(ChatMessage("system", "Be kind."), ChatMessage("user", "\nWhy?\nTell me."), REPLY)
    [summary] = transcript.all_conversations()
    assert (summary.title, summary.model, len(summary.messages)) == ("Why?", "demo", 3)


def test_a_directory_that_cannot_be_made_is_reported() -> None:
    state_dir().mkdir(exist_ok=True)
    (state_dir() / "conversations").write_text("a file")
    with pytest.raises(TranscriptError, match="cannot be saved"):
        saved()
    assert transcript.all_conversations() == []


def _hold(id_: str, held: "multiprocessing.synchronize.Event", home: str) -> None:
    os.environ["D3_HOME"] = home
    with in_use(id_):
        held.set()
        time.sleep(60)


def test_a_conversation_is_open_in_one_process_at_a_time() -> None:
    saved(id_="c")
    context = multiprocessing.get_context("spawn")
    held = context.Event()
    other = context.Process(target=_hold, args=("c", held, os.environ["D3_HOME"]))
    other.start()
    assert held.wait(60)
    with pytest.raises(UsageError, match="open in another"), in_use("c"):
        pass
    other.kill()
    other.join()
    with in_use("c"):  # the lock of a killed process is gone
        pass
    assert [path.name for path in transcript.path_of("c").parent.iterdir()] == ["c.jsonl"]
