"""Random weights in the shapes of real models, to measure speed and memory.

python scripts/shapes.py llama-3.2-1b build/llama-3.2-1b     # a checkpoint that d3 loads
python scripts/shapes.py llama-3.2-1b build/llama-3.2-1b.gguf    # the same in GGUF, as Q4_K
"""

import argparse
import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import (
    GGML_QUANT_SIZES,
    MODEL_ARCH,
    GGMLQuantizationType,
    GGUFWriter,
    get_tensor_name_map,
)
from transformers import AutoModelForCausalLM, LlamaConfig

from d3cli.files.names import find_model

_LLAMA_3 = {"vocab_size": 128256, "rope_theta": 500000.0, "max_position_embeddings": 131072}
_SMALL = {"vocab_size": 4096, "max_position_embeddings": 8192}

SHAPES: dict[str, LlamaConfig] = {
    "smollm2-135m": LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    ),
    "tinyllama-1.1b": LlamaConfig(
        vocab_size=32000,
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=22,
        num_attention_heads=32,
        num_key_value_heads=4,
        max_position_embeddings=2048,
    ),
    "llama-3.2-1b": LlamaConfig(
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=64,
        tie_word_embeddings=True,
        **_LLAMA_3,
    ),
    "llama-3.1-8b": LlamaConfig(
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        **_LLAMA_3,
    ),
    # Wide layers, many narrow layers, and keys and values that outweigh the weights.
    "wide": LlamaConfig(**_SMALL, hidden_size=1024, intermediate_size=4096, num_hidden_layers=12),
    "deep": LlamaConfig(**_SMALL, hidden_size=512, intermediate_size=2048, num_hidden_layers=40),
    "cache": LlamaConfig(
        **_SMALL,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=12,
        num_attention_heads=16,
        num_key_value_heads=16,
        head_dim=256,
    ),
}


def shape_of(config: Any) -> str | None:
    """The name of the shape that a model has; None for another one."""

    def size(of: Any) -> list[Any]:
        names = ("hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size")
        return [getattr(of, name, None) for name in names]

    return next((name for name, shape in SHAPES.items() if size(shape) == size(config)), None)


def random_model(config: LlamaConfig, dtype: torch.dtype = torch.bfloat16) -> torch.nn.Module:
    """A causal language model of this shape; the weights are small random numbers."""
    torch.manual_seed(0)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model = model.to_empty(device="cpu")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Uniform, since it is several times quicker than normal; norms scale by 1.
            if parameter.ndim > 1:
                parameter.uniform_(-0.03, 0.03)
            else:
                parameter.fill_(1.0 if name.endswith("norm.weight") else 0.0)
    model.tie_weights()
    # to_empty leaves computed buffers undefined, so compute the rotary frequencies again.
    rotary = type(model.model.rotary_emb)(config)
    model.model.rotary_emb = rotary
    return model.eval()


def save_checkpoint(config: LlamaConfig, target: Path, dtype: torch.dtype = torch.bfloat16) -> None:
    """Writes a directory that `d3` loads, with a tokenizer of the vocabulary's size."""
    random_model(config, dtype).save_pretrained(target)
    shutil.copy(find_model("demo").path / "tokenizer_config.json", target)
    (target / "tokenizer.json").write_text(json.dumps(_tokenizer(config.vocab_size)))


def save_gguf(config: LlamaConfig, target: Path, kind: str = "Q4_K") -> None:
    """Writes a GGUF file that `d3` and llama.cpp load.

    Args:
        kind: Q4_K, with Q8_0 where rows do not fill its blocks; or BF16.
    """
    writer = GGUFWriter(target, "llama")
    for key, number in (
        ("block_count", config.num_hidden_layers),
        ("context_length", config.max_position_embeddings),
        ("embedding_length", config.hidden_size),
        ("feed_forward_length", config.intermediate_size),
        ("attention.head_count", config.num_attention_heads),
        ("attention.head_count_kv", config.num_key_value_heads),
        ("attention.key_length", config.head_dim),
        ("rope.dimension_count", config.head_dim),
    ):
        writer.add_uint32(f"llama.{key}", number)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", config.rms_norm_eps)
    tokenizer = _tokenizer(config.vocab_size)
    by_id = {id_: token for token, id_ in tokenizer["model"]["vocab"].items()}
    by_id |= {token["id"]: token["content"] for token in tokenizer["added_tokens"]}
    writer.add_string("tokenizer.ggml.model", "gpt2")
    writer.add_string("tokenizer.ggml.pre", "gpt-2")
    tokens = [by_id.get(id_, f"[PAD{id_}]") for id_ in range(config.vocab_size)]
    writer.add_array("tokenizer.ggml.tokens", tokens)
    special = {token["id"] for token in tokenizer["added_tokens"]}
    kinds = [3 if id_ in special else 1 if id_ in by_id else 5 for id_ in range(config.vocab_size)]
    writer.add_array("tokenizer.ggml.token_type", kinds)
    merges = [" ".join(merge) for merge in tokenizer["model"]["merges"]]
    writer.add_array("tokenizer.ggml.merges", merges)
    _add_tensors(writer, config, GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tensors(writer: GGUFWriter, config: LlamaConfig, kind: GGMLQuantizationType) -> None:
    """Adds random weights of about 0.02."""
    names = get_tensor_name_map(MODEL_ARCH.LLAMA, config.num_hidden_layers)
    random = np.random.default_rng(0)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    for name, parameter in model.named_parameters():
        target = f"{names.get_name(name.removesuffix('.weight'))}.weight"
        shape = tuple(parameter.shape)
        if len(shape) == 1:
            writer.add_tensor(target, np.ones(shape, dtype=np.float32))
        elif kind is GGMLQuantizationType.BF16:
            values = torch.empty(shape, dtype=torch.bfloat16).uniform_(-0.03, 0.03)
            writer.add_tensor(target, values.view(torch.uint8).numpy(), raw_dtype=kind)
        else:
            fits = shape[1] % GGML_QUANT_SIZES[kind][0] == 0
            used = kind if fits else GGMLQuantizationType.Q8_0
            writer.add_tensor(target, _random_blocks(shape, used, random), raw_dtype=used)


def _random_blocks(
    shape: tuple[int, ...], kind: GGMLQuantizationType, random: np.random.Generator
) -> np.ndarray:
    """The rows of a weight in Q4_K or Q8_0, uint8; the scales lead each block."""
    values, size = GGML_QUANT_SIZES[kind]
    scales = (1e-4, 7e-4) if kind is GGMLQuantizationType.Q4_K else (3e-4,)
    blocks = random.integers(0, 256, (shape[0] * shape[1] // values, size), dtype=np.uint8)
    header = np.array(scales, dtype=np.float16).view(np.uint8)
    blocks[:, : len(header)] = header
    return blocks.reshape(shape[0], -1)


def _tokenizer(size: int) -> dict[str, Any]:
    """The content of a tokenizer.json with a vocabulary of this size."""
    tokenizer: dict[str, Any] = json.loads(
        (find_model("demo").path / "tokenizer.json").read_text(encoding="utf-8")
    )
    _grow(tokenizer["model"], size)
    return tokenizer


def _grow(bpe: dict[str, Any], size: int) -> None:
    """Adds random merges to a byte-pair vocabulary: what a tokenizer takes depends on their number.

    The added tokens take the ids behind the old ones.
    """
    rng = random.Random(0)
    vocabulary = bpe["vocab"]
    pieces = [piece for piece in vocabulary if not piece.startswith("<")]
    while len(vocabulary) < size - 64:  # the special tokens are counted apart
        left, right = rng.choice(pieces), rng.choice(pieces)
        merged = left + right
        if len(merged) < 12 and merged not in vocabulary:
            vocabulary[merged] = len(vocabulary) + 64
            bpe["merges"].append([left, right])
            pieces.append(merged)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a random checkpoint of a real shape.")
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("target", type=Path)
    args = parser.parse_args()
    save = save_gguf if args.target.suffix == ".gguf" else save_checkpoint
    save(SHAPES[args.shape], args.target)


if __name__ == "__main__":
    main()
