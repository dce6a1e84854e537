"""At full depth, d3 writes what transformers writes from the same file."""

from typing import Any

import torch

from d3cli.base.errors import D3Error
from d3cli.decode.batch import write_together
from d3cli.decode.session import Engine
from d3cli.depth.schedule import DepthSchedule
from d3cli.model.model import LoadedModel
from tests.decode.replies import greedy, ids
from tests.real.conftest import encode, long_replies

pytestmark = long_replies

# Of different lengths and kinds. Each reply has 256 tokens, so 2,048 tokens are compared.
QUESTIONS = (
    "Why is the sky blue?",
    "Tell me a story about a fox who is afraid of the dark, and about the friend who helps it.",
    "Write a Python function that returns the median of a list of numbers, with a test.",
    "I have 27 apples, give away 9 and buy two bags of 12. How many do I have? Explain each step.",
    "List ten things to pack for a week in the mountains in autumn, with a reason for each.",
    "Translate into French: Good morning, I would like a coffee and two croissants, please.",
    "Compare cats and dogs as pets.",
    "Write a letter to a landlord about a broken heater. Be polite, name the days on which someone "
    "can come, and mention that it is the second letter about it.",
)
NEW_TOKENS = 256


def test_2000_tokens_equal_transformers(real: LoadedModel, plain: Any) -> None:
    """transformers writes all replies in one batch, d3 half of them one by one, half together.

    Both go on after an end token, so that each reply has its full length. A batch rounds in another
    order than a single row. So the two could differ where the best two logits are closer than
    about 1e-4; on these prompts no two are.
    """
    prompts = [encode(real.tokenizer, question) for question in QUESTIONS]
    expected = _transformers_replies(plain, prompts)
    full = DepthSchedule.full(real.num_layers)
    replies = [
        greedy(Engine(real), prompt, full, max_tokens=NEW_TOKENS, ends=()) for prompt in prompts
    ]
    half = len(replies) // 2
    for reply in replies[:half]:
        ids(reply)
    for _, chunk in write_together(replies[half:], half):
        assert not isinstance(chunk, D3Error)
    for prompt, reply, theirs in zip(prompts, replies, expected, strict=True):
        ours = [token.token_id for token in reply.tokens]
        assert ours == theirs, _first_difference(plain, prompt, ours, theirs)
    assert sum(map(len, expected)) >= 2000


def _transformers_replies(plain: Any, prompts: list[list[int]]) -> list[list[int]]:
    """Greedy replies by transformers' `generate`, from one batch padded on the left."""
    width = max(map(len, prompts))
    # The padding is masked, so any token serves.
    padded = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    plain.generation_config.eos_token_id = None
    found = plain.generate(
        padded, attention_mask=mask, max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0
    )
    return found[:, width:].tolist()


def _first_difference(plain: Any, prompt: list[int], ours: list[int], theirs: list[int]) -> str:
    """Where two replies part, and how close transformers' best two logits are there."""
    step = next(n for n, pair in enumerate(zip(ours, theirs, strict=True)) if pair[0] != pair[1])
    with torch.inference_mode():
        logits = plain(torch.tensor([[*prompt, *theirs[:step]]]), use_cache=False).logits[0, -1]
    best, second = logits.topk(2).values.tolist()
    return f"token {step} differs; the best logit leads by {best - second:.2g}"
