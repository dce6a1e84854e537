"""The shapes of models and the forms of weights that ``d3 doctor`` compares."""

from dataclasses import dataclass

import torch

from d3cli.files.safetensors import Description, TensorInfo
from d3cli.kernels.choices import choices_here
from d3cli.kernels.plan import Form, KernelPlan, plan_kernels


@dataclass(frozen=True, slots=True)
class Shape:
    """The dimensions of a Llama: enough to choose its kernels and to count the bytes of a step."""

    name: str
    hidden: int
    inner: int
    layers: int
    kv_size: int
    vocabulary: int

    @property
    def head(self) -> tuple[int, int]:
        """The shape of the LM head."""
        return self.vocabulary, self.hidden

    @property
    def description(self) -> Description:
        """Its description, with the weights of the layers' linears only."""
        linears = {
            "self_attn.q_proj": (self.hidden, self.hidden),
            "self_attn.k_proj": (self.kv_size, self.hidden),
            "self_attn.v_proj": (self.kv_size, self.hidden),
            "self_attn.o_proj": (self.hidden, self.hidden),
            "mlp.gate_proj": (self.inner, self.hidden),
            "mlp.up_proj": (self.inner, self.hidden),
            "mlp.down_proj": (self.hidden, self.inner),
        }
        tensors = [
            TensorInfo(f"model.layers.{layer}.{name}.weight", "BF16", shape)
            for layer in range(self.layers)
            for name, shape in linears.items()
        ]
        return Description(self.name, {"model_type": "llama"}, tuple(tensors))

    @property
    def layer_weights(self) -> int:
        """How many weights the layers' linears have."""
        return sum(tensor.numel for tensor in self.description.tensors)

    def bytes_read(self, depth: float, form: Form) -> float:
        """Bytes that one step reads of the linears and the LM head.

        Args:
            depth: the share of the layers that run.
        """
        description = self.description
        plan = kernels_of(self, form)
        layers = sum(map(plan.held_bytes, description.tensors))
        return depth * layers + plan.head_bytes(*self.head)


def kernels_of(shape: Shape, form: Form) -> KernelPlan:
    """The kernels of a model of a shape, as far as they were measured."""
    choices = choices_here()
    return plan_kernels(
        shape.description, shape.head, form, choices.current, choices.head_in_8_bits
    )


SHAPES = (
    Shape("1B (Llama 3.2)", 2048, 8192, 16, 512, 128256),
    Shape("8B (Llama 3.1)", 4096, 14336, 32, 1024, 128256),
    Shape("70B (Llama 3.3)", 8192, 28672, 80, 1024, 128256),
)


def forms(device: torch.device) -> dict[str, Form]:
    """The forms of weights that doctor compares, by name."""
    on_cpu = device.type == "cpu"
    found = {
        "bfloat16": Form(torch.bfloat16, device),
        "float32": Form(torch.float32, device),
        "4-bit": Form(torch.bfloat16, device, "int4" if on_cpu else "bnb-4bit"),
    }
    return found | ({"nested": Form(torch.bfloat16, device, "nested")} if on_cpu else {})
