"""Tiny random models, one of each supported family, built from a config in memory."""

from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

from d3cli.layers import find_family
from d3cli.model import LoadedModel, wrap_model
from d3cli.schedule import DepthSchedule
from tests.reference import Reference

VOCAB = 131
LAYERS = 8
WINDOW = 7  # shorter than the tests' prompts and replies

_SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 80,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "initializer_range": 0.15,  # large, so that every layer matters
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}
_MIXED = ["sliding_attention", "full_attention"] * (LAYERS // 2)

CONFIGS: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**_SHAPE),
    "mistral": MistralConfig(**_SHAPE, sliding_window=WINDOW),
    "qwen3": Qwen3Config(**_SHAPE),
    "qwen3-sliding": Qwen3Config(
        **_SHAPE, use_sliding_window=True, sliding_window=WINDOW, layer_types=_MIXED[::-1]
    ),
    "gemma2": Gemma2Config(
        **_SHAPE, sliding_window=WINDOW, query_pre_attn_scalar=8, layer_types=_MIXED
    ),
    "gemma3": Gemma3TextConfig(
        **_SHAPE, sliding_window=WINDOW, query_pre_attn_scalar=8, layer_types=_MIXED
    ),
    "gpt2": GPT2Config(
        vocab_size=VOCAB,
        n_embd=32,
        n_layer=LAYERS,
        n_head=4,
        n_positions=256,
        initializer_range=0.15,
        bos_token_id=1,
        eos_token_id=None,
    ),
}
FAMILY_NAMES = tuple(CONFIGS)


@dataclass(frozen=True)
class Tiny:
    """One family: gated by d3cli, plain as transformers builds it, and the slow reference."""

    gated: LoadedModel
    plain: Any
    reference: Reference


def random_model(config: PretrainedConfig, attention: str) -> Any:
    torch.manual_seed(7)
    # A copy: the attention implementation is written into the config.
    model = AutoModelForCausalLM.from_config(deepcopy(config), attn_implementation=attention)
    for parameter in model.parameters():
        if parameter.ndim == 1:  # norms and biases begin at 0 or 1: nothing would test them
            parameter.data.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def word_tokenizer() -> PreTrainedTokenizerFast:
    """One word a token: "w17" is token 17."""
    backend = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCAB)}, unk_token="w0"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="w0")


@cache
def tiny(name: str) -> Tiny:
    config = CONFIGS[name]
    family = find_family(config.model_type)
    plain = random_model(config, family.attention)
    eager = random_model(config, "eager")
    layers = eager.base_model.get_submodule(family.stack)
    gated = wrap_model(random_model(config, family.attention), word_tokenizer(), name=name)
    return Tiny(gated, plain, Reference(eager, layers, family.attn, family.mlp))


def whole_layers(alpha: float = 0.93, start: int = 2) -> DepthSchedule:
    """Drops layers 1 to 5, the first sliding and the first full layer of mixed stacks early."""
    order = ("2", "1", "5", "3", "4")
    return DepthSchedule(LAYERS, alpha, start, 1, 2, order)


def sublayers(model: LoadedModel, alpha: float = 0.93, start: int = 2) -> DepthSchedule:
    """Mixes whole layers, attentions and MLPs."""
    order = ("3.mlp", "1.attn", "2", "4.mlp", "3.attn", "5.attn", "1.mlp")
    weights = tuple(model.weight_bytes.weight(name) for name in order)
    return DepthSchedule(LAYERS, alpha, start, 1, 2, order, weights)


def schedules(model: LoadedModel) -> dict[str, DepthSchedule]:
    return {
        "layers": whole_layers(),
        "sublayers": sublayers(model),
        "static": whole_layers(alpha=1e-9, start=0),
    }


def random_ids(length: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCAB, (length,), generator=generator).tolist()
