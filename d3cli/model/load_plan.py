"""What is decided about loading a model before its weights are read, from its description alone.

Knows nothing of tokenizers or of the files that hold the weights.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypedDict, Unpack

import torch

from d3cli.base.errors import ModelError, NotEnoughMemoryError, Setting, UsageError
from d3cli.base.launch import Launch
from d3cli.depth.families import FAMILIES, Family
from d3cli.files.safetensors import Description, TensorInfo
from d3cli.kernels.choices import choices_here
from d3cli.kernels.device import Dtype, pick_device, pick_dtype
from d3cli.kernels.int8_linear import HeadChoice
from d3cli.kernels.plan import Form, KernelPlan
from d3cli.kernels.quantization import OWN_KINDS, Quantization, check_hardware, check_quantization
from d3cli.model.check import check_config, check_sizes
from d3cli.model.config import config_errors
from d3cli.model.context import choose_context
from d3cli.model.held_weights import plan_for
from d3cli.model.kv_cache import DEFAULT_RESERVE
from d3cli.model.memory import check_memory
from d3cli.model.placement import Placement
from d3cli.model.ranks.plan import check_ranks, refuse_other_device
from d3cli.model.rooms import CPU, place_model, place_names, rooms_here

ALONE = Launch(rank=0, ranks=1, rank_here=0, ranks_here=1)
# The dtypes in which nested weights are chosen for the user.
NESTED_DTYPES = ("auto", "bfloat16")


class LoadOptions(TypedDict, total=False):
    """How to load a model, and how much of it.

    Attributes:
        dtype: "auto", the default, is bfloat16 if the GPU multiplies it, or if it is no slower than
            float32 on this processor; else float32.
        quantization: quantizes the layers' linears while loading: "int8", "int4" and "nested" on a
            CPU, with torch's own kernels; "bnb-4bit" and "bnb-8bit" with bitsandbytes.
        for_decay: without `quantization`, weights are nested if the model and the device allow it,
            so that decay can drop bits.
        quantize_head: "auto" puts the LM head into 8 bits on a CPU, if it is a large part of what a
            step reads. None, the default, is "auto" with layers in int8, int4, nested or bnb-4bit,
            else "off".
        device: "auto", the default, is the first GPU, else the CPU; or "cpu", "cuda", "cuda:1".
        full_depth_only: nothing will be dropped, so an untested decoder may run as well.
        context: how many tokens the model shall hold; None is as many as its config says.
        prompt_tokens, reply_tokens: the lengths for which memory is predicted.
        beside: bytes that a draft model needs as well.
        max_memory: with the device "auto", the most bytes to use on a GPU ("0" or "cuda:0"), on the
            "cpu" and on the "disk". Layers for which the devices have no room lie in main memory,
            then on the disk. Without it, that is so if there is a GPU.
        force: loads the model even if the prediction exceeds the free memory.
        ranks: the processes over which the model is split, and which of them this is.
    """

    dtype: Dtype
    quantization: Quantization | None
    for_decay: bool
    quantize_head: HeadChoice | None
    device: str
    full_depth_only: bool
    context: int | None
    prompt_tokens: int
    reply_tokens: int
    beside: int
    max_memory: Mapping[str, int]
    force: bool
    ranks: Launch


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """What is decided about a model before its weights are read.

    Attributes:
        family: where the parts of its decoder are.
        config: its parsed config.
        kernels: the kernel of each weight, and so the form in which it is loaded.
        placement: where its layers lie; None if one device holds all of it.
    """

    family: Family
    config: Any
    kernels: KernelPlan
    placement: Placement | None = None

    def is_deferred(self, tensor: TensorInfo) -> bool:
        """Whether a weight is read after transformers has built the model.

        Those of layers that do not lie in main memory are. transformers itself joins experts.
        """
        if self.placement is None or tensor.layer is None or tensor.is_expert:
            return False
        return self.placement.homes[tensor.layer] != CPU


def check_model(model: Description, **options: Unpack[LoadOptions]) -> LoadPlan:
    """Refuses a model that cannot be loaded with these options, from its description alone.

    Raises:
        ModelError: its stack is not supported, its config cannot be right, or none of its linears
            fits the quantization.
        NotEnoughMemoryError: it does not fit.
        UsageError: the device is not available here, or the context is too long for the model.
    """
    nests = options.get("for_decay", False) and _may_be_nested(model, options)
    form = form_for({**options, "quantization": "nested"} if nests else options)
    full_depth_only = options.get("full_depth_only", False)
    family, config = check_config(model, form.quantization, full_depth_only=full_depth_only)
    if form.ranks > 1:
        stored = model.config.get("quantization_config")
        check_ranks(model.name, config, family, form, stored)
    check_sizes(model, config, family)
    with config_errors(model):
        context = choose_context(model.name, config, options.get("context"))
    plan = plan_for(model, config, form)
    if nests and not _quantizes(model, plan):
        plan = plan_for(model, config, form_for(options))
    _check_quantizes(model, plan)
    placed = _place(model, config, plan, family, context.length, options)
    if placed is not None:
        return LoadPlan(family, config, *placed)
    if not options.get("force", False):
        check_memory(
            model,
            config,
            plan.form,
            context=context.length,
            prompt_tokens=options.get("prompt_tokens", 0),
            reply_tokens=options.get("reply_tokens", DEFAULT_RESERVE),
            beside=options.get("beside", 0),
        )
    return LoadPlan(family, config, plan)


def _place(
    model: Description,
    config: Any,
    plan: KernelPlan,
    family: Family,
    context: int,
    options: LoadOptions,
) -> tuple[KernelPlan, Placement | None] | None:
    """Chooses among several places; None if there is only one device to load the model on.

    Raises:
        NotEnoughMemoryError: the places that the user has limited do not suffice.
    """
    force, limits = options.get("force", False), _limits(options)
    several = plan.form.device.type != CPU and not force
    if "ranks" in options or options.get("device", "auto") != "auto" or not (limits or several):
        return None
    prompt_tokens = options.get("prompt_tokens", 0)
    try:
        return place_model(
            model,
            config,
            plan,
            family,
            rooms=rooms_here(limits, beside=options.get("beside", 0), force=force),
            positions=min(prompt_tokens + options.get("reply_tokens", DEFAULT_RESERVE), context),
            prompt_tokens=prompt_tokens,
        )
    except NotEnoughMemoryError:
        if limits:
            raise
        return None  # the check of one device says what would fit


def _limits(options: LoadOptions) -> dict[str, int]:
    """The limits of memory by the names of places.

    Raises:
        UsageError: as for `place_names`, or ranks split the model already.
    """
    if options.get("max_memory") and "ranks" in options:
        raise UsageError(
            (Setting("max_memory"), " places the layers of one process, and torchrun has several"),
            ("leave out ", Setting("max_memory"), ", or start d3 without torchrun"),
        )
    return place_names(options.get("max_memory", {}), options.get("device", "auto"))


def form_for(options: LoadOptions) -> Form:
    """The form of weights that the options ask for, on this machine.

    Raises:
        UsageError: a device is not available here, the dtype has another name, or the
            quantization does not run on the device or in the dtype.
    """
    _limits(options)
    device = pick_device(options.get("device", "auto"))
    ranks = options.get("ranks", ALONE)
    if ranks is not ALONE:
        gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        refuse_other_device(options.get("device", "auto"), ranks, gpus)
        if device.type == "cuda":
            device = torch.device("cuda", ranks.rank_here)
    asked, wanted = options.get("dtype", "auto"), options.get("quantization")
    dtype = pick_dtype(asked, device)
    if asked == "auto" and (device.type, dtype) == ("cpu", torch.float32):
        # The processor does not multiply bfloat16, but reading half the bytes may still be faster.
        # Torch's kernels for 8 and 4 bits are several times slower with float32.
        is_fast = wanted in OWN_KINDS or choices_here().bfloat16_is_fast()
        dtype = torch.bfloat16 if is_fast else dtype
    check_hardware(wanted, dtype, device)
    head = options.get("quantize_head")
    return Form(dtype, device, wanted, head, ranks=ranks.ranks, ranks_here=ranks.ranks_here)


def _may_be_nested(model: Description, options: LoadOptions) -> bool:
    """Whether weights could have two planes, of which layers can drop one, if their shapes fit."""
    if options.get("quantization") is not None or options.get("dtype", "auto") not in NESTED_DTYPES:
        return False
    if "ranks" in options or options.get("max_memory"):
        return False  # weights that are made while loading cannot be split
    if pick_device(options.get("device", "auto")).type != "cpu":
        return False
    family = FAMILIES.get(str(model.config.get("model_type")))
    try:
        check_quantization(model.name, model.config, "nested")
    except ModelError:
        return False
    return family is not None and family.has_sublayers


def _check_quantizes(model: Description, plan: KernelPlan) -> None:
    """Refuses a quantization that would leave every linear as it is.

    Raises:
        ModelError: with what to do instead.
    """
    wanted = plan.form.quantization
    if wanted is None or _quantizes(model, plan):
        return
    raise ModelError(
        f"{model.name} cannot be quantized to {wanted}: the kernel takes the shape of none of its "
        "linears",
        ("leave out ", Setting("quantization"), ", or choose another"),
        field="quantization",
    )


def _quantizes(model: Description, plan: KernelPlan) -> bool:
    """Whether a plan quantizes any of a model's linears."""
    return any(map(plan.quantizes, model.tensors))
