"""Which linears become one product, by the names and shapes of their weights.

Knows nothing of kernels: `joint_linear` joins them.
"""

from d3cli.files.safetensors import Description

# Names of linears in one module that read the same input. They become one product, unless it would
# read many plain weights.
JOINED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


def joint_shapes(model: Description) -> dict[str, tuple[int, int]]:
    """The shapes of joint products, by the names of the weights that they join."""
    by_name = {
        tensor.name: tensor.shape
        for tensor in model.tensors
        if tensor.layer is not None and len(tensor.shape) == 2 and not tensor.is_expert
    }
    found: dict[str, tuple[int, int]] = {}
    for names in JOINED:
        first = f".{names[0]}.weight"
        for prefix in [name.removesuffix(first) for name in by_name if name.endswith(first)]:
            members = [f"{prefix}.{name}.weight" for name in names]
            if all(member in by_name for member in members):
                outputs = sum(by_name[member][0] for member in members)
                found |= dict.fromkeys(members, (outputs, by_name[members[0]][1]))
    return found
