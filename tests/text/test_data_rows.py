"""Rows of data in any file: what they hold is decided by the content, never scored as prose."""

import gzip
import json
from pathlib import Path

import pytest

from d3cli.base.errors import D3Error, UsageError
from d3cli.calibrate.texts import Sample, read_samples
from d3cli.cli.output import Output
from d3cli.cli.prompt_options import PromptOptions
from d3cli.cli.prompts import read_prompts
from d3cli.text import data_rows

PAIRS = [{"prompt": f"Why {n}?", "response": f"Because {n}."} for n in range(3)]
SAMPLES = [Sample(f"Because {n}.", ({"role": "user", "content": f"Why {n}?"},)) for n in range(3)]
SUFFIXES = ("json", "jsonl", "txt", "md", "ndjson", "csv", "")

LAYOUTS = {
    "an array": json.dumps(PAIRS),
    "a pretty-printed array": json.dumps(PAIRS, indent=2),
    "an array after a byte order mark": "\ufeff" + json.dumps(PAIRS),
    "lines": "\n\n".join(map(json.dumps, PAIRS)),
    "lines that end as on Windows": "\r\n".join(map(json.dumps, PAIRS)) + "\r\n",
    "files with byte order marks, joined": "".join(f"\ufeff{json.dumps(p)}\n" for p in PAIRS),
    "lines after zero-width spaces": "\n".join(f"\u200b\u2060{json.dumps(p)}" for p in PAIRS),
    "lines after no-break spaces": "\n".join(f"\u00a0{json.dumps(p)}" for p in PAIRS),
    "a JSON text sequence": "".join(f"\x1e{json.dumps(p)}\n" for p in PAIRS),
    "NULs at the end": "\n".join(map(json.dumps, PAIRS)) + "\n\0\0\0",
    "an object with rows inside": json.dumps({"version": 1, "data": PAIRS}),
    "an object with another list": json.dumps({"foxes": PAIRS}, indent=1),
    "the hub's viewer": json.dumps(
        {"features": [], "rows": [{"row_idx": n, "row": row} for n, row in enumerate(PAIRS)]}
    ),
}


def file(path: Path, content: str | bytes, suffix: str = "json") -> Path:
    found = path / f"data.{suffix}".rstrip(".")
    found.write_bytes(content.encode() if isinstance(content, str) else content)
    return found


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_content_decides_what_rows_are(layout: str, suffix: str, tmp_path: Path) -> None:
    assert read_samples(file(tmp_path, LAYOUTS[layout], suffix)) == SAMPLES


def test_objects_on_several_lines_each(tmp_path: Path) -> None:
    for suffix in ("json", "txt"):
        spread = "\n".join(json.dumps(pair, indent=2) for pair in PAIRS)
        assert read_samples(file(tmp_path, spread, suffix)) == SAMPLES
    assert read_samples(file(tmp_path, json.dumps(PAIRS[0], indent=2))) == SAMPLES[:1]


USER, REPLY = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}
SYSTEM = {"role": "system", "content": "Be brief."}
HUMAN, GPT = {"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}
PAIR = Sample("So.", (USER,))
KEYS = [
    ({"prompt": "Why?", "completion": "So."}, PAIR),
    ({"prompt": [USER], "completion": [REPLY]}, PAIR),
    ({"prompt": "Why?", "chosen": "So.", "rejected": "No."}, PAIR),
    ({"chosen": [USER, REPLY], "rejected": [USER, USER]}, PAIR),
    ({"prompt": "Why?", "chosen": [USER, REPLY]}, PAIR),
    ({"instruction": "Why?", "input": "", "output": "So."}, PAIR),
    ({"question": "Why?", "answer": "So.", "id": 3}, PAIR),
    ({"input": "Why?", "output": "So."}, PAIR),
    (
        {"instruction": "Add.", "input": "2 and 3", "output": "5"},
        Sample("5", ({"role": "user", "content": "Add.\n\n2 and 3"},)),
    ),
    (
        {"instruction": "Who?", "context": "A fox.", "response": "It.", "category": "qa"},
        Sample("It.", ({"role": "user", "content": "Who?\n\nA fox."},)),
    ),
    ({"instruction": "Why?", "output": "So.", "history": [["Why?", "So."]]},
     Sample("So.", (USER, REPLY, USER))),
    ({"system_prompt": "Be brief.", "question": "Why?", "response": "So."},
     Sample("So.", (SYSTEM, USER))),
    ({"conversations": [HUMAN, GPT]}, PAIR),
    ({"conversations": [HUMAN, GPT, HUMAN, GPT], "system": "Be brief."},
     Sample("So.", (SYSTEM, USER, REPLY, USER))),
    ({"conversation": [USER, {"role": "model", "content": "So."}]}, PAIR),
    ({"messages": [{"role": "developer", "content": "Be brief."}, USER, REPLY]},
     Sample("So.", (SYSTEM, USER))),
    (
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "Wh"}, "y?"]},
                {"role": "assistant", "content": [{"type": "output_text", "text": "So."}]},
            ]
        },
        PAIR,
    ),
    ([USER, REPLY], PAIR),
    # The reply stands under a key of its own.
    ({"messages": [USER], "answer": "So."}, PAIR),
    ({"conversations": [HUMAN], "chosen": GPT, "rejected": {"from": "gpt", "value": "No."}}, PAIR),
    ({"conversations": [HUMAN, GPT, HUMAN], "chosen": GPT}, Sample("So.", (USER, REPLY, USER))),
    ({"messages": [USER], "chosen": [USER, REPLY]}, PAIR),
    ({"prompt": USER, "completion": REPLY}, PAIR),
    ("Once upon a time.", Sample("Once upon a time.")),
]  # fmt: skip


@pytest.mark.parametrize(("row", "sample"), KEYS)
def test_the_keys_of_other_tools(row: object, sample: Sample, tmp_path: Path) -> None:
    assert read_samples(file(tmp_path, json.dumps([row, row]))) == [sample, sample]


@pytest.mark.parametrize("after", [[USER], [USER, USER], [SYSTEM, USER]])
def test_the_user_s_last_word_is_not_scored_as_a_reply(
    after: list[dict[str, str]], tmp_path: Path
) -> None:
    rows = [{"messages": [USER, REPLY, *after]}]
    assert read_samples(file(tmp_path, json.dumps(rows))) == [PAIR]


@pytest.mark.parametrize(("row", "sample"), [(r, s) for r, s in KEYS if s.messages])
def test_profile_reads_the_same_keys(row: object, sample: Sample, tmp_path: Path) -> None:
    path = file(tmp_path, json.dumps([row, row], indent=1), "txt")
    _, prompts = read_prompts(Output(), PromptOptions(), path)
    assert [prompt.messages for prompt in prompts] == [sample.messages] * 2


def test_prompts_need_no_reply(tmp_path: Path) -> None:
    rows = ["Why?", {"prompt": [USER]}, {"question": "Why?"}, {"messages": [USER, REPLY, USER]}]
    path = file(tmp_path, json.dumps([*rows, {"system": "Be brief.", "prompt": "Why?"}]))
    _, prompts = read_prompts(Output(), PromptOptions(), path)
    talks = [(USER,), (USER,), (USER,), (USER, REPLY, USER), (SYSTEM, USER)]
    assert [prompt.messages for prompt in prompts] == talks


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"title": "Foxes", "body": "…"}, 'row 2: none of its keys is known: "title", "body"'),
        (USER, "row 2: it is a single message"),
        (HUMAN, "row 2: it is a single message"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}, REPLY]},
            "a part of type 'image_url'; d3 reads only text",
        ),
        ({"conversations": [HUMAN, {"from": "tool", "value": "3"}]}, "invalid enum value 'tool'"),
        ({"prompt": "Why?"}, 'no text as "response"'),
        ({"messages": [USER]}, "no reply after a message of the user"),
        ({"messages": [SYSTEM, USER]}, "no reply after a message of the user"),
        ({"messages": [REPLY]}, "no reply after a message of the user"),
        ({"messages": []}, "no reply after a message of the user"),
        ({"prompt": "Why?", "system": "Be brief."}, 'no text as "response"'),
        ({"prompt": ["Why?"], "response": ["So."]}, "expected `str | null`, got `array`"),
        (3, "expected `object`, got `int`"),
    ],
)
def test_a_row_of_another_form_is_named(row: object, says: str, tmp_path: Path) -> None:
    for spread in (None, 2):
        path = file(tmp_path, json.dumps([PAIRS[0], row], indent=spread), "txt")
        with pytest.raises(UsageError) as refused:
            read_samples(path)
        assert says in refused.value.message
        assert "a row is {" in refused.value.hint


TABLE = "".join(f'"Why, {n}?","Because {n}."\n' for n in range(5))
OTHER_FORMATS = {
    "CSV": "prompt,response\n" + TABLE,
    "a table of unknown columns": "first,second\n" + TABLE,
    "tabs": "id\tname\tage\n" + "1\tRey\t3\n" * 5,
    "semicolons": "question;answer\nWhy?;So.\n",
    "YAML": "- prompt: Why?\n  response: So.\n" * 3,
    "YAML in several documents": "prompt: Why?\nresponse: So.\n---\n" * 3,
    "TOML": "[[rows]]\nprompt = 'Why?'\nresponse = 'So.'\n" * 3,
    "XML without a header": "<rows>\n" + "<row><prompt>Why?</prompt></row>\n" * 3 + "</rows>",
    "XML": '<?xml version="1.0"?>\n<rows><row>Why?</row></rows>',
    "HTML": "<!DOCTYPE html>\n<html><p>Why?</p></html>",
    "broken JSON": json.dumps(PAIRS, indent=2)[:-2],
    "a comma at the end": '[{"prompt": "Why?", "response": "So."},]',
    "Python": str(PAIRS),
    "Python, spread": "\n".join(map(str, PAIRS)),
    "JavaScript": "export default " + json.dumps(PAIRS, indent=2),
    "lines after a comment": "# foxes\n" + "\n".join(map(json.dumps, PAIRS)),
    "two lists": json.dumps({"train": PAIRS, "data": PAIRS}),
    "no list": json.dumps({"name": "foxes", "count": 3}),
    "a notebook": json.dumps({"cells": [{"cell_type": "code", "source": ["1"]}]}, indent=1),
    "columns": json.dumps({"prompt": ["a", "b"], "response": ["c", "d"]}),
    "columns of pandas": json.dumps({"prompt": {"0": "a"}, "response": {"0": "b"}}),
    "numbers": "[1, 2, 3]",
}


@pytest.mark.parametrize("form", OTHER_FORMATS)
@pytest.mark.parametrize("suffix", ["txt", "json", "csv", ""])
def test_data_of_another_form_is_never_prose(form: str, suffix: str, tmp_path: Path) -> None:
    path = file(tmp_path, OTHER_FORMATS[form], suffix)
    with pytest.raises(UsageError) as refused:
        read_samples(path)
    assert str(path) in refused.value.message
    assert "a row is {" in refused.value.hint
    with pytest.raises(D3Error):
        read_prompts(Output(), PromptOptions(), path)


PROSE = {
    "a story": "Once upon a time, there was a fox.\nIt lived, they say, by a river.\n",
    "a poem": "Roses are red,\nViolets are blue,\nSugar is sweet,\n",
    "one word a line": "Oh, Romeo\nRomeo, Romeo\nWherefore, art\nthou, Romeo\n",
    "a heading": "[Chapter 1]\nIt was a dark night.",
    "a quotation": '["Well," she said, "it is late."]\nHe left.',
    "a note": "[1] Foxes, 2020.\n[2] Wolves, 2021.\n",
    "LaTeX": "{\\bf Foxes} are small, {\\it wolves} are not.",
    "a wiki page": "{{Infobox fox\n| name = Fox\n}}\nA fox is a small animal.",
    "Markdown with code": '# Rows\n\nA row is an object:\n\n```\n{"a": 1}\n```\n\nThat is all.\n',
    "a list": "- Why?\n- Because.\n- note: so\n",
    "front matter": "---\ntitle: A fox\n---\n\nOnce upon a time.\n",
    "questions in prose": "question: why?\nanswer: so\n\nquestion: when?\nanswer: now\n",
    "one element": "<story>\nOnce upon a time\nthere was\na fox.\n</story>\n",
    "a program": "import os\n\ndef fox(name, age):\n    return {'name': name, 'age': age}\n",
}


@pytest.mark.parametrize("form", PROSE)
def test_prose_stays_prose(form: str, tmp_path: Path) -> None:
    assert read_samples(file(tmp_path, PROSE[form], "txt")) == [Sample(PROSE[form])]
    for suffix in ("json", "csv", "jsonl"):  # a name that promises rows
        with pytest.raises(UsageError):
            read_samples(file(tmp_path, PROSE[form], suffix))


def test_long_lines_of_prose_are_looked_at_quickly(tmp_path: Path) -> None:
    for line in (
        " " * 500_000 + "x",
        "{" * 500_000 + "x",
        "[ " + " " * 500_000 + "x",
        '"' * 99_999,
    ):
        assert read_samples(file(tmp_path, line, "txt")) == [Sample(line)]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        # Without a fixed time in its header, each test process would name this test differently.
        (gzip.compress(json.dumps(PAIRS).encode(), mtime=0), "is compressed by gzip"),
        (b"PAR1\x15\x04\x15\xfe", "is a Parquet file"),
        (b"PK\x03\x04\x14\x00\x08\xff", "is a ZIP archive"),
        (b"\x28\xb5\x2f\xfd\x04\x00", "is compressed by zstd"),
        (json.dumps(PAIRS).encode("utf-16"), "is not UTF-8 text"),
    ],
    ids=["gzip", "Parquet", "ZIP", "zstd", "UTF-16"],
)
def test_a_binary_format_is_named(data: bytes, says: str, tmp_path: Path) -> None:
    for suffix in ("json", "jsonl", "txt"):
        with pytest.raises(UsageError, match=says):
            read_samples(file(tmp_path, data, suffix))


@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_more_rows_than_anyone_needs_are_refused(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_rows, "MOST_ROWS", 2)
    path = tmp_path / f"rows{suffix}"
    path.write_text('{"text": "a"}\n' * 2)
    assert len(read_samples(path)) == 2
    path.write_text('{"text": "a"}\n' * 3)
    with pytest.raises(UsageError, match="more than 2 rows"):
        read_samples(path)
