"""What else reads fewer bytes per token than a model does now, without depth decay.

Knows the plan of kernels; runs nothing.
"""

from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import nn

from d3cli.base.errors import Setting
from d3cli.files.safetensors import Description, TensorInfo
from d3cli.kernels.choices import choices_here
from d3cli.kernels.plan import Form, plan_kernels
from d3cli.kernels.quantization import Quantization
from d3cli.model.held_weights import head_shape
from d3cli.model.model import LoadedModel

# The forms of the weights that are compared.
FORMS: tuple[Quantization, ...] = ("int8", "nested", "int4")
# A form that reads fewer bytes by less than this factor is not worth naming.
MIN_RATIO = 1.1


@dataclass(frozen=True, slots=True)
class Alternative:
    """A setting with which the model reads fewer bytes per token.

    Attributes:
        byte_ratio: bytes of a full-depth step now over those with the setting, by the plan.
    """

    setting: Setting
    byte_ratio: float


def alternatives(model: LoadedModel) -> list[Alternative]:
    """The settings that make this model faster on this device, the best one first."""
    if not can_quantize(model):
        return []
    kind: Quantization = "int4" if model.device.type == "cpu" else "bnb-4bit"
    ratio = _byte_ratio(model, Form(model.causal_lm.dtype, model.device, kind))
    found = [Alternative(Setting("quantization", kind), ratio)]
    return [one for one in found if one.byte_ratio >= MIN_RATIO]


def can_quantize(model: LoadedModel) -> bool:
    """Whether the model can be loaded with 4-bit weights, and is not."""
    config = model.causal_lm.config
    if not any(isinstance(part, nn.Linear) for part in model.gate.layers.modules()):
        return False  # it is quantized, or has no linears
    if getattr(config, "quantization_config", None) is not None:
        return False
    if model.leader is not None:
        return False  # it is split over ranks
    if getattr(config, "num_experts_per_tok", None) is not None:
        return False  # experts are not quantized
    if model.device.type == "cpu":
        return model.gate.family.can_skip and model.causal_lm.dtype != torch.float16
    return all(find_spec(name) for name in ("bitsandbytes", "accelerate"))


def forms_to_try(model: LoadedModel) -> list[Quantization]:
    """The forms of the weights that a search compares with those as stored.

    They run on a CPU that holds them. One that reads about as much as a model does now is left out.
    """
    if model.placement is not None:
        return []
    if model.device.type != "cpu" or not can_quantize(model):
        return []
    dtype = torch.bfloat16 if model.causal_lm.dtype == torch.float32 else model.causal_lm.dtype
    return [
        kind for kind in FORMS if _byte_ratio(model, Form(dtype, model.device, kind)) >= MIN_RATIO
    ]


def _byte_ratio(model: LoadedModel, form: Form) -> float:
    """Bytes of a full-depth step now over those of the same step in another form."""
    config = model.causal_lm.config
    tensors = tuple(
        TensorInfo(f"layers.{layer}.{name}.weight", "BF16", (part.out_features, part.in_features))
        for layer, module in enumerate(model.gate.layers)
        for name, part in module.named_modules()
        if isinstance(part, nn.Linear)
    )
    description = Description(model.name, config.to_dict(), tensors)
    choices = choices_here()
    now, then = (
        sum(map(plan.held_bytes, tensors)) + plan.head_bytes(*head_shape(config))
        for plan in (
            plan_kernels(description, head_shape(config), each, None, choices.head_in_8_bits)
            for each in (Form(form.dtype, form.device), form)
        )
    )
    total = model.weight_bytes.total
    return total / (total - now + then)
