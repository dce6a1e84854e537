"""What the layers of each family do differently, as data for `block_parts`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Layout:
    """What a family's layers do differently.

    Attributes:
        before_attention, after_attention, before_mlp, after_mlp: names of the norms in a layer.
        parallel: whether both sublayers read the layer's input; some configs decide that.
        sum_first: whether a parallel layer adds its sublayers before it adds its input.
        by_head: whether a joint projection holds queries, keys and values head by head.
        in_pairs: whether rotary angles turn neighbours, instead of the two halves.
        doubled: whether the angles of neighbours come from the first half of the rotary module's.
        in_float: whether queries and keys turn in float32.
        norm_shape: the shape in which queries or keys of S tokens, the -1, are normalized.
    """

    before_attention: str | None = "input_layernorm"
    after_attention: str | None = None
    before_mlp: str | None = "post_attention_layernorm"
    after_mlp: str | None = None
    parallel: bool = False
    sum_first: bool = False
    by_head: bool = False
    in_pairs: bool = False
    doubled: bool = False
    in_float: bool = False
    norm_shape: Callable[[int, int], tuple[int, ...]] = lambda heads, size: (-1, heads, size)


_LLAMA = Layout()
_GEMMA = Layout(
    after_attention="post_attention_layernorm",
    before_mlp="pre_feedforward_layernorm",
    after_mlp="post_feedforward_layernorm",
)
_GPT = Layout(before_attention="ln_1", before_mlp="ln_2")

# OPT's layers have no MLP module, and some normalize the sum.
LAYOUTS: Mapping[str, Layout] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "mixtral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "qwen3_moe": _LLAMA,
    "gemma2": _GEMMA,
    "gemma3_text": _GEMMA,
    "phi": Layout(before_mlp=None, parallel=True, sum_first=True),
    "phi3": _LLAMA,
    "granite": _LLAMA,
    "olmo": _LLAMA,
    "olmo2": Layout(
        before_attention=None,
        after_attention="post_attention_layernorm",
        before_mlp=None,
        after_mlp="post_feedforward_layernorm",
        norm_shape=lambda heads, size: (-1, heads * size),
    ),
    "cohere": Layout(before_mlp=None, parallel=True, in_pairs=True, in_float=True),
    "glm4": Layout(
        after_attention="post_self_attn_layernorm",
        before_mlp="post_attention_layernorm",
        after_mlp="post_mlp_layernorm",
        in_pairs=True,
        doubled=True,
    ),
    "stablelm": Layout(norm_shape=lambda heads, size: (-1, heads, 1, size)),
    "smollm3": _LLAMA,
    "starcoder2": _LLAMA,
    "gpt_bigcode": _GPT,
    "gpt_neox": Layout(sum_first=True, by_head=True),
    "gpt2": _GPT,
}
