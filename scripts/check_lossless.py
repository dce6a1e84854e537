"""Counts tokens of lossless replies that differ from full depth's, in all families by all sources.

    python scripts/check_lossless.py                    # 100,000 tokens in float32, some minutes
    python scripts/check_lossless.py --tokens 10000

Tiny random models of every family write greedy replies to random prompts: plainly, then drafted by
looking up, by depth (layers, sublayers, low planes, or a mix of all), by another model, by the
reply itself with wrong tokens in it, and by noise. One engine writes all replies of a family, one
turn after the other, so each cache goes through what all sources leave in it. Exits with 1 if a
token differs.
"""

import argparse
import sys
from itertools import count
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
from d3cli.decode.draft.by_depth import DepthSource
from d3cli.decode.draft.by_model import ModelSource
from d3cli.decode.draft.lookup import LookupSource
from d3cli.decode.draft.source import DraftSource
from d3cli.decode.session import Engine
from d3cli.depth.schedule import DepthSchedule
from d3cli.model.model import LoadedModel
from tests.decode.draft.fixed import Always, Listed
from tests.decode.replies import greedy, ids
from tests.families import FAMILY_NAMES, LAYERS, Tiny, case, random_ids, tiny, units_of

# Of a context of 256 tokens.
PROMPT, REPLY = 40, 200
FULL = DepthSchedule.full(LAYERS)


def sources(
    model: LoadedModel, other: LoadedModel, prompt: list[int], reply: list[int]
) -> dict[str, DraftSource]:
    return {
        "lookup": LookupSource(),
        "depth": DepthSource(model),
        "model": ModelSource(model, other),
        "the reply, each fifth token wrong": Listed(len(prompt), reply, wrong_every=5),
        "noise": Listed(len(prompt), []),
    }


def check(model: Tiny, schedule: DepthSchedule, seed: int) -> dict[str, tuple[int, int]]:
    """Tokens, and those of them that differ, of one prompt's replies by each source."""
    prompt = random_ids(PROMPT, seed)
    expected = ids(greedy(Engine(model.gated), prompt, FULL, max_tokens=REPLY))
    engine, found = Engine(model.gated), {}
    for name, source in sources(model.gated, tiny("llama").gated, prompt, expected).items():
        reply = greedy(engine, prompt, schedule, max_tokens=REPLY, drafter=Always(source))
        wrong = sum(a != b for a, b in zip(ids(reply), expected, strict=True))
        found[name] = (len(expected), wrong)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tokens", type=int, default=100_000)
    asked = parser.parse_args()
    torch.set_num_threads(1)  # tiny products
    totals: dict[str, tuple[int, int]] = {}
    written = wrong = 0
    for seed in count():
        if written >= asked.tokens:
            break
        name = FAMILY_NAMES[seed % len(FAMILY_NAMES)]
        units = units_of(name)
        kind = units[(seed // len(FAMILY_NAMES)) % len(units)]
        model, schedule = case(name, kind)
        for source, (tokens, differing) in check(model, schedule, seed).items():
            before = totals.get(source, (0, 0))
            totals[source] = before[0] + tokens, before[1] + differing
            written, wrong = written + tokens, wrong + differing
        print(f"{written:,} tokens, {wrong} differ ({name}, {kind})", file=sys.stderr)
    print("| drafts | tokens | differ |\n|---|---|---|")
    for source, (tokens, differing) in totals.items():
        print(f"| {source} | {tokens:,} | {differing} |")
    raise SystemExit(1 if wrong else 0)


if __name__ == "__main__":
    main()
