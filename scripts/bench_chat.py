"""Times a conversation turn by turn, with and without the KV cache of earlier turns.

Four conversations run side by side, turn by turn, in a changing order: D³ that reads ahead while
the user types; D³ that repairs in the next prefill; D³ that reads the whole conversation again each
turn; and full depth. Replies have a fixed length, so that all four do the same work. Turns pass on
token ids, because the text of random weights does not survive decoding and encoding.

    python scripts/bench_chat.py
    python scripts/bench_chat.py --model DIRECTORY --alpha 0.97 --reply 48
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from d3cli.decode.read_ahead import CHUNK
from d3cli.decode.sampling import SamplingParams
from d3cli.decode.session import Engine
from d3cli.depth.schedule import DepthSchedule
from d3cli.model.load import load_model
from d3cli.model.model import LoadedModel

MESSAGES = (
    "What is 27 + 45?",
    "Tell me a story about a fox.",
    "Why is the sky blue?",
    "Go on.",
    "What is the opposite of warm?",
)
AHEAD, REUSE, AGAIN, FULL = "read ahead", "repaired in the prefill", "read again", "full depth"


@dataclass
class Arm:
    """One conversation, as token ids, and its times, in seconds a turn."""

    model: LoadedModel
    schedule: DepthSchedule
    max_tokens: int
    ids: list[int] = field(default_factory=list)
    ttft: list[float] = field(default_factory=list)
    decode: list[float] = field(default_factory=list)
    ahead: list[float] = field(default_factory=list)
    prompt_tokens: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.engine = Engine(self.model)

    def turn(self, message: Sequence[int], name: str) -> None:
        """Says something, reads the reply, and times both."""
        if name == AGAIN:
            self.engine = Engine(self.model)
        began = time.perf_counter()
        if name == AHEAD:
            for _ in self.engine.read_ahead(self.ids, CHUNK):
                pass
        self.ahead.append(time.perf_counter() - began)
        reply = self.engine.stream_ids(
            [*self.ids, *message],
            schedule=self.schedule,
            sampling=SamplingParams(),
            max_tokens=self.max_tokens,
            ends=(),  # every reply has its full length
        )
        for _ in reply:
            pass
        self.ids = [*reply.prompt_ids, *(token.token_id for token in reply.tokens)]
        assert reply.stats.ttft_s is not None
        self.ttft.append(reply.stats.ttft_s)
        self.decode.append(reply.stats.decode_s)
        self.prompt_tokens.append(len(reply.prompt_ids))

    @property
    def total(self) -> float:
        """What the user waited for, in all."""
        return sum(self.ttft) + sum(self.decode)


def play(
    model: LoadedModel, alpha: float | str, turns: int, reply: int, first: int
) -> dict[str, Arm]:
    """One conversation of `turns` in all four ways; `first` rotates their order."""
    schedule, full = model.schedule(alpha), model.schedule("off")  # type: ignore[arg-type]
    arms = {
        name: Arm(model, full if name == FULL else schedule, reply)
        for name in (AHEAD, REUSE, AGAIN, FULL)
    }
    messages = [model.tokenizer(text)["input_ids"] for text in MESSAGES]
    names = list(arms)
    for turn in range(turns):
        at = (turn + first) % len(names)
        order = names[at:] + names[:at]
        for name in order if turn % 2 else reversed(order):
            arms[name].turn(messages[turn % len(messages)], name)
    return arms


def median(rounds: Sequence[dict[str, Arm]], name: str, turn: int) -> float:
    """TTFT in milliseconds."""
    return 1000 * statistics.median(arms[name].ttft[turn] for arms in rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--alpha", default="auto")
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--reply", type=int, default=64, help="tokens in each reply")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=None)
    arguments = parser.parse_args()
    alpha = arguments.alpha if arguments.alpha in ("auto", "off") else float(arguments.alpha)
    model = load_model(arguments.model, dtype=arguments.dtype, threads=arguments.threads)
    play(model, alpha, 1, 8, 0)  # warm
    rounds = [
        play(model, alpha, arguments.turns, arguments.reply, number)
        for number in range(arguments.rounds)
    ]
    print(
        f"{model.name}, {arguments.turns} turns of {arguments.reply} tokens, "
        f"{arguments.rounds} rounds, medians; TTFT in milliseconds"
    )
    print(f"{'turn':>4} {'prompt':>6}  " + "  ".join(f"{name:>12.12}" for name in rounds[0]))
    for turn in range(arguments.turns):
        times = "  ".join(f"{median(rounds, name, turn):12.0f}" for name in rounds[0])
        print(f"{turn + 1:>4} {rounds[0][REUSE].prompt_tokens[turn]:>6}  {times}")
    schedule = model.schedule(alpha)  # type: ignore[arg-type]
    print("\nthe whole conversation, what the user waits for, over full depth's:")
    for name in (AHEAD, REUSE, AGAIN):
        ratios = sorted(arms[FULL].total / arms[name].total for arms in rounds)
        print(
            f"  {name:<24} {statistics.median(ratios):.2f}× ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        )
    decode = [sum(arms[FULL].decode) / sum(arms[REUSE].decode) for arms in rounds]
    ahead = [sum(arms[AHEAD].ahead) / arguments.turns for arms in rounds]
    bytes_ = model.weight_bytes
    print(
        f"decoding alone: {statistics.median(decode):.2f}×; byte ratio "
        f"{schedule.byte_ratio(arguments.reply, bytes_):.2f}×, net of repair "
        f"{schedule.byte_ratio(arguments.reply, bytes_, net_of_repair=True):.2f}×"
    )
    print(f"reading ahead takes {statistics.median(ahead):.2f} s a turn, while the user types")


if __name__ == "__main__":
    main()
