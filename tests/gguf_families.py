"""Small configs of the families that GGUF files hold, for `tests.gguf_models`."""

from typing import Any

from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MixtralConfig,
    Phi3Config,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
    StableLmConfig,
    Starcoder2Config,
)

from tests.families import HALF_ROTARY, TWO_EXPERTS, YARN

LAYERS, HEADS, KV_HEADS, HEAD_DIM, WINDOW = 4, 4, 2, 64, 7
HIDDEN, INNER, EXPERTS = 256, 512, 4  # multiples of ggml's largest blocks
VOCABULARY = 288  # bytes, some words, and special tokens; the rest is padding

_SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": HEAD_DIM,
    "max_position_embeddings": 256,
    "initializer_range": 0.08,  # large, so that every layer matters
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
_OTHER_LLAMA3_ROPE = {
    **_LLAMA3_ROPE,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 8.0,
    "original_max_position_embeddings": 512,
}
_LONG_ROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0 + 0.01 * i for i in range(HEAD_DIM // 2)],
    "long_factor": [2.0 + 0.1 * i for i in range(HEAD_DIM // 2)],
    "original_max_position_embeddings": 128,
}
_QUARTER = {**HALF_ROTARY, "partial_rotary_factor": 0.25}
_OTHER_BASE = {"rope_type": "default", "rope_theta": 999999.5}
_LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}
_GEMMA = _SHAPE | {"head_dim": 256, "sliding_window": WINDOW, "query_pre_attn_scalar": 256}
_GEMMA_3 = _GEMMA | {"num_hidden_layers": 6}  # only the sixth sees the whole text
_GEMMA_3_ROPE = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}


def _qwen3_moe(inner: int) -> PretrainedConfig:
    shape = _SHAPE | {"head_dim": 128, "moe_intermediate_size": inner, "num_experts": EXPERTS}
    return Qwen3MoeConfig(**shape, norm_topk_prob=True, **TWO_EXPERTS)


def _gpt2(positions: int) -> PretrainedConfig:
    return GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=HIDDEN,
        n_layer=LAYERS,
        n_head=HEADS,
        n_positions=positions,
        initializer_range=0.08,
        bos_token_id=None,
        eos_token_id=None,
    )


# By name: llama.cpp's architecture, and the config. Variants are what a reader can get wrong.
FAMILIES: dict[str, tuple[str, PretrainedConfig]] = {
    "llama": ("llama", LlamaConfig(**_SHAPE)),
    "llama-tied": ("llama", LlamaConfig(**_SHAPE, tie_word_embeddings=True)),
    "llama3-rope": ("llama", LlamaConfig(**_SHAPE, rope_parameters=_LLAMA3_ROPE)),
    "llama3-rope-fitted": ("llama", LlamaConfig(**_SHAPE, rope_parameters=_OTHER_LLAMA3_ROPE)),
    "llama-linear-rope": ("llama", LlamaConfig(**_SHAPE, rope_parameters=_LINEAR)),
    "mixtral": ("llama", MixtralConfig(**_SHAPE, num_local_experts=EXPERTS, **TWO_EXPERTS)),
    "qwen2": ("qwen2", Qwen2Config(**_SHAPE)),
    "qwen2-yarn": ("qwen2", Qwen2Config(**_SHAPE, rope_parameters=YARN)),
    "qwen3": ("qwen3", Qwen3Config(**_SHAPE | {"head_dim": 128}, tie_word_embeddings=True)),
    "qwen3-small-heads": ("qwen3", Qwen3Config(**_SHAPE)),
    "qwen3moe": ("qwen3moe", _qwen3_moe(768)),
    "qwen3moe-small-experts": ("qwen3moe", _qwen3_moe(256)),
    "gemma2": ("gemma2", Gemma2Config(**_GEMMA)),
    "gemma2-27b": (
        "gemma2",
        Gemma2Config(
            **_GEMMA | {"num_hidden_layers": 46, "query_pre_attn_scalar": 64, "head_dim": 128}
        ),
    ),
    "gemma3": ("gemma3", Gemma3TextConfig(**_GEMMA_3)),
    "gemma3-scaled": ("gemma3", Gemma3TextConfig(**_GEMMA_3, rope_parameters=_GEMMA_3_ROPE)),
    "phi3": ("phi3", Phi3Config(**_SHAPE, sliding_window=WINDOW)),
    "phi3-partial": ("phi3", Phi3Config(**_SHAPE, rope_parameters=HALF_ROTARY)),
    "phi3-longrope": (
        "phi3",
        Phi3Config(**_SHAPE, original_max_position_embeddings=128, rope_parameters=_LONG_ROPE),
    ),
    "stablelm": (
        "stablelm",
        StableLmConfig(**_SHAPE, use_qkv_bias=True, rope_parameters=_QUARTER),
    ),
    "stablelm-half": ("stablelm", StableLmConfig(**_SHAPE, rope_parameters=HALF_ROTARY)),
    "starcoder2": ("starcoder2", Starcoder2Config(**_SHAPE)),
    "starcoder2-base": ("starcoder2", Starcoder2Config(**_SHAPE, rope_parameters=_OTHER_BASE)),
    "gpt2": ("gpt2", _gpt2(1024)),
    "gpt2-short": ("gpt2", _gpt2(256)),
}
