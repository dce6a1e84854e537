"""Short ways to make replies in tests."""

from typing import Any

from d3cli.decode.reply import Reply
from d3cli.decode.sampling import SamplingParams
from d3cli.decode.session import Engine
from d3cli.depth.schedule import DepthSchedule

STORY = "Tell me a story about a fox."


def ids(reply: Reply) -> list[int]:
    """Generates the reply to its end."""
    for _ in reply:
        pass
    return [token.token_id for token in reply.tokens]


def greedy(engine: Engine, prompt: list[int], schedule: DepthSchedule, **options: Any) -> Reply:
    return engine.stream_ids(prompt, schedule=schedule, sampling=SamplingParams(), **options)
