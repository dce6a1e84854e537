"""Random weights in the shapes of real models, to measure speed and memory.

python scripts/shapes.py llama-3.2-1b build/llama-3.2-1b     # a checkpoint that d3 loads
"""

import argparse
import json
import random
import shutil
from pathlib import Path
from typing import Any

import torch
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
    builtin = find_model("demo").path
    shutil.copy(builtin / "tokenizer_config.json", target)
    tokenizer = json.loads((builtin / "tokenizer.json").read_text())
    _grow(tokenizer["model"], config.vocab_size)
    (target / "tokenizer.json").write_text(json.dumps(tokenizer))


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
    save_checkpoint(SHAPES[args.shape], args.target)


if __name__ == "__main__":
    main()
