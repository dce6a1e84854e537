"""Small GGUF files of real families, written with the package `gguf`, and the models they hold.

The writer is independent of the reader under test: it knows how llama.cpp converts each family, and
keeps the Hugging Face model with the very weights that the file holds, after quantization.
"""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from transformers import AutoModelForCausalLM
from transformers.convert_slow_tokenizer import bytes_to_unicode

from tests.gguf_families import FAMILIES, HEAD_DIM, HEADS, KV_HEADS, VOCABULARY

WORDS = ["the", "a", "fox", " 12", "12", "  "]
EOS, EOT, SPECIAL = 270, 271, ["<|endoftext|>", "<|im_end|>", "<|im_start|>", "<｜bar｜>"]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass
class GgufFile:
    """A GGUF file and the Hugging Face model with its weights, in float32."""

    path: Path
    model: Any
    architecture: str
    metadata: dict[str, Any] = field(default_factory=dict)


def write_gguf(
    path: Path,
    name: str = "llama",
    kind: str = "F32",
    *,
    metadata: Mapping[str, Any] | None = None,
    tokenizer: Mapping[str, Any] | None = None,
    parts: int = 1,
    extra: Mapping[str, Any] | None = None,
    without: Sequence[str] = (),
) -> GgufFile:
    """Writes a small model.

    Args:
        name: a key of `FAMILIES`.
        kind: ggml's type of the matrices. Vectors are F32, as llama.cpp stores them.
        metadata: keys of the model to change or, if None, to leave out.
        tokenizer: as `metadata`, for the keys of the tokenizer.
        parts: writes a split model of so many files; `path` is the first one.
        extra: tensors to add.
        without: tensors to leave out.
    """
    architecture, config = deepcopy(FAMILIES[name])
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    for parameter in model.parameters():
        if parameter.ndim == 1:  # norms and biases, which else would all be 0 or 1
            parameter.data.add_(torch.randn_like(parameter) * 0.1)
    keys = _keys(architecture, config) | (tokenizer_keys() if tokenizer is None else {})
    keys |= dict(tokenizer or {}) | dict(metadata or {})
    keys = {key: value for key, value in keys.items() if value is not None}
    tensors = _quantized(architecture, model, Type[kind])
    tensors |= _rope_tensors(config) | dict(extra or {})
    kept = {name: tensor for name, tensor in tensors.items() if name not in without}
    _write(path, architecture, keys, kept, parts)
    return GgufFile(path, model, architecture, keys)


def tokenizer_keys(pre: str = "qwen2") -> dict[str, Any]:
    """A byte-level tokenizer: 256 bytes, `WORDS`, `SPECIAL`, and padding."""
    spelling = bytes_to_unicode()
    words, merges = [spelling[byte] for byte in range(256)], []
    for word in WORDS:
        symbols = [spelling[byte] for byte in word.encode()]
        while len(symbols) > 1:
            merges.append(f"{symbols[0]} {symbols[1]}")
            symbols[:2] = [symbols[0] + symbols[1]]
            words += [symbols[0]] if symbols[0] not in words else []
    words += [f"[PAD{i}]" for i in range(len(words), EOS)] + SPECIAL
    words += [f"[PAD{i}]" for i in range(len(words), VOCABULARY)]
    types = [3 if word in SPECIAL else 1 if not word.startswith("[PAD") else 5 for word in words]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": words,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": list(dict.fromkeys(merges)),
        "tokenizer.ggml.eos_token_id": EOS,
        "tokenizer.ggml.eot_token_id": EOT,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": TEMPLATE,
    }


def _keys(architecture: str, config: Any) -> dict[str, Any]:
    """The keys that llama.cpp's converter writes for a config."""
    rope = getattr(config, "rope_parameters", None) or {}
    rope = rope.get("full_attention", rope)
    hidden, heads = config.hidden_size, config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or hidden // heads
    rotated = int(head_dim * rope.get("partial_rotary_factor", 1.0))
    epsilon = getattr(config, "rms_norm_eps", None)
    other = [getattr(config, k, None) for k in ("layer_norm_eps", "layer_norm_epsilon")]
    keys: dict[str, Any] = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": hidden,
        "feed_forward_length": getattr(config, "intermediate_size", None) or 4 * hidden,
        "attention.head_count": heads,
        "attention.head_count_kv": getattr(config, "num_key_value_heads", heads),
        "attention.layer_norm_rms_epsilon": epsilon,
        "attention.layer_norm_epsilon": getattr(config, "norm_epsilon", None)
        or next(filter(None, other), None),
        "rope.freq_base": rope.get("rope_theta"),
    }
    if architecture in ("llama", "phi3", "stablelm"):
        keys["rope.dimension_count"] = rotated
    if architecture in ("qwen3", "qwen3moe", "gemma2", "gemma3"):
        keys |= {"attention.key_length": head_dim, "attention.value_length": head_dim}
    if architecture in ("gemma2", "gemma3", "phi3"):
        keys["attention.sliding_window"] = config.sliding_window
    if architecture == "stablelm":
        keys["use_parallel_residual"] = config.use_parallel_residual
    experts = getattr(config, "num_experts", None) or getattr(config, "num_local_experts", None)
    if experts:
        keys |= {"expert_count": experts, "expert_used_count": config.num_experts_per_tok}
    if architecture == "qwen3moe":
        keys["expert_feed_forward_length"] = config.moe_intermediate_size
    if rope.get("rope_type") in ("linear", "yarn"):
        keys |= {"rope.scaling.type": rope["rope_type"], "rope.scaling.factor": rope["factor"]}
    if rope.get("rope_type") in ("yarn", "longrope"):
        original = rope["original_max_position_embeddings"]
        keys["rope.scaling.original_context_length"] = original
    return {f"{architecture}.{key}": value for key, value in keys.items()}


def _rope_tensors(config: Any) -> dict[str, Any]:
    """The tensors by which llama.cpp scales rotary positions."""
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "longrope":
        return {
            f"rope_factors_{kind}.weight": np.array(rope[f"{kind}_factor"], dtype=np.float32)
            for kind in ("long", "short")
        }
    if rope.get("rope_type") != "llama3":
        return {}
    factor, original = rope["factor"], rope["original_max_position_embeddings"]
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    dims = torch.arange(0, HEAD_DIM, 2, dtype=torch.float32) / HEAD_DIM
    divisors = []
    for frequency in (1.0 / rope["rope_theta"] ** dims).tolist():
        wave = 2 * np.pi / frequency
        if wave < original / high:
            divisors.append(1.0)
        elif wave > original / low:
            divisors.append(factor)
        else:
            smooth = (original / wave - low) / (high - low)
            divisors.append(1 / ((1 - smooth) / factor + smooth))
    return {"rope_freqs.weight": np.array(divisors, dtype=np.float32)}


@dataclass(frozen=True)
class Packed:
    """A tensor as it lies in the file."""

    data: Any
    kind: Type


def _quantized(architecture: str, model: Any, kind: Type) -> dict[str, Packed]:
    """The tensors of the file. The model gets the weights that they hold."""
    arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(arch, model.config.num_hidden_layers)
    found: dict[str, Packed] = {}
    for name, parameter in model.named_parameters():  # a tied head is not among them
        base, _, suffix = name.rpartition(".")
        if name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            base, suffix = name, "weight"
        if base.endswith("gate_up_proj") and parameter.ndim == 3:
            half = parameter.shape[1] // 2
            parts = {"gate": parameter.data[:, :half], "up": parameter.data[:, half:]}
            for part, data in parts.items():
                block = base.split(".")[2]
                data.copy_(_pack(found, f"blk.{block}.ffn_{part}_exps.weight", data, kind))
            continue
        target = names.get_name(base)
        assert target is not None, name
        there, back = _conversion(architecture, target, suffix, model.config)
        data = there(parameter.data)
        parameter.data.copy_(back(_pack(found, f"{target}.{suffix}", data, kind)))
    return found


def _pack(found: dict[str, Packed], name: str, data: Any, kind: Type) -> Any:
    """Adds a tensor in a type; returns the values that it then has."""
    array = data.contiguous().numpy()
    if array.ndim == 1 or array.shape[-1] % gguf.GGML_QUANT_SIZES[kind][0]:
        kind = Type.F32
    packed = _quantize(array, kind)
    found[name] = Packed(packed, kind)
    return torch.from_numpy(np.array(gguf.dequantize(packed, kind))).reshape(array.shape)


def _quantize(array: Any, kind: Type) -> Any:
    """An array in a type. Where `gguf` cannot quantize, random blocks of the same spread."""
    try:
        return gguf.quantize(np.ascontiguousarray(array), kind)
    except NotImplementedError:
        return random_blocks(array.shape, kind, seed=array.size)


def random_blocks(shape: Sequence[int], kind: Type, seed: int = 0) -> Any:
    """Blocks of random bits with small scales, ``[..., bytes of a row]``, as uint8."""
    values, size = gguf.GGML_QUANT_SIZES[kind]
    random = np.random.default_rng(seed)
    rows = int(np.prod(shape[:-1]))
    blocks = random.integers(0, 256, (rows * shape[-1] // values, size), dtype=np.uint8)
    scales = {  # where the float16 scales lie, and a value that makes weights of about 0.1
        Type.Q2_K: {80: 0.01, 82: 0.01},
        Type.Q3_K: {108: 0.002},
        Type.Q4_K: {0: 3e-4, 2: 22e-4},
        Type.Q5_K: {0: 15e-5, 2: 22e-4},
        Type.Q6_K: {208: 5e-5},
    }[kind]
    for offset, scale in scales.items():
        signs = random.choice([0.8, 1.2], len(blocks)) * scale
        halves = signs.astype(np.float16).view(np.uint8).reshape(-1, 2)
        blocks[:, offset : offset + 2] = halves
    return blocks.reshape(*shape[:-1], -1)


Change = Callable[[Any], Any]


def _conversion(architecture: str, target: str, suffix: str, config: Any) -> tuple[Change, Change]:
    """What llama.cpp's converter does to a tensor, and the opposite."""
    leaf = target.rpartition(".")[2]
    if architecture == "llama" and leaf in ("attn_q", "attn_k"):
        heads = HEADS if leaf == "attn_q" else KV_HEADS
        return (lambda w: _interleave(w, heads, 2)), (
            lambda w: _interleave(w, heads, HEAD_DIM // 2)
        )
    if architecture.startswith("gemma") and leaf.endswith("norm"):
        return (lambda w: w + 1), (lambda w: w - 1)
    conv1d = ("attn_qkv", "attn_output", "ffn_up", "ffn_down")
    if architecture == "gpt2" and leaf in conv1d and suffix == "weight":
        return (lambda w: w.T), (lambda w: w.T)
    return (lambda w: w), (lambda w: w)


def _interleave(weight: Any, heads: int, outer: int) -> Any:
    """In each head, rows ``[outer, inner]`` become rows ``[inner, outer]``."""
    rows = weight.reshape(heads, outer, -1, *weight.shape[1:])
    return rows.transpose(1, 2).reshape(weight.shape)


def _write(
    path: Path,
    architecture: str,
    keys: Mapping[str, Any],
    tensors: Mapping[str, Any],
    parts: int,
) -> None:
    per_part = -(-len(tensors) // parts) if parts > 1 else 0
    target = path.with_name(path.name.removesuffix(f"-00001-of-{parts:05}.gguf") + ".gguf")
    writer = gguf.GGUFWriter(
        target if parts > 1 else path, architecture, split_max_tensors=per_part
    )
    for key, value in keys.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)
    for name, tensor in tensors.items():
        if isinstance(tensor, Packed):
            writer.add_tensor(name, tensor.data, raw_dtype=tensor.kind)
        else:
            writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
