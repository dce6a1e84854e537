"""From a model's name to a `LoadedModel`: finds the files, checks them, loads them.

Knows nothing of replies or terminals.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, TypedDict, Unpack

import torch

from d3cli.base.errors import ModelError, Setting, Words
from d3cli.base.progress import ByteProgress, OnProgress
from d3cli.base.settings import BUILTIN
from d3cli.depth.calibration_record import ModelKey
from d3cli.depth.families import FAMILIES, Family
from d3cli.files.names import ModelFiles, find_model
from d3cli.files.safetensors import Description
from d3cli.kernels.bnb_linear import bnb_is_fast
from d3cli.kernels.choices import choices_here
from d3cli.kernels.device import Dtype, pick_device, pick_dtype
from d3cli.kernels.int8_linear import HeadChoice
from d3cli.kernels.plan import Form, KernelPlan
from d3cli.kernels.process import prepare_process
from d3cli.kernels.quantization import OWN_KINDS, Quantization, check_hardware, check_quantization
from d3cli.model.build import load_weights
from d3cli.model.check import check_config, check_sizes
from d3cli.model.checkpoint import load_tokenizer, open_checkpoint
from d3cli.model.config import config_errors
from d3cli.model.context import choose_context
from d3cli.model.held_weights import HeldWeights, plan_for
from d3cli.model.kv_cache import DEFAULT_RESERVE
from d3cli.model.memory import check_memory
from d3cli.model.model import LoadedModel
from d3cli.model.origin import Origin, find_calibration, shipped_schedule
from d3cli.model.typical_text import typical_ids
from d3cli.model.wrap import wrap_model
from d3cli.text.chat_template import own_template
from d3cli.text.renderer import Renderer

# Is called with a tokenizer and the renderer of its chat template.
CheckText = Callable[[Any, Renderer], object]


class LoadOptions(TypedDict, total=False):
    """How to load a model, and how much of it.

    Attributes:
        dtype: "auto", the default, is bfloat16 if the GPU multiplies it, or if it is no slower than
            float32 on this processor; else float32.
        quantization: quantizes the layers' linears while loading: "int8", "int4" and "nested" on a
            CPU, with torch's own kernels; "bnb-4bit" and "bnb-8bit" with bitsandbytes. "for decay"
            is "nested" for models and on machines that can have it, else None.
        quantize_head: "auto" puts the LM head into 8 bits on a CPU, if it is a large part of what a
            step reads. None, the default, is "auto" with layers in int8, int4, nested or bnb-4bit,
            else "off".
        device: "auto", the default, is the first GPU, else the CPU; or "cpu", "cuda", "cuda:1".
        full_depth_only: nothing will be dropped, so an untested decoder may run as well.
        context: how many tokens the model shall hold; None is as many as its config says.
        prompt_tokens, reply_tokens: the lengths for which memory is predicted.
        force: loads the model even if the prediction exceeds the free memory.
    """

    dtype: Dtype
    quantization: Quantization | Literal["for decay"] | None
    quantize_head: HeadChoice | None
    device: str
    full_depth_only: bool
    context: int | None
    prompt_tokens: int
    reply_tokens: int
    force: bool


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """What is decided about a model before its weights are read.

    Attributes:
        family: where the parts of its decoder are.
        config: its parsed config.
        kernels: the kernel of each weight, and so the form in which it is loaded.
    """

    family: Family
    config: Any
    kernels: KernelPlan


def check_model(model: Description, **options: Unpack[LoadOptions]) -> LoadPlan:
    """Refuses a model that cannot be loaded with these options, from its description alone.

    Raises:
        ModelError: its stack is not supported, its config cannot be right, or none of its linears
            fits the quantization.
        NotEnoughMemoryError: it does not fit.
        UsageError: the device is not available here, or the context is too long for the model.
    """
    form, full_depth_only = _form(options, model), options.get("full_depth_only", False)
    family, config = check_config(model, form.quantization, full_depth_only=full_depth_only)
    check_sizes(model, config, family)
    with config_errors(model):
        context = choose_context(model.name, config, options.get("context"))
    plan = plan_for(model, config, form)
    if options.get("quantization") == "for decay" and not _quantizes(model, plan):
        plan = plan_for(model, config, replace(form, quantization=None))
    _check_quantizes(model, plan)
    if not options.get("force", False):
        check_memory(
            model,
            config,
            plan.form,
            context=context.length,
            prompt_tokens=options.get("prompt_tokens", 0),
            reply_tokens=options.get("reply_tokens", DEFAULT_RESERVE),
        )
    return LoadPlan(family, config, plan)


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


def load_model(
    name: str | ModelFiles = BUILTIN,
    *,
    threads: int | None = None,
    offline: bool = False,
    revision: str | None = None,
    on_progress: OnProgress | None = None,
    check_text: CheckText | None = None,
    **options: Unpack[LoadOptions],
) -> LoadedModel:
    """Loads a model from an alias, a hub id, a directory or a GGUF file. Never runs remote code.

    Also changes settings of the whole process: `d3cli.kernels.process` lists them.

    Args:
        name: what to load, or files that `find_model` has found.
        threads: CPU threads for torch, in this whole process; None leaves torch's choice.
        offline: never touch the network.
        revision: a branch, a tag or a commit of a model on the hub; None for the default branch.
        on_progress: is called with the share of the weights that is quantized or packed.
        check_text: is called with the tokenizer and the renderer of its chat template before any
            weights are read. Loading ends with the error that it raises.
        options: see `LoadOptions`.

    Raises:
        UnknownModelError, DownloadError: it cannot be found or fetched.
        ModelError: its files are broken, or its stack cannot skip layers.
        NotEnoughMemoryError: it does not fit.
        UsageError: the device or thread count is not possible here, or only models of the hub have
            revisions.
    """
    prepare_process(threads)
    _form(options)  # refuses an impossible device before anything is fetched
    if isinstance(name, ModelFiles):
        files = name
    else:
        files = find_model(
            name, offline=offline, revision=revision, check=partial(check_model, **options)
        )
    files.vet()
    renderer = None
    if not files.is_known:
        renderer = Renderer()
        renderer.start()  # it becomes ready while the files are checked
    checkpoint = open_checkpoint(files)
    plan = check_model(checkpoint.description, **options)
    tokenizer = load_tokenizer(files)
    renderer = renderer or Renderer(trusted=[own_template(tokenizer)])
    if check_text is not None:
        check_text(tokenizer, renderer)
    plan = _measured(checkpoint.description, plan)
    to_convert = HeldWeights(checkpoint.description, plan.config, plan.kernels).to_convert
    causal_lm, unfit = load_weights(
        checkpoint,
        plan.family,
        plan.kernels,
        ids=typical_ids(tokenizer, plan.config) if plan.kernels.rounds_for_inputs else [],
        progress=ByteProgress(to_convert, on_progress),
    )
    model = wrap_model(
        causal_lm,
        tokenizer,
        name=files.name,
        generation_settings=checkpoint.generation_settings(),
        notes=[
            *checkpoint.notes(plan.kernels),
            *_notes(causal_lm, plan, unfit),
            *choices_here().take_notes(),
        ],
        full_depth_only=not plan.family.can_skip,
        context=options.get("context"),
        renderer=renderer,
    )
    return replace(model, origin=_origin(files, model, plan.kernels.form))


def _measured(model: Description, plan: LoadPlan) -> LoadPlan:
    """The plan with kernels that were measured on this machine.

    This takes a second or two if a shape of weights is new here. The check of memory has come
    before, and expects the kernels that need the most.
    """
    return replace(plan, kernels=plan_for(model, plan.config, plan.kernels.form, choices_here()))


def _form(options: LoadOptions, model: Description | None = None) -> Form:
    """The form of weights that the options ask for, on this machine.

    Args:
        model: decides what weights "for decay" are; None if it is not known yet.

    Raises:
        UsageError: the device is not available here, the dtype has another name, or the
            quantization does not run on the device or in the dtype.
    """
    device = pick_device(options.get("device", "auto"))
    asked, wanted = options.get("dtype", "auto"), options.get("quantization")
    dtype = pick_dtype(asked, device)
    if wanted == "for decay":
        on_kernel = device.type == "cpu" and asked in ("auto", "bfloat16")
        wanted = "nested" if on_kernel and model is not None and _can_be_nested(model) else None
    if asked == "auto" and (device.type, dtype) == ("cpu", torch.float32):
        # The processor does not multiply bfloat16, but reading half the bytes may still be faster.
        # Torch's kernels for 8 and 4 bits are several times slower with float32.
        is_fast = wanted in OWN_KINDS or choices_here().bfloat16_is_fast()
        dtype = torch.bfloat16 if is_fast else dtype
    check_hardware(wanted, dtype, device)
    return Form(dtype, device, quantization=wanted, quantize_head=options.get("quantize_head"))


def _can_be_nested(model: Description) -> bool:
    """Whether a model's linears can have two planes, of which its layers can drop one."""
    family = FAMILIES.get(str(model.config.get("model_type")))
    try:
        check_quantization(model.name, model.config, "nested")
    except ModelError:
        return False
    return family is not None and family.has_sublayers


def _notes(causal_lm: Any, plan: LoadPlan, unfit: list[str]) -> list[Words]:
    """What a user should know about how a model was loaded."""
    notes: list[Words] = []
    if plan.kernels.head_in_8_bits:
        notes.append("the LM head is in 8 bits")
    if unfit:
        notes.append(
            f"{len(unfit)} linears are not quantized, since the kernel does not take their shapes: "
            f"{', '.join(unfit[:3])}{', …' if len(unfit) > 3 else ''}"
        )
    form = plan.kernels.form
    if form.quantization in OWN_KINDS and form.dtype == torch.float32:
        notes.append(
            (
                "torch's kernels for 8 and 4 bits are slow with activations in float32: with ",
                Setting("dtype", "bfloat16"),
                " a token takes much less time",
            )
        )
    if plan.kernels.form.in_4_bits_on_cpu and not bnb_is_fast():
        notes.append(
            (
                "bitsandbytes' 4-bit kernel is slow on this processor, which lacks AVX512-BF16: ",
                Setting("quantization", "int4"),
                " is faster",
            )
        )
    stored = getattr(causal_lm.config, "quantization_config", None)
    if getattr(stored, "load_in_8bit", False) and plan.kernels.form.device.type == "cpu":
        notes.append("8-bit weights save memory, but on a CPU they are slower than bfloat16")
    if not plan.family.can_skip:
        notes.append(
            f'd3 is not tested on models of the type "{causal_lm.config.model_type}", so every '
            "layer runs, as in transformers"
        )
    return notes


def _origin(files: ModelFiles, model: LoadedModel, form: Form) -> Origin:
    """Where a model comes from. A model that runs at full depth only needs no calibration."""
    origin = Origin(shipped=shipped_schedule(files), builtin=files.builtin)
    if not model.gate.family.can_skip:
        return origin
    key = ModelKey(
        model=files.identity,
        fingerprint=files.fingerprint(),
        revision=files.revision,
        dtype=str(form.dtype).removeprefix("torch."),
        quantization=form.quantization,
    )
    return replace(origin, key=key, calibration=find_calibration(key, model.check_schedule))
