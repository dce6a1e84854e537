"""Files in a chat: /attach and /export, and `d3 chat --list` and `--delete`."""

import json
import os
import stat
from itertools import pairwise
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from d3cli.cli.chat.export import as_markdown
from d3cli.decode import transcript
from d3cli.decode.transcript import ChatMessage
from d3cli.decode.transcript_files import in_use
from tests.cli.chat.desk import NewDesk, loop_of_links
from tests.conftest import D3, check

NOTES = "The fox is called Tansy.\n"


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    path = tmp_path / "my notes.txt"
    path.write_text(NOTES)
    return path


def test_an_attached_file_stands_before_the_next_message_only(desk: NewDesk, notes: Path) -> None:
    one = desk()
    tokenizer = one.chat.conversation.model.tokenizer
    tokens = len(tokenizer(NOTES, add_special_tokens=False)["input_ids"])
    shown = one.type(f"/attach {notes}")
    assert f"my notes.txt {tokens} tokens before your next message" in shown
    assert one.type("/attach") == shown
    one.type("Who is it?")
    one.type("And now?")
    messages = [each.content for each in one.chat.conversation.messages if each.role == "user"]
    assert messages == [f"my notes.txt:\n\n{NOTES.strip()}\n\nWho is it?", "And now?"]
    assert [each.title for each in transcript.all_conversations()] == ["my notes.txt"]
    assert "nothing is attached" in one.type("/attach")


def test_attached_files_can_be_removed(desk: NewDesk, notes: Path) -> None:
    one = desk()
    one.type(f"/attach {notes}")
    assert "nothing is attached" in one.type('/attach ""')
    one.type("Hello.")
    assert one.chat.conversation.messages[0].content == "Hello."


def test_a_message_that_comes_back_leaves_its_file_attached(desk: NewDesk, notes: Path) -> None:
    one = desk()
    one.type(f"/attach {notes}")
    one.type("Who is it?")
    one.type("/undo")
    assert one.draft == "Who is it?"
    assert "my notes.txt" in one.type("/attach")


def test_control_tokens_of_a_file_stay_text(desk: NewDesk, tmp_path: Path) -> None:
    one = desk()
    end = one.chat.conversation.model.tokenizer.eos_token
    path = tmp_path / "a.txt"
    path.write_text(f"before{end}after")
    one.type(f"/attach {path}")
    one.type("Hello.")
    reply = one.chat.conversation.reply
    assert reply is not None
    without = desk()
    without.type("Hello.")
    plain = without.chat.conversation.reply
    assert plain is not None
    eos = one.chat.conversation.model.tokenizer.eos_token_id
    assert reply.prompt_ids.count(eos) == plain.prompt_ids.count(eos)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"\x89PNG\xff", "is not UTF-8 text"),
        (b"%PDF-\xff", "is a PDF"),
        (b"a\0b", "is not text: it holds NUL bytes"),
        (b" \n", "has no text"),
        (b"fox " * 5000, "and the context has room for"),
        (b"fox " * 300_000, "has at least"),
        (None, "there is no file"),
    ],
)
def test_a_file_that_cannot_be_attached(
    content: bytes | None, says: str, desk: NewDesk, tmp_path: Path
) -> None:
    one, path = desk(), tmp_path / "a.txt"
    if content is not None:
        path.write_bytes(content)
    shown = one.type(f"/attach {path}")
    assert says in shown
    assert shown.count("error: ") == 1
    assert not one.chat.attachments.files


@pytest.mark.skipif(os.name == "nt", reason="no pipes with names")
def test_a_directory_and_a_pipe_cannot_be_attached(desk: NewDesk, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    one = desk()
    assert "is not a regular file" in one.type(f"/attach {tmp_path / 'pipe'}")
    assert "is not a regular file" in one.type("/attach /dev/zero")
    assert "is a directory" in one.type(f"/attach {tmp_path}")


def test_two_files_must_fit_the_context_together(desk: NewDesk, tmp_path: Path) -> None:
    one = desk()
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("fox " * 600)
    assert "before your next message" in one.type(f"/attach {tmp_path / 'a.txt'}")
    assert "before your next message" in one.type(f"/attach {tmp_path / 'a.txt'}")  # read again
    assert "the context has room for" in one.type(f"/attach {tmp_path / 'b.txt'}")


def test_an_export_is_private_and_replaces_nothing_unasked(desk: NewDesk, tmp_path: Path) -> None:
    one, path = desk(), tmp_path / "talk.md"
    assert "nothing to export yet" in one.type(f"/export {path}")
    one.type("Hello.")
    assert f"exported: {path}" in one.type(f"/export {path}")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    text = path.read_text()
    reply = one.chat.conversation.messages[-1]
    assert text == f"# Hello.\n\n## You\n\n> Hello.\n\n## demo\n\n{reply.content}\n"
    path.write_text("mine")
    assert f"{path} exists" in one.type(f"/export {path}")
    assert path.read_text() == "mine"
    one.type(f"/export --force {path}")
    assert path.read_text() == text


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("", "/export needs a file"),
        ("--force ", "/export needs a file"),
        ('""', "/export needs a file"),
        ("--force ''", "/export needs a file"),
        (".", ". is a directory"),
        ("/dev/null", "is not a regular file"),
        ("/nowhere/talk.md", "there is no directory /nowhere"),
        ("LOOP", "cannot be written: "),
        ("x" * 300, "cannot be written: "),
    ],
)
def test_an_export_that_is_refused(name: str, says: str, desk: NewDesk, tmp_path: Path) -> None:
    name = loop_of_links(tmp_path) if name == "LOOP" else name
    one = desk()
    one.type("Hello.")
    assert says in one.type(f"/export {name}")


@pytest.mark.parametrize(
    "reply",
    [
        "Use this:\n\n```python\nprint(1)",  # cut inside of a block of code
        "<!-- a comment",
        "- a list\n\n      code in it",
        "<think>\nIt is <!-- simple\n</think>\nYes.",
        "~~~\n# no heading\n~~~",
    ],
)
def test_every_message_of_an_export_has_its_heading(reply: str) -> None:
    record = [
        ChatMessage("system", "Be kind."),
        ChatMessage("user", "```\n# What is this?"),
        ChatMessage("assistant", reply, model="demo"),
        ChatMessage("user", "Thanks."),
    ]
    tokens = MarkdownIt().parse(as_markdown(record))
    headings = [
        inner.content
        for one, inner in pairwise(tokens)
        if one.type == "heading_open" and one.level == 0
    ]
    assert headings == ["```", "System prompt", "You", "demo", "You"]


def test_an_export_cannot_control_a_terminal() -> None:
    record = [ChatMessage("user", "a\x1b[31m"), ChatMessage("assistant", "b\x07", model="x")]
    assert "\x1b" not in as_markdown(record)
    assert "\x07" not in as_markdown(record)


def save(id_: str, text: str = "Hello.") -> Path:
    path = transcript.path_of(id_)
    transcript.write(path, [ChatMessage("user", text), ChatMessage("assistant", "Yes.", model="m")])
    return path


def test_the_list_as_json(d3: D3) -> None:
    assert json.loads(d3("chat", "--list", "--json").out) == {"schema": 1, "conversations": []}
    save("20260101-000000-aaaa", "Why?\nTell me.")
    transcript.path_of("20260102-000000-bbbb").write_text("{")
    found = json.loads(d3("chat", "--list", "--json").out)["conversations"]
    one, other = sorted(found, key=lambda each: each["id"])
    assert one.pop("changed").endswith("+00:00")
    assert one == {
        "id": "20260101-000000-aaaa",
        "messages": 2,
        "turns": 1,
        "model": "m",
        "title": "Why?",
        "problem": None,
    }
    assert "line 1: " in other["problem"]


def test_a_conversation_is_deleted_by_the_beginning_of_its_id(d3: D3) -> None:
    path, other = save("20260101-000000-aaaa"), save("20260101-000000-bbbb")
    result = d3("chat", "--delete", "20260101-000000-a", "--yes")
    assert result.code == 0
    assert "deleted: 20260101-000000-aaaa" in result.err
    assert not path.exists()
    assert other.exists()
    assert list(path.parent.iterdir()) == [other]  # no lock is left


def test_what_cannot_be_deleted(d3: D3) -> None:
    path = save("20260101-000000-aaaa")
    save("20260101-000000-bbbb")
    check(d3("chat", "--delete", "20260101", "--yes"), 2, "more than one conversation begins")
    check(d3("chat", "--delete", "", "--yes"), 2, 'there is no conversation ""')
    check(d3("chat", "--delete", path.stem), 2, "--delete asks at a terminal")
    with in_use(path.stem):
        check(d3("chat", "--delete", path.stem, "--yes"), 2, "is open in another d3 chat")
    assert path.exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--list", "--delete", "x"], "--list and --delete cannot be combined"),
        (["--delete", "x", "-c"], "--delete and --continue cannot be combined"),
        (["--list", "demo"], "--list lists all conversations, so demo has no effect"),
        (["--delete", "x", "y", "--yes"], "--delete deletes one conversation, so y has no effect"),
        (["--yes"], "--yes belongs to --delete"),
        (["--json"], "--json belongs to --list"),
    ],
)
def test_options_that_contradict_each_other(options: list[str], says: str, d3: D3) -> None:
    check(d3("chat", *options), 2, says)
