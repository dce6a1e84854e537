"""What of a model `KernelChoices` measures: shapes of weights, and the LM head.

Knows the shapes of weights, not their values.
"""

from typing import cast

from d3cli.files.safetensors import Description
from d3cli.kernels.choice_file import Wanted
from d3cli.kernels.measure_small import Kind
from d3cli.kernels.plan import TINY, KernelPlan
from d3cli.kernels.quantization import OWN_KINDS


def measured_shapes(model: Description, head: tuple[int, int], plan: KernelPlan) -> list[Wanted]:
    """All that is measured for a model.

    Args:
        head: the shape of its LM head.
        plan: the plan to expect; only its choice of products may change.
    """
    found: list[Wanted] = [("bfloat16", *shape) for shape in float_shapes(model, head, plan)]
    found += small_shapes(model, head, plan)
    if plan.head_may_have_8_bits:
        found.append(("head", *head))
    return found


def float_shapes(
    model: Description, head: tuple[int, int], plan: KernelPlan
) -> list[tuple[int, int]]:
    """The shapes of the weights that multiply with the products of `KernelChoices`."""
    if plan.float_products is None:
        return []
    shapes = set() if plan.head_in_8_bits else {head}
    if not plan.transposed:  # GPT-2's layers have no linears
        shapes |= {
            plan.product_shape(tensor)
            for tensor in model.tensors
            if tensor.layer is not None and len(tensor.shape) == 2 and not plan.quantizes(tensor)
        }
    return sorted(shape for shape in shapes if shape[0] * shape[1] >= TINY)


def small_shapes(model: Description, head: tuple[int, int], plan: KernelPlan) -> list[Wanted]:
    """The shapes of the weights in 8 and 4 bits for torch's own kernels, with their kinds."""
    if plan.float_products is None:
        return []
    found: set[Wanted] = set()
    if plan.head_may_have_8_bits:
        found |= {("int8", *head), ("packing", *head)}
    if plan.form.quantization in OWN_KINDS:
        kind = cast(Kind, plan.form.quantization)
        shapes = {
            plan.joints.get(tensor.name, plan.out_in(tensor))
            for tensor in model.tensors
            if plan.quantizes(tensor)
        }
        found |= {(kind, *shape) for shape in shapes}
        if kind == "int8":
            found |= {("packing", *shape) for shape in shapes}
    return sorted(each for each in found if each[1] * each[2] >= TINY)
