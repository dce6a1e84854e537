"""Puts a hostile file in its place, beside what its command line needs."""

import json
from functools import cache
from pathlib import Path

from tests.hostile.checks import make_outside
from tests.hostile.one_process import Request
from tests.hostile.stored_registry import Change, Door

WRITTEN = Path(__file__).parent.parent / "data" / "v0.1.0"
ROWS = b'{"prompt": "Hi.", "max_tokens": 2}\n'


def prepare(door: Door, change: Change, folder: Path) -> tuple[Request, Path]:
    """The command that reads the file, and the directory outside, which it must not touch."""
    outside, home, inside = make_outside(folder), folder / "home", folder / "inside"
    home.mkdir()
    inside.mkdir()
    place = (home if door.in_home else inside) / door.file
    place.parent.mkdir(exist_ok=True)
    good = _good(door.name)
    change(place, good, outside)
    (inside / "good").write_bytes(good)
    words = {"FILE": str(place), "GOOD": str(inside / "good")}
    arguments = tuple(words.get(word, word) for word in door.command)
    return Request(arguments, str(inside), str(home)), outside


@cache
def _good(name: str) -> bytes:
    """A good file of this kind."""
    from d3cli.profile.trace_file import read_trace, to_json
    from tests.records import DRAFTS, KEY

    if name == "trace of schema 1":
        return (WRITTEN / "trace.json").read_bytes()
    if name.startswith("trace"):
        return json.dumps(to_json(read_trace(WRITTEN / "trace.json"))).encode()
    if name == "kernel choices":
        return json.dumps(_kernels()).encode()
    if name.startswith("calibration"):
        return (WRITTEN / "calibration.json").read_bytes()
    if name == "draft calibration":
        entry = DRAFTS.to_json() | {
            "fingerprint": KEY.fingerprint,
            "revision": None,
            "dtype": "bfloat16",
            "quantization": None,
        }
        return json.dumps({"schema": 4, "model": "demo", "entries": [], "drafts": [entry]}).encode()
    return ROWS


def _kernels() -> dict[str, object]:
    from dataclasses import asdict

    from d3cli.kernels.choice_file import SCHEMA, Choice, Machine, OnMachine
    from d3cli.kernels.products import Product

    linear = Product.LINEAR
    choice = Choice(2048, 2048, Product.MV, linear, linear, linear, 10.0, 9.0)
    return {"schema": SCHEMA, "machines": [asdict(OnMachine(Machine.here(), (choice,)))]}
