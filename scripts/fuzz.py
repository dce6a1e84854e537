"""Random input for every parser, and random text for every place where text is shown.

    python scripts/fuzz.py inert --texts 100000
    pip install atheris && python scripts/fuzz.py trace --minutes 10
    python scripts/fuzz.py all --minutes 10

Parsers run under atheris (libFuzzer), which looks for input that reaches new code; each may refuse
its input by an error of d3's own and by nothing else. `inert` writes random texts, cut into chunks
at random places, through the reply, notes, errors and tables, and looks at the bytes that come out.
What was found is a test now: tests/test_fuzz.py runs a slice of all this.
"""

import argparse
import atexit
import contextlib
import io
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from d3cli.base.errors import D3Error

Parse = Callable[[bytes], object]

FOLDER = Path(tempfile.mkdtemp(prefix="d3-fuzz-"))
atexit.register(shutil.rmtree, FOLDER, ignore_errors=True)


def file_of(data: bytes, name: str) -> Path:
    path = FOLDER / name
    path.write_bytes(data)
    return path


def text_of(data: bytes) -> str:
    """Text as a command line gives it: bytes that are no UTF-8 become halves of surrogates."""
    return data.decode("utf-8", "surrogateescape")


def rows(data: bytes) -> object:
    from d3cli.calibrate.texts import read_samples

    return read_samples(file_of(data, "rows.jsonl"))


def prompts(data: bytes) -> object:
    from d3cli.cli.options import PromptOptions
    from d3cli.cli.prompts import read_prompts

    return read_prompts(PromptOptions(), file_of(data, "prompts.jsonl"))


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

    path = calibration_store.file_of("someone/fox")
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
        return settings.load_settings(), settings.default_model(), settings.aliases()
    finally:
        path.unlink()


def options(data: bytes) -> object:
    """Percent, depth and time, each as a flag gives it."""
    from d3cli.cli.calibrate.parse import parse_duration, parse_target
    from d3cli.cli.depth import parse_alpha, parse_start
    from d3cli.depth.units import parse_unit

    text = text_of(data)
    results = []
    for parse in (
        parse_target,
        parse_duration,
        parse_alpha,
        lambda t: parse_start(t, 100),
        parse_unit,
    ):
        with contextlib.suppress(D3Error):
            results.append(parse(text))
    return results


def commands(data: bytes) -> object:
    """Slash commands that neither write files nor load models."""
    from d3cli.cli.chat.commands import COMMANDS, run_command

    harmless = {
        name: command
        for name, command in COMMANDS.items()
        if name in ("/help", "/alpha", "/depth", "/set", "/show", "/stats", "/undo", "/clear")
        or name in ("/system", "/bye")
    }
    return run_command(_chat(), "/" + text_of(data), harmless)


_CHATS: list[Any] = []
_SHOWN = io.StringIO()


def _chat() -> Any:
    """One chat with the built-in model, which nobody sees."""
    if not _CHATS:
        from rich.console import Console

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
                *(ChatSettings(), "demo"),
            )
        )
    chat = _CHATS[0]
    _SHOWN.seek(0)
    _SHOWN.truncate()
    return chat


def model_json(data: bytes) -> object:
    from d3cli.files.json_files import read_json
    from d3cli.files.vet_config import vet_config

    config = read_json(file_of(data, "config.json"))
    return vet_config("fuzz", config)


def weights(data: bytes) -> object:
    from d3cli.files.fingerprint import fingerprint
    from d3cli.files.safetensors import describe_directory

    (FOLDER / "config.json").write_text('{"model_type": "llama"}')
    file_of(data, "model.safetensors")
    return describe_directory("fuzz", FOLDER), fingerprint(FOLDER)


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
    )
}

# Where a fuzzer starts from: something that is valid.
SEEDS: dict[str, list[bytes]] = {
    "rows": [b'{"prompt": "a", "response": "b"}\n', b'{"text": "abc"}\n', b'{"messages": []}'],
    "prompts": [b'{"prompt": "a"}\n{"messages": [{"role": "user", "content": "x"}]}\n'],
    "settings": [b'model = "demo"\nalpha = 0.99\n[aliases]\nx = "org/name"\n'],
    "options": [b"1%", b"0.99", b"auto", b"90s", b"12.attn", b"50%", b"1e5", b"\xd9\xa1%"],
    "commands": [b"alpha 0.99", b"set temperature 1", b'system "x"', b"set stop '\\n'", b"depth"],
    "model_json": [b'{"model_type": "llama", "num_hidden_layers": 2, "a": [{"b": null}]}'],
}


def attempt(parse: Parse, data: bytes) -> None:
    """Anything but an error of d3's own is a finding."""
    with contextlib.suppress(D3Error):
        parse(data)


def seeds(name: str) -> list[bytes]:
    if name == "trace":
        from d3cli.profile.trace_file import to_json
        from tests.traces import as_schema_1, made_trace

        trace = to_json(made_trace([4, 4, 3], [10.0, 9.0]))
        return [json.dumps(data).encode() for data in (trace, as_schema_1(trace))]
    if name == "calibration":
        from d3cli.depth import calibration_store
        from tests.records import FOUND, KEY

        return [calibration_store.save(KEY, FOUND).read_bytes()]
    if name == "conversation":
        from d3cli.decode import transcript

        path = FOLDER / "seed.jsonl"
        transcript.write(path, [transcript.ChatMessage("user", "a")])
        return [path.read_bytes()]
    if name == "weights":
        from safetensors.numpy import save

        return [save({"a": np.zeros((2, 3), np.float32), "b.weight": np.ones(1, np.int8)})]
    return SEEDS[name]


def run_atheris(name: str, minutes: float) -> None:
    """Runs in this process, and ends it."""
    import atheris

    looked_into = ["d3cli", "tomllib"]
    with atheris.instrument_imports(include=looked_into), contextlib.suppress(D3Error):
        PARSERS[name](b"")  # imports what it needs
    corpus = FOLDER / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(seeds(name)):
        (corpus / str(number)).write_bytes(seed)
    findings = Path(__file__).parent.parent / "build"
    findings.mkdir(exist_ok=True)
    flags = [f"-max_total_time={int(60 * minutes)}", "-print_final_stats=1", "-rss_limit_mb=4096"]
    flags.append(f"-artifact_prefix={findings}/")
    atheris.Setup([sys.argv[0], *flags, str(corpus)], lambda data: attempt(PARSERS[name], data))
    atheris.Fuzz()


HOSTILE = (
    "\x1b[31m", "\x1b]8;;http://x\x07", "\x1b]52;c;eA==\x1b\\", "\x1bP+q\x1b\\", "\x9b2J",
    "\x90q\x9c", "\x9d0;t\x07", "\x1b_G\x1b\\", "\x1b[?1049h", "\x1bc", "\r", "\x08", "\x7f",
    "\x00", "\u202e", "\u2066", "\u2028", "\ud800", "[bold]", ":smile:", "\n", "\t", "\x0e",
    "\x1b", "[", "]", "m",
)  # fmt: skip


def random_text(rng: random.Random) -> str:
    """Hostile pieces and any code points, mixed."""
    return "".join(
        rng.choice(HOSTILE) if rng.random() < 0.5 else chr(rng.randrange(0x110000))
        for _ in range(rng.randint(0, 30))
    )


def shown_texts(count: int, seed: int) -> int:
    """How many of so many random texts left a byte that d3 did not write."""
    rng = random.Random(seed)
    bad = 0
    for _ in range(count):
        text = random_text(rng)
        if not _is_inert(_shown(text, rng)):
            bad += 1
            print(f"not inert: {text!a}", file=sys.stderr)
    return bad


def _shown(text: str, rng: random.Random) -> str:
    """What every sink makes of it; none of them is a terminal, so d3 itself writes no codes."""
    from d3cli.base.inert import quoted
    from d3cli.cli.output import Output

    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(shown):
        output = Output()
        rest = text
        while rest:
            cut = rng.randint(1, len(rest))
            output.write(rest[:cut])
            rest = rest[cut:]
        output.note(text)
        output.error(text, text)
        output.table(["name"], [[text]])
        output.json({"text": text})
        print(quoted(text))
    return shown.getvalue()


BIDI = {*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F, 0x061C}


def _is_inert(shown: str) -> bool:
    for character in shown:
        code = ord(character)
        if (code < 0x20 and character not in "\n\t") or 0x7F <= code < 0xA0 or code in BIDI:
            return False
        if 0xD800 <= code < 0xE000:
            return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=["all", "inert", *PARSERS])
    parser.add_argument("--minutes", type=float, default=10, help="of each parser")
    parser.add_argument("--texts", type=int, default=100_000, help="for inert")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    os.environ["D3_HOME"] = str(FOLDER / "home")
    if asked.what == "inert":
        began = time.monotonic()
        bad = shown_texts(asked.texts, asked.seed)
        print(f"{asked.texts:,} texts, {bad} not inert, {time.monotonic() - began:.0f} s")
        raise SystemExit(bool(bad))
    if asked.what != "all":
        run_atheris(asked.what, asked.minutes)
        return
    for name in PARSERS:  # each ends its process
        command = [sys.executable, __file__, name, "--minutes", str(asked.minutes)]
        done = subprocess.run(command, capture_output=True, text=True)
        last = [line for line in done.stderr.splitlines() if "number_of_executed_units" in line]
        print(f"{name}: ended with {done.returncode}; {' '.join(last)}", flush=True)
        if done.returncode:
            print(done.stderr[-3000:])
            raise SystemExit(1)


if __name__ == "__main__":
    main()
