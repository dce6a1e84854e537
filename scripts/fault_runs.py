"""Runs of a command under a fault, for ``scripts/faults.py``, and what is wrong with them."""

import atexit
import hashlib
import json
import shutil
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from safetensors.torch import load_file, save_file

from d3cli.files.checksums import METADATA
from d3cli.model.memory import CUDA_BUILD, PROGRAM
from tests.conftest import BUILTIN_PATH
from tests.forks import Ended, Forks

PROMPT = "Tell me a story about a fox."
# Long enough to decide the order of the layers by itself.
LONG_PROMPT = (
    "Tell me a story about a fox, a wolf and a bear who live in a wood and find a red ball."
)
FOLDER = Path(tempfile.mkdtemp(prefix="d3-faults-"))
FETCHED = str(FOLDER / "fetched")  # the built-in model as if it came from the hub: not calibrated
DRAFT = str(FOLDER / "draft")  # its first layers
atexit.register(shutil.rmtree, FOLDER, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class Command:
    """A command line, and what is typed.

    Attributes:
        arguments: `HOME` in one, or in what is typed, stands for the directory of d3's files.
        typed: in a chat Ctrl-C ends a reply and drops what was typed ahead, so /bye is typed
            several times. A line that failed is back in the prompt, so Ctrl-U clears it first.
        loads: whether it loads a model for a second or more, which can be another than the
            built-in one if it comes after the first word, or after `score`.
        writes: whether it writes files.
        may_fail: whether an error is no problem: a calibration may lack time or memory.
        needs: a file that must be there: a function of `tests.writers`.
    """

    arguments: tuple[str, ...]
    typed: str = ""
    loads: bool = True
    writes: bool = False
    may_fail: bool = False
    env: Mapping[str, str] = field(default_factory=dict)
    needs: str = ""


HOME = "{home}"
BYE = "\x15/bye\n" * 8
CALIBRATE = ("calibrate", "--max-time", "10s")
MEASURED = {"D3_KERNELS": "auto"}  # tests measure no kernels; these commands do
COMPLETED = {"_D3_COMPLETE": "complete_bash", "COMP_WORDS": "d3 generate de", "COMP_CWORD": "2"}
# Beside the program, room for some of the built-in model's layers.
ON_CPU = PROGRAM + (CUDA_BUILD if torch.version.cuda else 0) + 6_000_000
ON_DISK = f"cpu={ON_CPU // 10**6}MB,disk=1GB"
BATCH = ("generate", "--input", str(FOLDER / "rows.jsonl"), "--max-tokens", "12")
TASK = ("--task", str(FOLDER / "task.jsonl"), "--max-tokens", "8")
COMMANDS: dict[str, Command] = {
    "generate": Command(("generate", PROMPT, "--seed", "1")),
    "generate --json": Command(("generate", PROMPT, "--json")),
    "generate --lossless": Command(("generate", PROMPT, "--lossless")),
    "generate --draft-model": Command(("generate", PROMPT, "--draft-model", DRAFT)),
    "generate by prompt": Command(
        ("generate", FETCHED, LONG_PROMPT, "--alpha", "0.99", "--units", "sublayer", "--start", "4")
    ),
    "generate in int8": Command(("generate", PROMPT, "--quantization", "int8")),
    "generate in int4": Command(("generate", PROMPT, "--quantization", "int4")),
    "generate nested": Command(("generate", PROMPT, "--quantization", "nested", "--alpha", "0.99")),
    "generate on disk": Command(
        ("generate", PROMPT, "--dtype", "bfloat16", "--max-tokens", "40", "--max-memory", ON_DISK)
    ),
    "generate --input": Command(BATCH),
    "generate to a file": Command(
        (*BATCH, "--batch-size", "2", "--output-file", f"{HOME}/results.jsonl"), writes=True
    ),
    "chat": Command(
        ("chat",), "\x15Hello.\n\x15Tell me a story.\n\x15/compare\n" + BYE, writes=True
    ),
    "chat --lossless": Command(
        ("chat", "--lossless"), "\x15Tell me a story.\n\x15/lossless depth\n\x15Go on.\n" + BYE,
        writes=True,
    ),
    "chat --draft-model": Command(
        ("chat", "--draft-model", DRAFT), "\x15Tell me a story.\n" + BYE, writes=True
    ),
    "chat /export": Command(
        ("chat",), f"\x15Hello.\n\x15/export {HOME}/talk.md\n\x15/save {HOME}/copy\n" + BYE,
        writes=True,
    ),
    "chat --list": Command(("chat", "--list"), loads=False, needs="conversation"),
    "chat --delete": Command(
        ("chat", "--delete", "mine", "--yes"), loads=False, writes=True, needs="conversation"
    ),
    "profile": Command(("profile", "--prompt", PROMPT, "-o", "json")),
    "profile --compare": Command(("profile", "--prompt", PROMPT, "--compare", "-o", "html")),
    "profile --lossless": Command(("profile", "--prompt", PROMPT, "--lossless")),
    "profile to a file": Command(
        ("profile", "--prompt", PROMPT, "--output-file", f"{HOME}/trace.json"), writes=True
    ),
    "calibrate": Command((*CALIBRATE, "--target-drop", "5%"), writes=True, may_fail=True),
    "calibrate for drafts": Command(
        (*CALIBRATE, "--for", "lossless", "--documents", "32"), writes=True, may_fail=True
    ),
    "calibrate --task": Command((*CALIBRATE, *TASK[:2]), may_fail=True),
    "calibrate nested": Command((*CALIBRATE, "--quantization", "nested"), may_fail=True),
    "calibrate --compare-policies": Command((*CALIBRATE, "--compare-policies"), may_fail=True),
    "calibrate score": Command(("calibrate", "score", *TASK)),
    "calibrate show": Command(("calibrate", "show"), loads=False),
    "calibrate remove": Command(("calibrate", "remove"), loads=False, may_fail=True),
    "models": Command(("models",), loads=False),
    "models default": Command(("models", "default", "demo"), loads=False, writes=True),
    "models verify": Command(("models", "verify", FETCHED), loads=False),
    "models --disk": Command(("models", "--disk"), loads=False),
    "doctor": Command(("doctor", "--json"), writes=True, env=MEASURED),
    "doctor --tune": Command(("doctor", "--tune"), writes=True, env=MEASURED, may_fail=True),
    "completion": Command((), loads=False, env=COMPLETED),
}  # fmt: skip
ALLOWED = {0, 129, 130, 143}  # and 1, 2 and 3 if an error says why
WITH_A_MODEL = tuple(name for name, command in COMMANDS.items() if command.loads)
WRITERS = tuple(name for name, command in COMMANDS.items() if command.writes)


class ImpossibleError(Exception):
    """The fault cannot be made on this machine, or by this user."""


@cache
def write_inputs() -> None:
    """Writes the files that the commands read."""
    heroes = ("a fox", "a bear", "rain", "an owl", "a cow", "the sea", "a red ball", "a king")
    rows = [{"prompt": f"Tell me a story about {hero}."} for hero in heroes]
    questions = [{"prompt": f"What is {n} + 2?", "answers": [str(n + 2)]} for n in range(10)]
    for name, found in (("rows", rows), ("task", questions)):
        text = "".join(f"{json.dumps(row)}\n" for row in found)
        (FOLDER / f"{name}.jsonl").write_text(text)
    model = Path(FETCHED)
    shutil.copytree(BUILTIN_PATH, model)
    (model / METADATA).mkdir(parents=True)
    for file in BUILTIN_PATH.iterdir():
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        (model / METADATA / f"{file.name}.metadata").write_text(f"{'0' * 40}\n{digest}\n1.0\n")
    _write_draft(Path(DRAFT))


def _write_draft(path: Path, layers: int = 4) -> None:
    """Writes the built-in model's first layers as a model of its own."""
    shutil.copytree(BUILTIN_PATH, path)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": layers}))
    kept = {
        name: tensor
        for name, tensor in load_file(path / "model.safetensors").items()
        if not name.startswith("model.layers.") or int(name.split(".")[2]) < layers
    }
    save_file(kept, path / "model.safetensors", {"format": "pt"})


def problems(ended: Ended, *, may_fail: bool = False) -> Iterator[str]:
    """Yields what is wrong with how a command ended."""
    if any(word in ended.err for word in ("Traceback", "internal error", "Exception ignored")):
        yield f"shows its internals: {ended.err[-300:]}"
    told = ended.err.count("error: ") == 1
    if ended.code not in ALLOWED and not (ended.code in (1, 2, 3) and told and may_fail):
        yield f"ended with {ended.code}: {ended.err[-300:]}"


def broken_files(home: Path) -> Iterator[str]:
    """Yields the files under a home that cannot be parsed."""
    for path in home.rglob("*"):
        try:
            if path.suffix == ".json":
                json.loads(path.read_text())
            elif path.suffix == ".toml":
                tomllib.loads(path.read_text())
            elif path.suffix == ".jsonl" and path.is_file():
                for line in path.read_text().splitlines():
                    json.loads(line)
        except ValueError as error:
            yield f"{path.name} is broken: {error}"


def prepare(forks: Forks, command: Command, home: Path) -> None:
    """Writes the file that a command needs, if the fault lets it be written."""
    if command.needs:
        forks.call(command.needs, str(home), "1", env={"D3_HOME": str(home)})


def run_one(
    forks: Forks,
    name: str,
    *more: str,
    model: Path | None = None,
    home: Path | None = None,
    terminal: bool = False,
    may_fail: bool = True,
    env: dict[str, str] | None = None,
    **settings: Any,
) -> Iterator[str]:
    """Runs a command in a new home; yields what is wrong with how it ended and what it left.

    Args:
        name: a key of `COMMANDS`.
        more: arguments added to its own.
        model: runs in place of the built-in model.
        terminal: run it at a terminal even if nothing is typed.
        may_fail: an error is no problem if it says why.
    """
    write_inputs()
    command = COMMANDS[name]
    with tempfile.TemporaryDirectory() as folder:
        home = home or Path(folder)
        prepare(forks, command, home)
        words = [word.replace(HOME, str(home)) for word in command.arguments]
        if model is not None:
            words.insert(2 if "score" in words[:2] else 1, str(model))
        ended = forks.run(
            *words,
            *more,
            stdin=command.typed.replace(HOME, str(home)),
            terminal=terminal or bool(command.typed),
            env={"D3_HOME": str(home)} | dict(command.env) | (env or {}),
            **settings,
        )
        found = problems(ended, may_fail=may_fail or command.may_fail)
        for problem in (*found, *broken_files(home)):
            yield f"{name}: {problem}"
