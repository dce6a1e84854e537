"""One greedy story of the built-in model, or of another: its tokens, by d3 and by transformers."""

from typing import Any

import torch

from d3cli.decode.sampling import SamplingParams
from d3cli.decode.session import Engine
from d3cli.depth.schedule import DepthSchedule
from d3cli.model.model import LoadedModel

PROMPT = "Tell me a story about a fox."
NEW_TOKENS = 24
GREEDY = SamplingParams()


def tokens(model: LoadedModel, schedule: DepthSchedule) -> list[int]:
    reply = Engine(model).stream(PROMPT, schedule=schedule, sampling=GREEDY, max_tokens=NEW_TOKENS)
    return [chunk.token_id for chunk in reply]


def prompt_ids(model: LoadedModel) -> list[int]:
    return Engine(model).stream(PROMPT, max_tokens=1).prompt_ids


def tokens_of_transformers(causal_lm: Any, model: LoadedModel) -> list[int]:
    """What a plain model writes to the prompt as `model` encodes it."""
    prompt = torch.tensor([prompt_ids(model)])
    found = causal_lm.generate(prompt, max_new_tokens=NEW_TOKENS, do_sample=False)
    return found[0, prompt.shape[1] :].tolist()
