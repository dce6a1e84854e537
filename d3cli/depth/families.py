"""The allow-list: model types that are proven to skip layers, and where their parts are."""

from collections.abc import Mapping
from dataclasses import dataclass

from d3cli.base.errors import ModelError, Setting

OTHER_TYPE = "use a model of a supported type: docs/models.md"


@dataclass(frozen=True, slots=True)
class Family:
    """Where a family keeps the parts of its decoder, and the attention kernel it is proven with.

    Attributes:
        models: the common names of its models, for the documentation.
        decoder: path, from the base model, of the module that turns ids into final hidden states;
            "" is the base model itself.
        stack: path, from the decoder, of the list of its layers.
        attn, mlp: names, in a layer, of its two sublayers. A layer without an MLP module (`mlp` is
            None) can only be dropped whole.
        attention: transformers' name of the attention implementation; None keeps its default.
        can_skip: whether its layers can be dropped; False for `UNLISTED`.
    """

    models: str
    decoder: str = ""
    stack: str = "layers"
    attn: str = "self_attn"
    mlp: str | None = "mlp"
    attention: str | None = "sdpa"
    can_skip: bool = True

    @property
    def has_sublayers(self) -> bool:
        return self.can_skip and self.mlp is not None


# tests/model/test_families.py proves each model type in this list.
FAMILIES: Mapping[str, Family] = {
    "llama": Family("Llama 2, 3, 3.1, 3.2, 3.3; TinyLlama, SmolLM2, the built-in model"),
    "mistral": Family("Mistral 7B, Mistral Nemo, Mistral Small (text)"),
    "mixtral": Family("Mixtral 8x7B, 8x22B"),
    "qwen2": Family("Qwen 2, Qwen 2.5, QwQ"),
    "qwen3": Family("Qwen 3, dense"),
    "qwen3_moe": Family("Qwen 3, mixture of experts"),
    # Gemma 2 caps its attention scores, which SDPA cannot do.
    "gemma2": Family("Gemma 2", attention="eager"),
    "gemma3_text": Family("Gemma 3 270M and 1B (text)"),
    "phi": Family("Phi-1, Phi-1.5, Phi-2"),
    "phi3": Family("Phi-3, Phi-3.5, Phi-4 (text)"),
    "granite": Family("Granite 3, dense"),
    "olmo": Family("OLMo 1"),
    "olmo2": Family("OLMo 2"),
    "cohere": Family("Command R, Aya"),
    "glm4": Family("GLM-4 0414"),
    "stablelm": Family("StableLM 2, StableLM 3B"),
    "smollm3": Family("SmolLM3"),
    "starcoder2": Family("StarCoder2"),
    "gpt_bigcode": Family("StarCoder 1, SantaCoder", stack="h", attn="attn"),
    "gpt_neox": Family("Pythia, GPT-NeoX", attn="attention"),
    "gpt2": Family("GPT-2", stack="h", attn="attn"),
    # OPT's layers hold the two linears of their MLP directly, so no module can be gated.
    "opt": Family("OPT", decoder="decoder", mlp=None),
}

# llama.cpp's names of the proven types that transformers can read from GGUF, as in
# `general.architecture`; with transformers' own. tests/model proves each of them.
GGUF_ARCHITECTURES: Mapping[str, str] = {
    "llama": "llama",  # and Mistral; with experts it is Mixtral
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "qwen3moe": "qwen3_moe",
    "gemma2": "gemma2",
    "gemma3": "gemma3_text",
    "phi3": "phi3",
    "stablelm": "stablelm",
    "starcoder2": "starcoder2",
    "gpt2": "gpt2",
}

# Those of the other proven types, which transformers reads from safetensors alone.
GGUF_NOT_READ: Mapping[str, str] = {
    "phi2": "phi",
    "granite": "granite",
    "olmo": "olmo",
    "olmo2": "olmo2",
    "command-r": "cohere",
    "glm4": "glm4",
    "smollm3": "smollm3",
    "starcoder": "gpt_bigcode",
    "gptneox": "gpt_neox",
}

# Any other decoder. Its layers are not gated, so it runs at full depth only.
UNLISTED = Family("", attention=None, can_skip=False)

_HYBRID = "some of its layers keep a recurrent state, which every token must update"
_RECURRENT = "it is recurrent: every layer must read every token"
_SHARED = "its later layers read the keys and values of earlier ones"
ENCODER_DECODER = "it is an encoder-decoder, and D³ needs a decoder-only model"
_WRAPPER = "it is multimodal, and d3 reads text-only checkpoints"

# Common model types that cannot skip layers, and why.
CANNOT_SKIP: Mapping[str, str] = {
    **dict.fromkeys(
        (
            *("jamba", "bamba", "zamba", "zamba2", "falcon_h1", "granitemoehybrid", "lfm2"),
            *("nemotron_h", "qwen3_next", "qwen3_5_text", "recurrent_gemma", "minimax"),
        ),
        _HYBRID,
    ),
    **dict.fromkeys(("mamba", "mamba2", "falcon_mamba", "rwkv", "xlstm"), _RECURRENT),
    **dict.fromkeys(("gemma3n", "gemma3n_text", "gemma4", "gemma4_text"), _SHARED),
    **dict.fromkeys(("t5", "mt5", "umt5", "bart", "mbart", "pegasus", "t5gemma"), ENCODER_DECODER),
    **dict.fromkeys(
        (
            *("gemma3", "llava", "llava_next", "mllama", "mistral3", "pixtral", "llama4"),
            *("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5", "phi4_multimodal", "idefics3"),
            *("paligemma", "smolvlm", "internvl"),
        ),
        _WRAPPER,
    ),
}

# llama.cpp's names of such types, where they differ.
GGUF_CANNOT_SKIP: Mapping[str, str] = {
    "falcon-h1": "falcon_h1",
    "granitehybrid": "granitemoehybrid",
    "lfm2moe": "lfm2",
    "nemotron_h_moe": "nemotron_h",
    "qwen3next": "qwen3_next",
    "qwen35": "qwen3_5_text",
    "qwen35moe": "qwen3_5_text",
    "qwen2vl": "qwen2_vl",
    "qwen3vl": "qwen3_vl",
    "rwkv6": "rwkv",
    "rwkv7": "rwkv",
    "t5encoder": "t5",
}


def find_family(model_type: str) -> Family:
    """The family of a config's `model_type`; `UNLISTED` if no test proves it.

    Raises:
        ModelError: this type cannot skip layers.
    """
    if model_type in FAMILIES:
        return FAMILIES[model_type]
    if model_type in CANNOT_SKIP:
        raise ModelError(
            f'models of the type "{model_type}" cannot skip layers: {CANNOT_SKIP[model_type]}',
            f"supported types: {', '.join(sorted(FAMILIES))}",
        )
    return UNLISTED


def not_proven(model_type: str) -> ModelError:
    """The error for dropping layers of an `UNLISTED` type."""
    return ModelError(
        f'models of the type "{model_type}" are not supported: skipping their layers has not been '
        "proven exact",
        (
            Setting("alpha", "off"),
            f" runs it at full depth; supported types: {', '.join(sorted(FAMILIES))}",
        ),
    )
