"""A GGUF file's metadata as the config that transformers makes of it, and corrected.

transformers' own reader makes the config. It trusts the file, knows no split files, and takes 4 s
for a vocabulary of 50,000 tokens. So it reads a header that d3 writes: the model's own keys without
the tokenizer, and the names of the tensors without their data. What it leaves out although it
changes the computation is added here; ``docs/models.md`` lists that.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from d3cli.base.errors import ModelError, one_line
from d3cli.files.gguf import GgufModel
from d3cli.files.json_files import BAD_METADATA
from d3cli.files.vet_gguf import EMBEDDINGS, vet_gguf
from d3cli.model.gguf_rope import rope_scaling

LONGEST_ARRAY = 1_000  # values of a key of the model itself: one a layer

# Keys of the metadata that transformers' reader ignores, and the config's names for them.
_IGNORED = {
    "llama": {"attention.key_length": "head_dim"},
    "qwen3": {"attention.key_length": "head_dim"},
    "qwen3moe": {"expert_feed_forward_length": "moe_intermediate_size"},
    "gemma2": {
        "attn_logit_softcapping": "attn_logit_softcapping",
        "final_logit_softcapping": "final_logit_softcapping",
    },
    "gemma3": {"final_logit_softcapping": "final_logit_softcapping"},
    "phi3": {"attention.sliding_window": "sliding_window"},
    "starcoder2": {"rope.freq_base": "rope_theta"},
    "stablelm": {"rope.freq_base": "rope_theta"},
    "gpt2": {"context_length": "n_positions", "feed_forward_length": "n_inner"},
}
_SAMPLING = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "penalty_repeat": "repetition_penalty",
}
_HEAD = "output.weight"


def gguf_config(name: str, model: GgufModel) -> dict[str, Any]:
    """The content that the model's config.json would have.

    Args:
        name: what to call the model in messages.

    Raises:
        ModelError: transformers cannot read the metadata, a value that it needs is missing, or a
            temporary file cannot be written.
    """
    vet_gguf(name, model)
    try:
        return _corrected(name, model, _by_transformers(model))
    except (ModelError, MemoryError):
        raise
    except OSError as error:  # of the temporary file: the model's own was read before
        raise ModelError(
            f"loading {name} needs a small temporary file, which cannot be written: "
            f"{error.strerror or error}",
            "free some space, or set TMPDIR to a directory that can be written",
        ) from error
    except Exception as error:  # odd values may raise anything
        raise ModelError(
            f"the metadata of {name} cannot be read: {one_line(error)[:200]}", BAD_METADATA
        ) from error


def eos_token_ids(model: GgufModel) -> list[int]:
    """The tokens that end a reply by the metadata: of a text, of a turn, and of a message."""
    named = (
        model.metadata.get(f"tokenizer.ggml.{kind}_token_id") for kind in ("eos", "eot", "eom")
    )
    return list(dict.fromkeys(id_ for id_ in named if type(id_) is int))


def gguf_generation_settings(model: GgufModel) -> dict[str, Any]:
    """The content that the model's generation_config.json would have."""
    settings: dict[str, Any] = {"eos_token_id": eos_token_ids(model) or None}
    for key, wanted in _SAMPLING.items():
        if (value := model.metadata.get(f"general.sampling.{key}")) is not None:
            settings[wanted] = value
    if settings.get("top_k") == -1:  # llama.cpp's way to keep all tokens
        settings["top_k"] = 0
    if settings.get("temperature") == 0:
        return {"eos_token_id": settings["eos_token_id"], "do_sample": False}
    if "temperature" in settings:
        settings["do_sample"] = True
    return settings


def _by_transformers(model: GgufModel) -> dict[str, Any]:
    """The config that transformers' reader makes of the model's keys and tensor names."""
    from gguf import GGUFWriter
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    with TemporaryDirectory(prefix="d3-") as directory, _quiet():
        path = Path(directory) / "header.gguf"
        writer = GGUFWriter(path, model.architecture)
        for key, value in model.metadata.items():
            if key.startswith(f"{model.architecture}."):
                _add(writer, key, value)
        for tensor in model.tensors:
            writer.add_tensor(tensor, np.zeros(1, dtype=np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return dict(load_gguf_checkpoint(path)["config"])


def _add(writer: Any, key: str, value: Any) -> None:
    """Writes one key; text and long arrays describe nothing that a config holds."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_int64(key, value)
    elif isinstance(value, float):
        writer.add_float64(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif 0 < len(value) <= LONGEST_ARRAY:
        writer.add_array(key, list(value))


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the writer and the reader from warning that the header is incomplete."""
    names = ("gguf.gguf_writer", "transformers.modeling_gguf_pytorch_utils")
    loggers = {logging.getLogger(name): logging.getLogger(name).level for name in names}
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in loggers.items():
            logger.setLevel(level)


def _corrected(name: str, model: GgufModel, config: dict[str, Any]) -> dict[str, Any]:
    """The config with what transformers' reader leaves out or gets wrong."""
    architecture, tensors = model.architecture, model.tensors

    def key(suffix: str) -> Any:
        return model.metadata.get(f"{architecture}.{suffix}")

    config = {k: v for k, v in config.items() if k != "_model_name_or_path"}
    for suffix, wanted in _IGNORED.get(architecture, {}).items():
        if key(suffix):  # zero means none: Phi-4 has a sliding window of 0
            config[wanted] = key(suffix)
    if EMBEDDINGS not in tensors:
        raise ModelError(f"{name} lacks the tensor {EMBEDDINGS}", BAD_METADATA)
    rows = tensors[EMBEDDINGS].shape[0]
    tokens = model.metadata.length("tokenizer.ggml.tokens") or 0
    if tokens > rows:
        sizes = f"{tokens:,} tokens, but embeddings for {rows:,}"
        raise ModelError(f"{name} has {sizes}", BAD_METADATA)
    config["vocab_size"] = rows  # some are padding
    config["tie_word_embeddings"] = _HEAD not in tensors
    # A missing token must not become the default of a config class, which is another model's.
    bos = model.metadata.get("tokenizer.ggml.bos_token_id")
    config["bos_token_id"] = bos if type(bos) is int else None
    config["pad_token_id"] = None
    config["eos_token_id"] = eos_token_ids(model) or None
    if architecture == "llama":
        config |= _llama(model, key("expert_count"), key("expert_used_count"))
    if architecture in ("stablelm", "phi3"):
        config |= _partial_rotary(config, key("rope.dimension_count"))
    if architecture in ("gemma2", "gemma3"):
        config |= _gemma_scale(architecture, config)
    with np.errstate(all="ignore"):  # absurd numbers fit no table
        scaling = rope_scaling(name, model, config)
    if scaling is not None:
        config["rope_scaling"] = scaling
    if scaling is not None and scaling["rope_type"] == "longrope":
        original = scaling["original_max_position_embeddings"]
        config["original_max_position_embeddings"] = original
    return config


def _llama(model: GgufModel, experts: Any, used: Any) -> dict[str, Any]:
    """What distinguishes the models that llama.cpp calls "llama": biases, and Mixtral's experts."""
    if experts:
        return {
            "model_type": "mixtral",
            "num_local_experts": experts,
            "num_experts_per_tok": used,
        }
    return {
        "attention_bias": "blk.0.attn_q.bias" in model.tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in model.tensors,
    }


def _partial_rotary(config: dict[str, Any], rotated: Any) -> dict[str, Any]:
    """Which share of each head is rotated."""
    if not isinstance(rotated, int):
        return {}
    head_dim = config["hidden_size"] // config["num_attention_heads"]
    return {"partial_rotary_factor": rotated / head_dim}


def _gemma_scale(architecture: str, config: dict[str, Any]) -> dict[str, Any]:
    """By what attention scores are scaled. Only the 27B models do not scale by the head's size.

    llama.cpp tells them by their number of layers too, since GGUF does not state it.
    """
    layers_of_27b = {"gemma2": 46, "gemma3": 62}[architecture]
    if config["num_hidden_layers"] == layers_of_27b:
        return {"query_pre_attn_scalar": config["hidden_size"] // config["num_attention_heads"]}
    return {"query_pre_attn_scalar": config["head_dim"]} if "head_dim" in config else {}
