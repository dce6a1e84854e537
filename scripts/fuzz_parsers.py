"""The parsers of everything that d3 reads, for ``scripts/fuzz.py``, each with valid input."""

import contextlib
import io
from typing import Any
from unittest.mock import Mock

import fuzz_command_line
import fuzz_more_parsers
import fuzz_seeds
import numpy as np
from fuzz_common import FOLDER, Parse, file_of, text_of
from fuzz_requests import SEEDS as REQUESTS
from fuzz_requests import chat_request, http_request

from d3cli.base.errors import D3Error


def rows(data: bytes) -> object:
    from d3cli.calibrate.texts import read_samples

    return read_samples(file_of(data, "rows.jsonl"))


def prompts(data: bytes) -> object:
    from d3cli.cli.output import Output
    from d3cli.cli.prompt_options import PromptOptions
    from d3cli.cli.prompts import read_prompts

    return read_prompts(Output(), PromptOptions(), file_of(data, "prompts.jsonl"))


def trace(data: bytes) -> object:
    from d3cli.profile.html.page import html_report
    from d3cli.profile.summary import with_figures
    from d3cli.profile.trace_file import parse_trace

    found = parse_trace(data, "fuzz")
    return with_figures(found), html_report(found)


def conversation(data: bytes) -> object:
    from d3cli.decode import transcript

    return transcript.read(file_of(data, "conversation.jsonl"))


def calibration(data: bytes) -> object:
    from d3cli.depth import calibration_store
    from d3cli.depth.calibration_file import file_of

    path = file_of("someone/fox")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    try:
        return calibration_store.calibrations_of(
            "someone/fox"
        ), calibration_store.all_calibrations()
    finally:
        path.unlink()


def settings(data: bytes) -> object:
    from d3cli.base import settings

    path = settings.config_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    try:
        names = settings.load_settings(), settings.default_model(), settings.aliases()
        return names, [fuzz_command_line.read_line([name]) for name in fuzz_command_line.COMMANDS]
    finally:
        path.unlink()


def options(data: bytes) -> object:
    """The values of options: percents, depths, times, sizes, places; and names to complete."""
    from d3cli.base.amounts import parse_size
    from d3cli.cli.calibrate.parse import parse_duration, parse_target
    from d3cli.cli.completion import complete_model
    from d3cli.depth.parse import parse_alpha, parse_start
    from d3cli.depth.units import parse_unit

    text = text_of(data)
    parsers = (
        *(parse_target, parse_duration, parse_alpha, parse_unit, parse_size, places),
        lambda text: parse_start(text, 100),
        lambda text: complete_model(text.replace("\0", "")),
    )
    results = []
    for parse in parsers:
        with contextlib.suppress(D3Error):
            results.append(parse(text))
    return results


def places(text: str) -> object:
    """The places of `--max-memory`."""
    from d3cli.cli.model_options import ModelOptions
    from d3cli.model.rooms import place_names

    return place_names(ModelOptions(max_memory=text).limits, "auto")


def commands(data: bytes) -> object:
    """The slash commands that neither write files nor load models."""
    from d3cli.cli.chat.commands import COMMANDS, run_command

    harmless = {
        name: command
        for name, command in COMMANDS.items()
        if name in ("/help", "/alpha", "/depth", "/set", "/show", "/stats", "/undo", "/clear")
        or name in ("/system", "/bye")
    }
    return run_command(chat(), "/" + text_of(data), harmless)


_CHATS: list[Any] = []
_SHOWN = io.StringIO()


def chat() -> Any:
    """A chat with the built-in model whose screen is not shown."""
    if not _CHATS:
        from rich.console import Console

        from d3cli.cli.chat.drafts import Drafts
        from d3cli.cli.chat.saving import Saving
        from d3cli.cli.chat.screen import Screen
        from d3cli.cli.chat.session import Chat
        from d3cli.cli.chat.settings import ChatSettings
        from d3cli.cli.output import Output
        from d3cli.decode.conversation import Conversation
        from d3cli.model.load import load_model

        screen = Screen(Console(file=_SHOWN))
        conversation = Conversation(load_model(device="cpu", threads=1))
        _CHATS.append(
            Chat(
                *(Output(), screen, Mock(), Saving(None), Mock(), conversation),
                *(ChatSettings(), "demo", Drafts()),
            )
        )
    _SHOWN.seek(0)
    _SHOWN.truncate()
    return _CHATS[0]


def model_json(data: bytes) -> object:
    from d3cli.files.json_files import read_json
    from d3cli.files.safetensors import Description
    from d3cli.files.vet_config import vet_config

    config = read_json(file_of(data, "config.json"))
    return vet_config(Description("fuzz", config, ()))


def weights(data: bytes) -> object:
    from d3cli.files.fingerprint import fingerprint
    from d3cli.files.safetensors import describe_directory

    (FOLDER / "config.json").write_text('{"model_type": "llama"}')
    file_of(data, "model.safetensors")
    return describe_directory("fuzz", FOLDER), fingerprint(FOLDER)


def gguf(data: bytes) -> object:
    """The header of a GGUF file, and all that is read of it before a model is built."""
    from d3cli.files.fingerprint import gguf_fingerprint
    from d3cli.files.gguf import read_gguf

    model = read_gguf(file_of(data, "model.gguf"))
    return dict(model.metadata), gguf_fingerprint(model), model.types


PARSERS: dict[str, Parse] = {
    parse.__name__: parse
    for parse in (
        rows,
        prompts,
        trace,
        conversation,
        calibration,
        settings,
        options,
        commands,
        model_json,
        weights,
        gguf,
        http_request,
        chat_request,
        fuzz_command_line.command_line,
    )
} | fuzz_more_parsers.PARSERS

SEEDS: dict[str, list[bytes]] = REQUESTS | {
    "rows": [
        b'{"prompt": "a", "response": "b"}\n',
        b'{"text": "abc"}\n',
        b'[{"messages": [{"role": "user", "content": "a"}, {"role": "gpt", "content": "b"}]}]',
    ],
    "prompts": [b'{"prompt": "a"}\n{"messages": [{"role": "user", "content": "x"}]}\n'],
    "settings": [
        b'model = "demo"\nalpha = 0.99\n[aliases]\nx = "org/name"\n',
        fuzz_command_line.CONFIG,
    ],
    "options": [
        b"1%",
        b"0.99",
        b"auto",
        b"90s",
        b"12.attn",
        b"50%",
        b"1e5",
        b"\xd9\xa1%",
        b"0=10GiB,cpu=1.5 GB,disk=0",
    ],
    "commands": [b"alpha 0.99", b"set temperature 1", b'system "x"', b"set stop '\\n'", b"depth"],
    "command_line": fuzz_command_line.SEEDS,
    "model_json": [b'{"model_type": "llama", "num_hidden_layers": 2, "a": [{"b": null}]}'],
}


def attempt(parse: Parse, data: bytes) -> None:
    """Parses. Any exception but one of d3's own is a finding."""
    with contextlib.suppress(D3Error):
        parse(data)


def seeds(name: str) -> list[bytes]:
    """Valid input of a parser, for a fuzzer to start from."""
    if name in fuzz_more_parsers.PARSERS:
        return fuzz_more_parsers.seeds(name)
    if name == "trace":
        return fuzz_seeds.traces()
    if name == "calibration":
        return fuzz_seeds.calibrations()
    if name == "conversation":
        from d3cli.decode import transcript

        path = FOLDER / "seed.jsonl"
        transcript.write(path, [transcript.ChatMessage("user", "a")])
        return [path.read_bytes()]
    if name == "weights":
        from safetensors.numpy import save

        return [save({"a": np.zeros((2, 3), np.float32), "b.weight": np.ones(1, np.int8)})]
    if name == "gguf":
        from tests.gguf_bytes import tiny

        return [tiny().encode(), tiny(general__alignment=64, split__count=1).encode()]
    return SEEDS[name]
