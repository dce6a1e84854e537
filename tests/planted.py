"""A small model whose layers' worth is known by construction.

Layer 2, 5 and 6 do nothing: their output projections are zero. Layer 4 adds little to the residual
stream, and all that it adds is what the LM head listens to. The others add much, which the head
hardly hears.
"""

from functools import cache

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from d3cli.calibrate.own_replies import write_reply
from d3cli.depth.schedule import DepthSchedule
from d3cli.model.model import LoadedModel
from d3cli.model.wrap import wrap_model
from d3cli.scoring.documents import Document
from tests.families import tiny

LAYERS, VOCAB = 9, 61
IDLE, QUIET = (2, 5, 6), 4


@cache
def planted() -> LoadedModel:
    torch.manual_seed(5)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        initializer_range=0.25,
        tie_word_embeddings=False,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=None,
    )
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        model.model.embed_tokens.weight[:, 0] = 0
        for index, layer in enumerate(model.model.layers):
            for projection in (layer.self_attn.o_proj, layer.mlp.down_proj):
                if index in IDLE:
                    projection.weight.zero_()
                elif index == QUIET:
                    projection.weight[1:] = 0
                    projection.weight[0] *= 0.5
                else:
                    projection.weight[0] = 0
        model.lm_head.weight[:, 1:] *= 0.25
        model.lm_head.weight[:, 0] = torch.randn(VOCAB) * 8
    return wrap_model(model, tiny("llama").gated.tokenizer)


@cache
def documents(count: int = 40, response: int = 48) -> tuple[Document, ...]:
    """The model's own replies, so that full depth is the best that there is."""
    full = DepthSchedule.full(LAYERS)
    prompts = [[1, 2 + number % (VOCAB - 2), 3 + number // 7] for number in range(count)]
    return tuple(
        write_reply(planted(), prompt, full, response, seed) for seed, prompt in enumerate(prompts)
    )
