"""The allow-list: model types whose stacks are proven to skip layers, and where their parts are."""

from collections.abc import Mapping
from dataclasses import dataclass

from d3cli.base.errors import ModelError

OTHER_TYPE = "use a model of a supported type: docs/models.md"


@dataclass(frozen=True, slots=True)
class Family:
    """Where a family keeps the parts of its decoder, and the attention kernel it is proven with.

    Attributes:
        models: what people call its models, for the documentation.
        decoder: the module that turns ids into final hidden states, from the base model; "" is the
            base model itself.
        stack: the list of its layers, from the decoder.
        attn, mlp: the two sublayers, from a layer. Without an MLP module of its own, a layer can
            only be dropped whole.
        attention: transformers' name of the attention implementation; None leaves its choice.
        can_skip: whether its layers are gated; not those of `UNLISTED`.
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


# The allow-list. A model type stands here once tests/model/test_families.py proves it.
FAMILIES: Mapping[str, Family] = {
    "llama": Family("Llama 2, 3, 3.1, 3.2, 3.3; TinyLlama, SmolLM2, the built-in model"),
    "mistral": Family("Mistral 7B, Mistral Nemo, Mistral Small (text)"),
    "mixtral": Family("Mixtral 8x7B, 8x22B"),
    "qwen2": Family("Qwen 2, Qwen 2.5, QwQ"),
    "qwen3": Family("Qwen 3, dense"),
    "qwen3_moe": Family("Qwen 3, mixture of experts"),
    # Gemma 2 caps its attention scores, which SDPA cannot.
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
    # OPT's layers hold their two linears themselves: no MLP module to gate.
    "opt": Family("OPT", decoder="decoder", mlp=None),
}

# Any other decoder: its layers are left alone, so it runs at full depth only.
UNLISTED = Family("", attention=None, can_skip=False)

_HYBRID = "some of its layers keep a recurrent state, which every token must update"
_RECURRENT = "it is recurrent: every layer must read every token"
_SHARED = "its later layers read the keys and values of earlier ones"
ENCODER_DECODER = "it is an encoder-decoder, and D³ is about decoder-only models"
_WRAPPER = "it is a multimodal wrapper; d3 reads text-only checkpoints"

# Stacks that people have and that cannot skip layers, and why.
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


def find_family(model_type: str) -> Family:
    """The family of a config's `model_type`; `UNLISTED` where no test proves it.

    Raises:
        ModelError: this stack cannot skip layers.
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
    """The error for layers of an `UNLISTED` type that would be dropped."""
    return ModelError(
        f'models of the type "{model_type}" are not supported: skipping their layers has not been '
        "proven exact",
        f"--alpha off runs it at full depth; supported types: {', '.join(sorted(FAMILIES))}",
    )
