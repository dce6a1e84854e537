"""Measures everything that docs/demo-model.md states about the built-in model.

Perplexity over the replies of the held-out dialogues at constant depths and under a depth
schedule, and the free-running replies to held-out prompts. The skip order and the schedule are
chosen on the even rows of the held-out set; every perplexity printed is over the odd rows. The
prompts are others: 50 each of sums, facts, lists and stories, checked by `is_right`.

    python scripts/eval_demo_model.py
    python scripts/eval_demo_model.py --prompts --json result.json
    python scripts/eval_demo_model.py --stories --show
    python scripts/eval_demo_model.py --model DIR
"""

import argparse
import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from demo_story_check import faults, role_faults
from demo_text import unseen_prompts
from demo_world import CATEGORIES

from d3cli.decode.loop import DecodedToken
from d3cli.decode.sampling import SamplingParams
from d3cli.decode.session import Engine
from d3cli.depth.schedule import DepthSchedule
from d3cli.model.load import load_model
from d3cli.model.model import LoadedModel
from d3cli.scoring.documents import Document
from d3cli.scoring.one_pass import score
from d3cli.text.chat_template import encode_chat

BUILTIN = Path(__file__).parent.parent / "d3cli" / "builtin"
CORE = 4
AT_ONCE = 1e-9  # an alpha so small that the whole skip order goes at token 1
PROMPTS = {"sum": 50, "fact": 50, "list": 50, "story": 50}


@dataclass(frozen=True, slots=True)
class Row:
    """A held-out dialogue, as text and as ids."""

    kind: str
    messages: list[dict[str, str]]
    check: dict[str, Any] | None
    document: Document


def read_rows(path: Path, model: LoadedModel) -> list[Row]:
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        prompt = encode_chat(model.tokenizer, row["messages"][:-1], model.text.renderer)
        reply = model.tokenizer.encode(row["messages"][-1]["content"], add_special_tokens=False)
        document = Document(prompt, [*reply, model.tokenizer.eos_token_id])
        rows.append(Row(row["kind"], row["messages"], row.get("check"), document))
    return rows


def losses(
    model: LoadedModel, rows: Sequence[Row], schedule: DepthSchedule, batch: int = 12
) -> list[torch.Tensor]:
    """The negative log-probabilities of each reply's tokens, rows in order."""
    by_length = sorted(range(len(rows)), key=lambda i: len(rows[i].document))
    found: dict[int, torch.Tensor] = {}
    for begin in range(0, len(rows), batch):
        chosen = by_length[begin : begin + batch]
        scores = score(model, [rows[i].document for i in chosen], schedule)
        found |= {i: -s.log_probs for i, s in zip(chosen, scores, strict=True)}
    return [found[i] for i in range(len(rows))]


def ppl(loss: Sequence[torch.Tensor]) -> float:
    return math.exp(float(torch.cat(list(loss)).mean()))


def interval(full: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> tuple[float, float]:
    """95% bootstrap interval over documents of the relative rise in perplexity."""
    counts = torch.tensor([len(row) for row in full], dtype=torch.float64)
    rise = torch.stack([(b - a).sum() for a, b in zip(full, other, strict=True)])
    generator = torch.Generator().manual_seed(0)
    picks = torch.randint(len(counts), (2000, len(counts)), generator=generator)
    drops = (rise[picks].sum(1) / counts[picks].sum(1)).exp() - 1
    low, high = drops.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


def constant(model: LoadedModel, order: Sequence[str]) -> DepthSchedule:
    """Drops all of `order` from the first decode step on."""
    return DepthSchedule(model.num_layers, AT_ONCE, 0, CORE, CORE, tuple(order))


def measure_order(model: LoadedModel, rows: Sequence[Row]) -> list[str]:
    """The greedy skip order: next goes the flex layer that costs least, at constant depth."""
    order: list[str] = []
    left = [str(layer) for layer in range(CORE, model.num_layers - CORE)]
    while left:
        cost = {u: ppl(losses(model, rows, constant(model, [*order, u]))) for u in left}
        order.append(min(left, key=cost.__getitem__))
        left.remove(order[-1])
        print(f"  drop {order[-1]:>2}: perplexity {cost[order[-1]]:.4f}", flush=True)
    return order


def wrong(check: dict[str, Any], reply: str) -> list[str]:
    """What is wrong with a reply: a sum, a list of N members of its category, a fact, a story."""
    if check["type"] == "sum":
        found = re.findall(r"answer is (-?\d+)", reply)
        return [] if found[-1:] == [str(check["answer"])] else [f"not {check['answer']}"]
    if check["type"] == "story":
        return [
            *faults(reply, check["cast"], check["kinds"], check["count"]),
            *role_faults(reply),
        ]
    if check["type"] == "list":
        items = re.findall(r"^\d+\. (.+)$", reply, re.MULTILINE)
        known = {item.lower() for item in CATEGORIES[check["category"]]}
        right = {item.strip().lower() for item in items} & known
        fits = len(items) == len(right) == check["n"]
        return [] if fits else [f"not {check['n']} {check['category']}"]

    def says(word: str) -> bool:
        return re.search(rf"\b{re.escape(word)}\b", reply) is not None

    found = [] if says(check["answer"]) else [f"no {check['answer']}"]
    return found + [f"says {word}" for word in check["wrong"] if says(word)]


def most_repeated(tokens: Sequence[DecodedToken]) -> int:
    """The count of the most frequent 4-gram of token ids."""
    ids = [token.token_id for token in tokens]
    return max(Counter(zip(ids, ids[1:], ids[2:], ids[3:], strict=False)).values(), default=0)


def answer_prompts(
    model: LoadedModel, kinds: Sequence[str], schedule: DepthSchedule, show: bool
) -> dict[str, Any]:
    """Greedy replies to the held-out prompts of some kinds, counted by kind."""
    counts: dict[str, Counter[str]] = {}
    depths: list[float] = []
    for kind in kinds:
        count = counts[kind] = Counter()
        for document in unseen_prompts(kind, PROMPTS[kind]):
            reply = Engine(model).stream(
                list(document.messages[:-1]),
                schedule=schedule,
                sampling=SamplingParams(),
                max_tokens=400,
            )
            for _ in reply:
                pass
            found = wrong(document.check or {}, reply.text)
            count["prompts"] += 1
            count["right"] += not found
            count["ended"] += reply.finish_reason == "stop"
            count["loops"] += most_repeated(reply.tokens) > 3
            if kind == "story":
                depths.append(schedule.mean_depth(len(reply.tokens)))
            if show and (found or kind == "story"):
                asked = document.messages[-2]["content"]
                print(f"  {found or 'right'}: {asked!r} -> {reply.text!r}", flush=True)
    total = sum(counts.values(), Counter())
    story_depth = sum(depths) / max(1, len(depths))
    return {"by_kind": counts, "total": total, "mean_story_depth": story_depth}


def read_schedule(path: Path) -> DepthSchedule:
    return DepthSchedule.from_json(json.loads(path.read_text(encoding="utf-8")))


def measure_depths(
    model: LoadedModel, heldout: Path, schedule: DepthSchedule | None
) -> dict[str, Any]:
    """The skip order, and perplexity at constant depths and under the schedule."""
    rows = read_rows(heldout, model)
    chosen_on, unseen = rows[0::2], rows[1::2]
    order = measure_order(model, chosen_on)
    tested = {f"depth {model.num_layers}": DepthSchedule.full(model.num_layers)}
    for dropped in (2, 4, 6, 8):
        tested[f"depth {model.num_layers - dropped}"] = constant(model, order[:dropped])
    if schedule is not None:
        tested["schedule"] = schedule
    full = losses(model, unseen, DepthSchedule.full(model.num_layers))
    stories = [i for i, row in enumerate(unseen) if row.kind == "story"]
    result: dict[str, Any] = {"order": order, "perplexity": {}}
    print(f"{len(unseen)} dialogues, {sum(map(len, full)):,} reply tokens, order {order}")
    for name, tried in tested.items():
        loss = losses(model, unseen, tried)
        low, high = interval(full, loss)
        row = {"perplexity": ppl(loss), "rise": ppl(loss) / ppl(full) - 1, "interval": (low, high)}
        row["stories"] = ppl([loss[i] for i in stories])
        result["perplexity"][name] = row
        print(
            f"{name:>9}: {row['perplexity']:.4f}  {row['rise']:+.2%} [{low:+.2%}, {high:+.2%}]"
            f"  stories {row['stories']:.4f}",
            flush=True,
        )
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the demo model on its held-out text.")
    parser.add_argument("--model", type=Path, default=BUILTIN, help="default: the built-in model")
    parser.add_argument("--heldout", type=Path, default=BUILTIN / "heldout.jsonl")
    parser.add_argument("--schedule", type=Path, help="default: schedule.json of the model")
    parser.add_argument("--prompts", action="store_true", help="also answer the prompts")
    parser.add_argument("--stories", action="store_true", help="only the prompts for stories")
    parser.add_argument("--show", action="store_true", help="print stories and wrong replies")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()

    model = load_model(str(args.model), threads=args.threads)
    stored = args.schedule or args.model / "schedule.json"
    schedule = read_schedule(stored) if stored.exists() else None
    result = {} if args.stories else measure_depths(model, args.heldout, schedule)
    if args.prompts or args.stories:
        kinds = ["story"] if args.stories else list(PROMPTS)
        runs = {"full depth": DepthSchedule.full(model.num_layers)}
        runs |= {"schedule": schedule} if schedule else {}
        for name, tried in runs.items():
            result[f"prompts, {name}"] = found = answer_prompts(model, kinds, tried, args.show)
            print(f"{name}: story depth {found['mean_story_depth']:.2f}, {dict(found['total'])}")
            for kind, count in found["by_kind"].items():
                print(f"  {kind:>8}: {dict(count)}")
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
