"""A small model whose layers' worth is known by construction.

Layers 2, 5 and 6 do nothing: their output projections are zero. Layer 4 adds little to the residual
stream, but the LM head reads mainly what it adds. The other layers add much that the head hardly
reads.
"""

import shutil
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from d3cli.model.model import LoadedModel
from d3cli.model.wrap import wrap_model
from d3cli.scoring.documents import Document
from tests.conftest import BUILTIN_PATH
from tests.families import tiny

LAYERS, VOCAB = 9, 61
IDLE, QUIET = (2, 5, 6), 4


def _causal_lm(vocab_size: int = VOCAB, layers: int = LAYERS, width: int = 32) -> Any:
    torch.manual_seed(5)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
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
        model.lm_head.weight[:, 0] = torch.randn(vocab_size) * 8
    return model


@cache
def planted() -> LoadedModel:
    return wrap_model(_causal_lm(), tiny("llama").gated.tokenizer)


@cache
def documents(count: int = 40, response: int = 48) -> tuple[Document, ...]:
    """Sampled from the model itself, so that no schedule does better than full depth."""
    prompts = [[1, 2 + number % (VOCAB - 2), 3 + number // 7] for number in range(count)]
    return tuple(sampled_documents(planted(), prompts, response))


@torch.inference_mode()
def sampled_documents(
    model: LoadedModel, prompts: list[list[int]], response: int
) -> list[Document]:
    """Replies at temperature 1 to prompts of one length, all in one batch and without a cache."""
    ids = torch.tensor(prompts)
    draw = torch.Generator().manual_seed(0)
    for _ in range(response):
        logits = model.causal_lm(ids, use_cache=False).logits[:, -1]
        drawn = torch.multinomial(logits.softmax(-1), 1, generator=draw)
        ids = torch.cat([ids, drawn], dim=1)
    length = len(prompts[0])
    return [Document(row[:length], row[length:]) for row in ids.tolist()]


def write_planted(directory: Path, width: int = 32) -> Path:
    """A model like the planted one as a directory, with the built-in model's tokenizer.

    Its LM head is so faint that all tokens are about equally likely: any text suits it.

    Args:
        width: of the residual stream. With 128, the linears fit the kernels for 8 and 4 bits.
    """
    model = _causal_lm(2048, layers=6, width=width).to(torch.bfloat16)
    with torch.no_grad():
        model.lm_head.weight *= 0.02
    model.save_pretrained(directory)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(BUILTIN_PATH / name, directory / name)
    return directory
