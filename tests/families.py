"""Tiny random models, one of each supported family, built from a config in memory."""

from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    Gemma3TextConfig,
    Glm4Config,
    GPT2Config,
    GPTBigCodeConfig,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Olmo2Config,
    OlmoConfig,
    OPTConfig,
    Phi3Config,
    PhiConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
    SmolLM3Config,
    StableLmConfig,
    Starcoder2Config,
)

from d3cli.depth.families import find_family
from d3cli.depth.schedule import DepthSchedule
from d3cli.model.model import LoadedModel
from d3cli.model.wrap import wrap_model
from tests.nested import dequantize, nest_linears
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

_GPT = {
    "vocab_size": VOCAB,
    "n_embd": 32,
    "n_layer": LAYERS,
    "n_head": 4,
    "n_positions": 256,
    "initializer_range": 0.15,
    "bos_token_id": 1,
    "eos_token_id": None,
}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}
_LONG_ROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [2.0, 3.0, 4.0, 5.0],
    "original_max_position_embeddings": 128,
}
HALF_ROTARY = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
TWO_EXPERTS = {"num_experts_per_tok": 2}

# One line a family, or a variant of one that computes something else.
CONFIGS: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**_SHAPE),
    "llama3-rope": LlamaConfig(**_SHAPE, rope_parameters=_LLAMA3_ROPE),
    "llama-linear-rope": LlamaConfig(
        **_SHAPE, rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}
    ),
    "llama-tied": LlamaConfig(**_SHAPE, tie_word_embeddings=True, attention_bias=True),
    "mistral": MistralConfig(**_SHAPE, sliding_window=WINDOW),
    "mistral-full": MistralConfig(**_SHAPE, sliding_window=None),
    "mixtral": MixtralConfig(**_SHAPE, num_local_experts=4, **TWO_EXPERTS),
    "qwen2": Qwen2Config(**_SHAPE),
    "qwen2-yarn": Qwen2Config(**_SHAPE, rope_parameters=YARN),
    "qwen3": Qwen3Config(**_SHAPE),
    "qwen3-sliding": Qwen3Config(
        **_SHAPE, use_sliding_window=True, sliding_window=WINDOW, layer_types=_MIXED[::-1]
    ),
    "qwen3_moe": Qwen3MoeConfig(
        **_SHAPE, num_experts=4, moe_intermediate_size=24, mlp_only_layers=[3], **TWO_EXPERTS
    ),
    "gemma2": Gemma2Config(
        **_SHAPE, sliding_window=WINDOW, query_pre_attn_scalar=8, layer_types=_MIXED
    ),
    "gemma3": Gemma3TextConfig(
        **_SHAPE, sliding_window=WINDOW, query_pre_attn_scalar=8, layer_types=_MIXED
    ),
    "phi": PhiConfig(**_SHAPE, rope_parameters=HALF_ROTARY),
    "phi3": Phi3Config(**_SHAPE),
    "phi3-sliding": Phi3Config(**_SHAPE, sliding_window=WINDOW),
    "phi3-longrope": Phi3Config(
        **_SHAPE, original_max_position_embeddings=128, rope_parameters=_LONG_ROPE
    ),
    "granite": GraniteConfig(
        **_SHAPE, embedding_multiplier=3.0, residual_multiplier=0.7, logits_scaling=2.0
    ),
    "olmo": OlmoConfig(**_SHAPE, clip_qkv=2.0),
    "olmo2": Olmo2Config(**_SHAPE),
    "cohere": CohereConfig(**_SHAPE, use_qk_norm=True, logit_scale=0.5),
    "glm4": Glm4Config(**_SHAPE, rope_parameters=HALF_ROTARY),
    "stablelm": StableLmConfig(**_SHAPE, rope_parameters=HALF_ROTARY),
    "stablelm-parallel": StableLmConfig(
        **_SHAPE, use_parallel_residual=True, qk_layernorm=True, rope_parameters=HALF_ROTARY
    ),
    "smollm3": SmolLM3Config(**_SHAPE, no_rope_layer_interval=4),
    "starcoder2": Starcoder2Config(**_SHAPE, sliding_window=WINDOW),
    "gpt_bigcode": GPTBigCodeConfig(**_GPT, multi_query=True),
    "gpt_neox": GPTNeoXConfig(**_SHAPE),
    "gpt_neox-sequential": GPTNeoXConfig(**_SHAPE, use_parallel_residual=False),
    "gpt2": GPT2Config(**_GPT),
    "opt": OPTConfig(**_SHAPE, ffn_dim=80, word_embed_proj_dim=32, init_std=0.15),
    "opt-post-norm": OPTConfig(
        **_SHAPE, ffn_dim=80, word_embed_proj_dim=16, do_layer_norm_before=False, init_std=0.15
    ),
}
FAMILY_NAMES = tuple(CONFIGS)
# One of each kind of computation: plain, sliding windows, experts, eager attention, norms after
# each sublayer, parallel sublayers, multi-query, GPT-2's transposed linears, whole layers only.
REPRESENTATIVE = (
    *("llama", "mistral", "qwen3-sliding", "mixtral", "gemma2", "olmo2", "cohere", "gpt_bigcode"),
    *("gpt2", "opt-post-norm"),
)


def quick_or_slow(cases: Iterable[tuple[str, ...]]) -> list[Any]:
    """Parameters that begin with a family's name; slow unless the family is in `REPRESENTATIVE`."""
    return [
        pytest.param(*case, marks=[] if case[0] in REPRESENTATIVE else [pytest.mark.slow])
        for case in cases
    ]


family = pytest.mark.parametrize("name", FAMILY_NAMES)
some_families = pytest.mark.parametrize("name", quick_or_slow((name,) for name in FAMILY_NAMES))


@dataclass(frozen=True)
class Tiny:
    """One family: gated by d3cli, as transformers builds it, and as the slow reference."""

    gated: LoadedModel
    plain: Any
    reference: Reference


def random_model(config: PretrainedConfig, attention: str) -> Any:
    torch.manual_seed(7)
    # A copy, since transformers writes the attention implementation into the config.
    model = AutoModelForCausalLM.from_config(deepcopy(config), attn_implementation=attention)
    for parameter in model.parameters():
        if parameter.ndim == 1:  # norms and biases, which else would all be 0 or 1
            parameter.data.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def shortened(config: PretrainedConfig, layers: int) -> PretrainedConfig:
    """The config of a model that has only the first layers."""
    values = config.to_dict()
    for name, value in values.items():
        if name in ("num_hidden_layers", "n_layer"):
            values[name] = layers
        elif isinstance(value, list) and len(value) == LAYERS:  # says something of each layer
            values[name] = value[:layers]
    return type(config)(**values)


def word_tokenizer() -> PreTrainedTokenizerFast:
    """One word per token: "w17" is token 17."""
    backend = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCAB)}, unk_token="w0"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="w0")


@cache
def tiny(name: str, *, nested: bool = False) -> Tiny:
    """A family. With `nested`, the linears that fit are in two planes of 4 bits."""
    config = CONFIGS[name]
    family = find_family(config.model_type)
    plain, eager = random_model(config, family.attention), random_model(config, "eager")
    ours = random_model(config, family.attention)
    stacks = [
        model.base_model.get_submodule(family.decoder).get_submodule(family.stack)
        for model in (ours, plain, eager)
    ]
    planes = nest_linears(stacks[0]) if nested else {}
    dequantize(stacks[1], planes)
    high = dequantize(stacks[2], planes)
    gated = wrap_model(ours, word_tokenizer(), name=name)
    return Tiny(gated, plain, Reference(eager, stacks[2], family.attn, family.mlp, high))


def whole_layers(alpha: float = 0.93, start: int = 2) -> DepthSchedule:
    """Drops layers 1 to 5. In mixed stacks, the first sliding and the first full layer go early."""
    order = ("2", "1", "5", "3", "4")
    return DepthSchedule(LAYERS, alpha, start, 1, 2, order)


def sublayers(model: LoadedModel, alpha: float = 0.93, start: int = 2) -> DepthSchedule:
    """Mixes whole layers, attentions and MLPs."""
    order = ("3.mlp", "1.attn", "2", "4.mlp", "3.attn", "5.attn", "1.mlp")
    weights = model.weight_bytes.weights(order)
    return DepthSchedule(LAYERS, alpha, start, 1, 2, order, weights)


def planes(model: LoadedModel, alpha: float = 0.9, start: int = 2) -> DepthSchedule:
    """Drops all low planes, those of the MLPs first; also of core layers."""
    order = sorted(model.weight_bytes.unit_names("plane"), key=lambda name: "attn" in name)
    weights = model.weight_bytes.weights(order)
    return DepthSchedule(LAYERS, alpha, start, 1, 2, tuple(order), weights)


def all_kinds(model: LoadedModel, alpha: float = 0.93, start: int = 2) -> DepthSchedule:
    """Mixes layers, sublayers and low planes, some of them of the same layer."""
    order = (
        *("3.mlp.lo", "7.attn.lo", "1.attn", "2.attn.lo", "3.mlp", "1.mlp.lo", "0.mlp.lo"),
        *("2.mlp.lo", "2", "1.mlp", "3.attn.lo", "4", "5.attn.lo", "5.attn"),
    )
    order = tuple(name for name in order if model.weight_bytes.has(name))
    return DepthSchedule(LAYERS, alpha, start, 1, 2, order, model.weight_bytes.weights(order))


NESTED = ("planes", "all kinds")  # need nested weights


def case(name: str, units: str) -> tuple[Tiny, DepthSchedule]:
    """A family and a schedule of one of the kinds in `units_of`."""
    model = tiny(name, nested=units in NESTED)
    makers: dict[str, Callable[[], DepthSchedule]] = {
        "layers": whole_layers,
        "static": lambda: whole_layers(alpha=1e-9, start=0),
        "sublayers": lambda: sublayers(model.gated),
        "planes": lambda: planes(model.gated),
        "all kinds": lambda: all_kinds(model.gated),
    }
    return model, makers[units]()


def units_of(name: str) -> list[str]:
    """The kinds of skip order that a family has."""
    whole_only = find_family(CONFIGS[name].model_type).mlp is None
    return ["layers", "static", *([] if whole_only else ["sublayers", *NESTED])]


def in_turn(choices_of: Callable[[str], Sequence[str]], shift: int = 0) -> list[Any]:
    """Each family with one of its choices, as `quick_or_slow` parameters.

    The choices take turns, and `shift` says which is first. So each meets several families, and
    tests with different shifts meet different pairs.
    """
    others = [name for name in FAMILY_NAMES if name not in REPRESENTATIVE]
    return quick_or_slow(
        (name, choices[(number + shift) % len(choices)])
        for names in (REPRESENTATIVE, others)
        for number, name in enumerate(names)
        for choices in [choices_of(name)]
    )


def all_or_in_turn(choices_of: Callable[[str], Sequence[str]]) -> list[Any]:
    """The families in `REPRESENTATIVE` with all of their choices; the others as in `in_turn`."""
    whole = quick_or_slow((name, one) for name in REPRESENTATIVE for one in choices_of(name))
    return whole + [case for case in in_turn(choices_of) if case.values[0] not in REPRESENTATIVE]


def random_ids(length: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCAB, (length,), generator=generator).tolist()
