"""Fuzzes every parser with random input, and every place that shows text with random text.

    python scripts/fuzz.py inert --texts 100000
    pip install atheris && python scripts/fuzz.py trace --minutes 10
    python scripts/fuzz.py all --minutes 10

Parsers run under atheris (libFuzzer), which looks for input that reaches new code. A parser may
raise errors of d3's own and no others. `inert` cuts random texts into random chunks, writes them as
replies, notes, errors and tables, and checks every character that comes out. tests/test_fuzz.py
runs a slice of this, and holds what was found.
"""

import argparse
import contextlib
import io
import os
import random
import subprocess
import sys
import time
from pathlib import Path

from fuzz_parsers import FOLDER, PARSERS, attempt, seeds

from d3cli.base.errors import D3Error


def run_atheris(name: str, minutes: float) -> None:
    """Fuzzes one parser; atheris then ends this process."""
    import atheris

    looked_into = ["d3cli", "tomllib", "h11", "uvicorn"]
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
    """Hostile pieces mixed with any code points."""
    return "".join(
        rng.choice(HOSTILE) if rng.random() < 0.5 else chr(rng.randrange(0x110000))
        for _ in range(rng.randint(0, 30))
    )


def shown_texts(count: int, seed: int) -> int:
    """Shows `count` random texts; returns how many were not inert."""
    rng = random.Random(seed)
    bad = 0
    for _ in range(count):
        text = random_text(rng)
        if not _is_inert(_shown(text, rng)):
            bad += 1
            print(f"not inert: {text!a}", file=sys.stderr)
    return bad


def _shown(text: str, rng: random.Random) -> str:
    """The text as every output writes it. None is a terminal, so d3 itself writes no codes."""
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
    parser.add_argument("--minutes", type=float, default=10, help="per parser")
    parser.add_argument("--texts", type=int, default=100_000, help="number of texts for `inert`")
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
    for name in PARSERS:  # atheris ends the process
        command = [sys.executable, __file__, name, "--minutes", str(asked.minutes)]
        done = subprocess.run(command, capture_output=True, text=True)
        last = [line for line in done.stderr.splitlines() if "number_of_executed_units" in line]
        print(f"{name}: ended with {done.returncode}; {' '.join(last)}", flush=True)
        if done.returncode:
            print(done.stderr[-3000:])
            raise SystemExit(1)


if __name__ == "__main__":
    main()
