"""Held-out text: rows, passages, halves, and text that is refused."""

import json
import os
from collections import Counter
from pathlib import Path

import pytest

from d3cli.base.errors import UsageError
from d3cli.calibrate.texts import (
    Sample,
    builtin_samples,
    choose,
    encode_samples,
    hash_documents,
    read_samples,
    split,
)
from d3cli.model.load import load_model
from d3cli.model.model import LoadedModel
from d3cli.text import tokens
from tests.families import tiny
from tests.planted import documents as planted_documents


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return load_model(dtype="float32", device="cpu")


def rows(path: Path, *lines: object) -> Path:
    file = path / "data.jsonl"
    texts = (line if isinstance(line, str) else json.dumps(line) for line in lines)
    file.write_text("\n".join(texts), encoding="utf-8")
    return file


def test_rows_of_every_form(tmp_path: Path) -> None:
    chat = [{"role": role, "content": f"{role}!"} for role in ("system", "user", "assistant")]
    others = [message | {"weight": 1, "name": None} for message in chat]  # as for fine-tuning
    path = rows(
        tmp_path,
        {"prompt": "Why?", "response": "Because.", "kind": "explaining"},
        "",
        {"text": "Once upon a time."},
        {"messages": others},
    )
    assert read_samples(path) == [
        Sample("Because.", ({"role": "user", "content": "Why?"},), "explaining"),
        Sample("Once upon a time."),
        Sample("assistant!", tuple(chat[:2])),
    ]


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[1]",
        {"prompt": "Why?"},
        {"prompt": "Why?", "response": 3},
        {"prompt": " ", "response": "Because."},
        {"text": ""},
        {"messages": [{"role": "user", "content": "Why?"}]},
        {"messages": ["Why?", "Because."]},
        {"messages": [{"role": role, "content": "Hm."} for role in ("user", "tool")]},
        {"messages": [{"role": "user"}, {"content": "Because."}]},
        "[" * 100_000,
    ],
)
def test_a_bad_row_is_reported_with_its_line(tmp_path: Path, line: object) -> None:
    path = rows(tmp_path, {"text": "Fine."}, line)
    with pytest.raises(UsageError, match=r"data\.jsonl, line 2: "):
        read_samples(path)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no text"):
        read_samples(tmp_path / "nothing.txt")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(UsageError, match="not UTF-8"):
        read_samples(tmp_path / "latin.txt")


def test_a_plain_text_is_cut_into_passages(model: LoadedModel, tmp_path: Path) -> None:
    story = "".join(f"Once there were {n} foxes who lived near the river. " for n in range(1500))
    (tmp_path / "book.txt").write_text(story)
    samples = read_samples(tmp_path / "book.txt")
    ids = list(model.tokenizer(story, add_special_tokens=False)["input_ids"])
    documents = encode_samples(model, samples)
    joined = [i for d in documents for i in (*d.prompt_ids, *d.response_ids)]
    assert joined == ids[: len(joined)]
    assert len(ids) - len(joined) < 66
    assert all(len(d.prompt_ids) == 64 for d in documents)
    assert {len(d) for d in documents[:-1]} == {320}


def test_text_far_too_long_is_not_tokenized_whole(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "LONGEST_PIECE", 20_000)  # a context of 1,024 tokens
    given: list[str] = []
    tokenize = model.tokenizer.__call__
    monkeypatch.setattr(
        type(model.tokenizer),
        "__call__",
        lambda _, words, **options: given.append(words) or tokenize(words, **options),
    )
    question = ({"role": "user", "content": "Why?"},)
    long = "A fox ran over the hills. " * 10_000
    samples = [Sample(f"{n} and {long}", question) for n in range(40)]
    beyond = Sample("Because it is.", ({"role": "user", "content": long},))
    documents = encode_samples(model, [*samples, beyond])
    assert len(documents) == 40  # all but the one whose prompt does not fit
    assert {len(document) for document in documents} == {model.context_length}
    assert max(map(len, given)) <= 20_000


def test_too_little_text_is_refused_with_the_amount(model: LoadedModel) -> None:
    with pytest.raises(UsageError, match="1 documents with 2 response tokens") as error:
        encode_samples(model, [Sample("yes", ({"role": "user", "content": "Why?"},))])
    assert "at least 32 documents and 1,024 tokens" in error.value.hint
    with pytest.raises(UsageError, match="0 documents"):
        encode_samples(model, [])


def test_documents_are_cut_at_the_context() -> None:
    short = tiny("llama").gated  # a context of 256
    samples = [
        Sample(" ".join(["w5"] * 300), ({"role": "user", "content": f"w6 w{n}"},))
        for n in range(1, 40)
    ]
    assert {len(document) for document in encode_samples(short, samples)} == {256}
    long = [Sample("w5 w6", ({"role": "user", "content": " ".join(["w5"] * 300)},))] * 40
    with pytest.raises(UsageError, match="fit the model's context of 256"):
        encode_samples(short, long)


def test_the_built_in_models_own_split(model: LoadedModel) -> None:
    samples = builtin_samples(model)
    assert len(samples) == 240
    assert all(sample.messages[-1]["role"] == "user" for sample in samples)
    search, unseen = split(encode_samples(model, samples), seed=1)
    assert len(search) == len(unseen) == 120
    again, _ = split(encode_samples(model, samples), seed=1)
    other, _ = split(encode_samples(model, samples), seed=2)
    assert search == again != other


def test_the_pairs_for_all_other_models() -> None:
    samples = builtin_samples(tiny("llama").gated)
    kinds = Counter(sample.kind for sample in samples)
    assert set(kinds) == {
        *("explaining", "reasoning", "code", "story", "summarising", "dialogue"),
    }
    assert min(kinds.values()) >= 20
    assert len({sample.messages[0]["content"] for sample in samples}) == len(samples) >= 120
    for sample in samples:
        # 120 to 400 tokens: today's tokenizers make about four tokens of three words.
        assert 85 <= len(sample.response.split()) <= 300, sample


def test_repeated_text_is_used_once(model: LoadedModel) -> None:
    samples = builtin_samples(model)
    once = encode_samples(model, samples)
    assert encode_samples(model, [*samples, *samples[:50]]) == once


def test_half_a_character_is_a_bad_row(tmp_path: Path) -> None:
    (tmp_path / "half.jsonl").write_text('{"text": "a\\ud800"}\n')
    with pytest.raises(UsageError, match=r"line 1: "):
        read_samples(tmp_path / "half.jsonl")


def test_a_byte_order_mark_and_an_upper_case_suffix_are_accepted(tmp_path: Path) -> None:
    (tmp_path / "MARKED.JSONL").write_bytes(b'\xef\xbb\xbf{"text": "Fine."}\n')
    assert [sample.response for sample in read_samples(tmp_path / "MARKED.JSONL")] == ["Fine."]


def test_only_regular_files_with_text_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    for path, problem in {
        tmp_path / "pipe.txt": "not a regular file",
        Path("/dev/zero"): "not a regular file",
        tmp_path: "is a directory",
    }.items():
        with pytest.raises(UsageError, match=problem):
            read_samples(path)
    (tmp_path / "blank.txt").write_text(" \n")
    with pytest.raises(UsageError, match="is empty"):
        read_samples(tmp_path / "blank.txt")


def test_documents_are_drawn_by_seed_and_hashed_in_any_order() -> None:
    texts = list(planted_documents())
    assert choose(texts, 32, 1) == choose(texts, 32, 1) != choose(texts, 32, 2)
    assert choose(texts, 10_000, 1) == texts
    assert hash_documents(texts) == hash_documents(texts[::-1])
    assert hash_documents(texts) != hash_documents(texts[1:])
    with pytest.raises(UsageError, match="too few"):
        choose(texts, 31, 0)
