"""Writes a copy of a Llama model that computes the same, with its weights off the grid of 4 bits.

    python scripts/permute_model.py FILE.gguf DIRECTORY

The weights of a file in 4 bits take 16 values in each group of 32 inputs, which flatters every way
to quantize in such groups. Here the model's own axes change places: the residual stream's, those
between the two halves of an MLP, and those of each head's values. Sums over them stay what they
were, but neighbours in a weight come from all over its old groups. So what quantizing costs this
copy is what it costs a model that was never in 4 bits.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from d3cli.model.load import load_model

SEED = 1


def permute_layer(layer: Any, stream: Tensor, chance: torch.Generator) -> None:
    """Changes a layer's axes in place; `stream` permutes the residual stream, ``[H]``."""
    attention, mlp = layer.self_attn, layer.mlp
    inner = torch.randperm(mlp.down_proj.in_features, generator=chance)
    for linear in (mlp.gate_proj, mlp.up_proj):
        linear.weight.data = linear.weight[inner][:, stream]
    mlp.down_proj.weight.data = mlp.down_proj.weight[stream][:, inner]
    size = attention.head_dim
    of_value = torch.randperm(size, generator=chance)
    values = attention.v_proj.weight.unflatten(0, (-1, size))[:, of_value].flatten(0, 1)
    attention.v_proj.weight.data = values[:, stream]
    for linear in (attention.q_proj, attention.k_proj):
        linear.weight.data = linear.weight[:, stream]
    outputs = attention.o_proj.weight.unflatten(1, (-1, size))[:, :, of_value].flatten(1)
    attention.o_proj.weight.data = outputs[stream]
    for norm in (layer.input_layernorm, layer.post_attention_layernorm):
        norm.weight.data = norm.weight[stream]


@torch.inference_mode()
def permute(causal_lm: Any) -> None:
    """Changes the axes of a Llama model without biases, in place."""
    chance = torch.Generator().manual_seed(SEED)
    decoder = causal_lm.model
    stream = torch.randperm(causal_lm.config.hidden_size, generator=chance)
    embedding = decoder.embed_tokens
    if causal_lm.lm_head.weight is not embedding.weight:
        causal_lm.lm_head.weight.data = causal_lm.lm_head.weight[:, stream]
    embedding.weight.data = embedding.weight[:, stream]
    decoder.norm.weight.data = decoder.norm.weight[stream]
    for layer in decoder.layers:
        permute_layer(layer, stream, chance)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model")
    parser.add_argument("directory", type=Path)
    asked = parser.parse_args()
    model = load_model(asked.model, dtype="float32", device="cpu")
    if model.causal_lm.config.model_type != "llama":
        raise SystemExit(f"{model.name} is not a Llama model")
    ids = torch.tensor([model.tokenizer("The old man and the sea").input_ids])
    before = model.logits(model.hidden_states(ids))
    permute(model.causal_lm)
    off = float((model.logits(model.hidden_states(ids)) - before).abs().max())
    print(f"logits differ by at most {off:.1e}")
    if off > 1e-3:
        raise SystemExit("the permuted model computes something else")
    model.causal_lm.to(torch.bfloat16).save_pretrained(asked.directory)
    model.tokenizer.save_pretrained(asked.directory)
    print(f"wrote {asked.directory}")


if __name__ == "__main__":
    main()
