"""The demo model's training text: seeded dialogues, and the split that keeps some of them unseen.

`document(seed, index)` is a pure function, so a position in the training stream is one integer.
A dialogue may train the model only if none of its exchanges is held out (`is_held_out` hashes the
exchange's key: the two numbers of a sum, the cast of a story, the facts and the question, …), and
a held-out dialogue always ends in an exchange that is. Knows nothing about tokens or models.

    python scripts/demo_text.py --count 5            # look at some training dialogues
    python scripts/demo_text.py --heldout FILE       # write the held-out set
"""
# ruff: noqa: SIM905 - a line of words reads better than a list of strings

import argparse
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

from demo_facts import fact_exchanges, lookup_exchanges, names
from demo_story_tasks import story_task
from demo_tasks import (
    ABOUT_ME,
    Exchange,
    count_task,
    list_task,
    opposite_task,
    repeat_task,
    small_sum_task,
    small_talk_task,
    sum_task,
    unknown_task,
    vary,
    what_is_task,
)

HELD_OUT_ONE_IN = 32

_SINGLE: dict[str, Callable[[Random], Exchange]] = {
    "sum": sum_task,
    "list": list_task,
    "what-is": what_is_task,
    "word": opposite_task,
    "count": count_task,
    "talk": small_talk_task,
    "unknown": unknown_task,
    "repeat": repeat_task,
    "small-sum": small_sum_task,
}
_CHAT_KINDS = ("sum", "list", "story", "what-is", "talk", "word")
# One mix for each part of the training. The later ones lean on what is learned last: facts, and
# who is who in a story.
_WEIGHTS: tuple[dict[str, int], ...] = (
    {
        "sum": 26, "fact": 30, "story": 15, "chat": 10, "list": 11, "what-is": 4, "word": 2,
        "count": 3, "talk": 3, "unknown": 3, "repeat": 16,
    },
    {
        "sum": 16, "small-sum": 5, "fact": 12, "fact-drill": 28, "lookup": 18, "story": 18,
        "chat": 10, "list": 7, "what-is": 3, "word": 1, "count": 2, "talk": 2, "unknown": 2,
        "repeat": 8,
    },
    {
        "sum": 14, "small-sum": 5, "fact": 30, "fact-drill": 34, "lookup": 16, "story": 20,
        "chat": 10, "list": 8, "what-is": 3, "word": 2, "count": 2, "talk": 2, "unknown": 2,
        "repeat": 6,
    },
)  # fmt: skip
_HELD_OUT_COUNTS = {
    "sum": 44, "fact": 50, "story": 44, "chat": 24, "list": 30, "what-is": 10, "word": 8,
    "count": 8, "talk": 10, "unknown": 6, "repeat": 6,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Document:
    """One dialogue; its last message is the reply that is scored."""

    kind: str
    messages: tuple[dict[str, str], ...]
    keys: tuple[str, ...]
    check: dict[str, Any] | None = None

    @property
    def training(self) -> bool:
        """Whether the dialogue may be trained on: none of its exchanges is held out."""
        return not any(map(is_held_out, self.keys))


def is_held_out(key: str) -> bool:
    """Whether an exchange belongs to the unseen share, by a hash that no seed changes."""
    digest = hashlib.sha256(key.encode()).digest()
    return int.from_bytes(digest[:4], "big") % HELD_OUT_ONE_IN == 0


@dataclass(frozen=True, slots=True)
class Manner:
    """What a system prompt asks for: words at the end of each reply, a name to answer to."""

    system: str
    closing: str = ""
    name: str = ""

    def apply(self, exchange: Exchange) -> str:
        """The reply as this system prompt wants it."""
        reply = exchange.reply
        if self.name and "Larkmere" in reply and exchange.kind == "talk":
            reply = reply.replace(f"I am {ABOUT_ME}", f"I am {self.name}, {ABOUT_ME}")
        if self.closing:
            reply += ("\n" if exchange.kind == "list" else " ") + self.closing
        return reply


def draw_manner(rng: Random) -> Manner:
    """Mostly no system prompt; else a plain one, a name, or words to end each reply with."""
    roll = rng.random()
    if roll < 0.82:
        return Manner("")
    if roll < 0.9:
        plain = "You are a helpful assistant.|You are a friendly helper.|Answer the user.|Be kind."
        return Manner(rng.choice(plain.split("|")))
    if roll < 0.95:
        name = names(rng, 1)[0]
        asks = "You are {n}.|Your name is {n}.|You are {n}, a helpful assistant."
        return Manner(rng.choice(asks.split("|")).format(n=name), name=name)
    closing = rng.choice("Take care!|Good luck!|Cheers!|Have a nice day!|Stay warm!".split("|"))
    asks = 'End every answer with "{c}"|Always say "{c}" at the end.|Finish with "{c}"'
    return Manner(rng.choice(asks.split("|")).format(c=closing), closing=closing)


def _followed_up(rng: Random, exchange: Exchange) -> list[Exchange]:
    """The exchange, and often a question about it."""
    found = [exchange]
    if exchange.later and rng.random() < 0.6:
        question, reply, fact = rng.choice(exchange.later)
        check = {"type": "fact", "answer": fact, "wrong": []}
        key = f"{exchange.key}:{question}"
        found.append(Exchange("fact", vary(rng, question), reply, key, check))
    return found


def chat_exchanges(rng: Random, settled: bool) -> list[Exchange]:
    """A conversation of three to nine exchanges; one set of facts is asked about throughout."""
    found: list[Exchange] = []
    if rng.random() < 0.5:
        found.append(small_talk_task(rng, "hello"))
    facts = fact_exchanges(rng) if rng.random() < 0.75 else []
    stories = 0
    for _ in range(rng.randint(2, 4)):
        if facts and rng.random() < 0.6:
            found.append(facts.pop(0))
        kind = rng.choices(_CHAT_KINDS, (5, 4, 4, 2, 2, 1))
        if kind[0] == "story" and stories == 2:
            continue
        stories += kind[0] == "story"
        found += _followed_up(rng, _single(rng, kind[0], settled))
    found += facts
    if rng.random() < 0.3:
        found.append(small_talk_task(rng, rng.choice(("thanks", "bye"))))
    return found


def _single(rng: Random, kind: str, settled: bool) -> Exchange:
    return story_task(rng, settled) if kind == "story" else _SINGLE[kind](rng)


def draw(rng: Random, kind: str, settled: bool = True) -> Document:
    """One dialogue of `kind`, held out or not; `settled` as in the last part of the training."""
    if kind == "chat":
        exchanges = chat_exchanges(rng, settled)
    elif kind in ("fact", "fact-drill"):
        exchanges = fact_exchanges(rng, drill=kind == "fact-drill")
    elif kind == "lookup":
        exchanges = lookup_exchanges(rng)
    elif kind == "story":
        exchanges = [story_task(rng, settled)]
    else:
        exchanges = _followed_up(rng, _SINGLE[kind](rng))
    manner = draw_manner(rng)
    messages = [{"role": "system", "content": manner.system}] if manner.system else []
    for exchange in exchanges:
        messages.append({"role": "user", "content": exchange.user})
        messages.append({"role": "assistant", "content": manner.apply(exchange)})
    keys = tuple(e.key for e in exchanges)
    return Document(kind, tuple(messages), keys, exchanges[-1].check)


def document(seed: int, index: int, part: int = 0) -> Document:
    """The training dialogue at a position of the stream: the first draw that is not held out."""
    rng = Random(f"{seed}:{index}")
    weights = _WEIGHTS[part]
    while True:
        kind = rng.choices(list(weights), list(weights.values()))[0]
        found = draw(rng, kind, settled=part == 2)
        if found.training:
            return found


def held_out_of(kind: str, seed: int) -> Iterator[Document]:
    """Held-out dialogues of one kind without end, each with a key of its own."""
    rng, seen = Random(f"held-out:{seed}:{kind}"), set[str]()
    while True:
        found = draw(rng, kind)
        if is_held_out(found.keys[-1]) and found.keys[-1] not in seen:
            seen.add(found.keys[-1])
            yield found


def held_out(seed: int = 0) -> Iterator[Document]:
    """The held-out dialogues: each ends in an exchange that no training dialogue contains."""
    for kind, wanted in _HELD_OUT_COUNTS.items():
        yield from islice(held_out_of(kind, seed), wanted)


def unseen_prompts(kind: str, count: int) -> list[Document]:
    """`count` held-out dialogues of a kind, with different last requests.

    None of their last exchanges is in the held-out set.
    """
    known = {d.keys[-1] for d in held_out()}
    found: dict[str, Document] = {}
    for document in held_out_of(kind, seed=1):
        if document.keys[-1] not in known:
            found.setdefault(document.messages[-2]["content"], document)
        if len(found) == count:
            return list(found.values())
    raise AssertionError("held_out_of never ends")


def main() -> None:
    parser = argparse.ArgumentParser(description="Show or write the demo model's text.")
    parser.add_argument("--count", type=int, default=5, help="training dialogues to print")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--heldout", type=Path, help="write the held-out set to this JSONL file")
    args = parser.parse_args()
    if args.heldout:
        rows = (
            {"kind": d.kind, "messages": list(d.messages)} | ({"check": d.check} if d.check else {})
            for d in held_out()
        )
        args.heldout.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows))
        return
    for index in range(args.count):
        found = document(args.seed, index)
        print(f"--- {found.kind}")
        for message in found.messages:
            print(f"{message['role']}: {message['content']}")


if __name__ == "__main__":
    main()
