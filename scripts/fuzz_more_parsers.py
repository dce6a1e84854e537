"""Parsers of batches, tasks, evaluations, ranks, checksums and kernel choices, for fuzzing."""

import hashlib
import os
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

from fuzz_common import FOLDER, Parse, file_of, text_of

from d3cli.base.errors import D3Error

ROW_HASHES, SETTINGS_HASH = ("ab" * 8, "cd" * 8), "ef" * 8
RANKS = ("TORCHELASTIC_RUN_ID", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


def kernels(data: bytes) -> object:
    """The file of kernel choices. One that is damaged is noted, and gives no choice."""
    from d3cli.base.settings import state_dir
    from d3cli.kernels.choice_file import choices_file

    state_dir().mkdir(parents=True, exist_ok=True)
    choices_file().write_bytes(data)
    try:
        with patch.dict(os.environ, {"D3_KERNELS": "auto"}):
            found = _choices()
        return found.here, found.current(64, 512), found.head_in_8_bits(64, 512), found.notes
    finally:
        choices_file().unlink()


def _choices() -> Any:
    """Choices that are read, and never measured."""
    from d3cli.kernels.choices import KernelChoices
    from d3cli.kernels.meters import Meters

    return KernelChoices(Meters(*[_never] * 4), lambda: True)


def _never(*_: object) -> Any:
    raise AssertionError("reading measures nothing")


def batch_rows(data: bytes) -> object:
    """The rows of `d3 generate --input`, and all that is asked of them before a model is loaded."""
    from d3cli.cli.batch.rows import longest, most_tokens, parse_input

    text, path = data.decode(errors="replace"), Path("rows.jsonl")
    with suppress(D3Error):  # without a template, fewer rows are valid
        parse_input(text, path, raw=True)
    rows = parse_input(text, path, raw=False)
    found = [(row.conversation("x"), row.digest) for row in rows]
    return found, longest(rows, None), most_tokens(rows, 8)


def batch_results(data: bytes) -> object:
    """A file of results that an earlier run has begun."""
    from d3cli.cli.batch.results import ToFile

    path = file_of(data, "results.jsonl")
    results = ToFile(path, ROW_HASHES, SETTINGS_HASH)
    results.end(len(ROW_HASHES))
    return results.finished, path.read_bytes()


def questions(data: bytes) -> object:
    """The questions of `d3 calibrate score`, and what they say to an answer."""
    from d3cli.evals.tasks import read_task

    return [each.is_right("It is 42.") for each in read_task(file_of(data, "task.jsonl"))]


def eval_args(data: bytes) -> object:
    """The arguments of the evaluation harness, as it reads them: ``name=value,name=value``."""
    from d3cli.evals.model_args import EvalSettings

    pairs = (part.partition("=") for part in text_of(data).split(","))
    return EvalSettings.read({name.strip(): _value(value) for name, _, value in pairs})


def _value(text: str) -> Any:
    """A value of the harness, which guesses its type."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def launch(data: bytes) -> object:
    """The variables by which torchrun tells a rank its place."""
    from d3cli.base.launch import launched
    from d3cli.cli import ranks

    values = [value.replace("\0", "") for value in text_of(data).split("\n")]
    # Else a leader would wait for the others.
    with (
        patch.dict(os.environ, dict(zip(RANKS, values, strict=False))),
        patch.object(ranks, "_leader", lambda place: place),
    ):
        return launched(), ranks.leader()


def checksums(data: bytes) -> object:
    """The record that a download keeps of a file, and a file that is named as ollama's are."""
    from d3cli.files.checksums import METADATA, OLLAMA, verify

    (FOLDER / METADATA).mkdir(parents=True, exist_ok=True)
    file_of(data, f"{METADATA}/tokens.json.metadata")
    named = FOLDER / (OLLAMA + hashlib.sha256(data).hexdigest())
    try:
        assert verify([file_of(data, named.name)]) == 1
    finally:
        named.unlink()
    return verify([file_of(b"{}", "tokens.json")])


PARSERS: dict[str, Parse] = {
    parse.__name__: parse
    for parse in (kernels, batch_rows, batch_results, questions, eval_args, launch, checksums)
}

_RESULT = b'{"index": %d, "row_hash": "%s", "settings_hash": "%s", "text": "x"}\n'

SEEDS: dict[str, list[bytes]] = {
    "batch_rows": [
        b'{"prompt": "a", "id": "x", "max_tokens": 3, "seed": 1}\n{"prompt": "b", "system": ""}\n',
        b'{"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]}\n',
    ],
    "batch_results": [
        b"".join(
            _RESULT % (number, row.encode(), SETTINGS_HASH.encode())
            for number, row in enumerate(ROW_HASHES)
        ),
        _RESULT.replace(b'"text"', b'"error"') % (1, b"cd" * 8, b"ef" * 8) + b'{"index": 0, "ro',
    ],
    "questions": [
        b'{"prompt": "6 * 7?", "answers": ["42", "It is 42."]}\n',
        b'{"prompt": "6 * 7?", "pattern": "^It is (\\\\d+)\\\\.$"}\n{"prompt": "b", "pattern": ""}',
    ],
    "eval_args": [
        b"pretrained=demo,alpha=0.99,start=8,units=sublayer,batch_size=4,think=on",
        b"pretrained=demo,alpha=off,quantization=int8,context=512,threads=2,offline=True",
    ],
    "launch": [b"none\n0\n2\n0\n2", b"none\n1\n1\n1\n1"],
    "checksums": [
        b"0\n" + hashlib.sha1(b"blob 2\0{}", usedforsecurity=False).hexdigest().encode() + b"\n1.0",
        b'0\nW/"' + hashlib.sha256(b"{}").hexdigest().encode() + b'"\n1.0',
    ],
}


def seeds(name: str) -> list[bytes]:
    """Valid input of a parser."""
    return _written_choices() if name == "kernels" else SEEDS[name]


def _written_choices() -> list[bytes]:
    """A file of kernel choices with one of each kind."""
    from d3cli.kernels.choice_file import (
        Choice,
        HeadChoice,
        Machine,
        OnMachine,
        PackingChoice,
        RowsChoice,
        choices_file,
        write_machine,
    )
    from d3cli.kernels.products import Products

    usual = Products()
    products = usual.one, usual.few, usual.some, usual.many
    write_machine(
        OnMachine(
            Machine.here(),
            (Choice(64, 512, *products, 9.0, 8.0, {"torch mv": "it is not exact"}),),
            (RowsChoice("int8", 64, 512, 4),),
            (PackingChoice(64, 512, True, 0.5),),
            (HeadChoice(64, 512, True, 0.5),),
            True,
        )
    )
    return [choices_file().read_bytes()]
