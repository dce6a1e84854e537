"""A tiny model that writes what a test wants, token by token, whatever the prompt says."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GPT2Config

from d3cli.model.model import LoadedModel
from d3cli.model.wrap import wrap_model
from d3cli.text.chat_template import own_template
from d3cli.text.renderer import Renderer


def scripted_lm(size: int, prompt_tokens: int, script: Sequence[int]) -> Any:
    """A GPT-2 of `size` tokens that looks at positions only: the prompt's length, then the script.

    Its layers and token embeddings are zero, and the head maps each position to a token.
    """
    torch.manual_seed(3)
    config = GPT2Config(
        vocab_size=size,
        n_embd=128,
        n_layer=4,
        n_head=2,
        n_positions=512,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for weight in model.transformer.h.parameters():
            weight.zero_()
        model.transformer.wte.weight.zero_()
        model.lm_head.weight.zero_()
        positions = model.transformer.wpe.weight.normal_()
        for at, token in enumerate(script, start=prompt_tokens - 1):
            model.lm_head.weight[token] += positions[at]
    return model.eval()


def scripted(tokenizer: Any, prompt_tokens: int, script: Sequence[int]) -> LoadedModel:
    """The model with a tokenizer, as if it were known by name."""
    renderer = Renderer(trusted=[own_template(tokenizer)])
    size = 1 + max(tokenizer.get_vocab().values())
    return wrap_model(scripted_lm(size, prompt_tokens, script), tokenizer, renderer=renderer)
