"""From a model's files to a Hugging Face model, or to one clear error.

Never remote code. Knows nothing of gates, depth or replies.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from d3cli.base.errors import ModelError, Setting, Words, one_line
from d3cli.base.progress import ByteProgress
from d3cli.depth.families import Family
from d3cli.files.json_files import BROKEN_FILES
from d3cli.kernels.bnb_linear import pack_for_cpu, quantization_config
from d3cli.kernels.choices import choices_here
from d3cli.kernels.int8_linear import quantize_head
from d3cli.kernels.joint_linear import join_quantized, place_and_join
from d3cli.kernels.plan import KernelPlan
from d3cli.kernels.process import import_bitsandbytes, no_progress_bar, prepare_quantization
from d3cli.kernels.quantization import OWN_KINDS
from d3cli.kernels.quantized_linears import quantize_linears, use_measured
from d3cli.model.check import OLD_BUFFERS
from d3cli.model.checkpoint import Checkpoint, IsDeferred, StoredWeights, nothing_deferred
from d3cli.model.config import model_class, without_choices
from d3cli.model.placement import Placement
from d3cli.model.ranks.weights import splitting

CPU = Setting("device", "cpu")


def load_weights(
    checkpoint: Checkpoint,
    family: Family,
    plan: KernelPlan,
    *,
    ids: Sequence[int],
    progress: ByteProgress,
    placement: Placement | None = None,
    is_deferred: IsDeferred = nothing_deferred,
) -> tuple[Any, list[str]]:
    """Loads a causal language model with the kernels of `plan`.

    Returns it with the names of linears that were not quantized because of their shapes.

    Args:
        ids: a text for `quantize_linears`.
        progress: counts each weight that is brought into another form.
        placement: where its layers lie; None if all of it lies on the device of `plan`.
        is_deferred: which weights of a placement are read after transformers has built the model.

    Raises:
        ModelError: the files are damaged, or a tensor is missing, misshapen or unexpected.
    """
    weights = checkpoint.weights(plan, progress.add, is_deferred)
    model, unfit = _built(checkpoint, family, plan, weights, placement)
    if placement is not None:
        from d3cli.model.spread import spread  # only where it is needed: accelerate is large

        spread(model, family, placement, weights.reader, progress.add)
        return model, unfit
    if plan.form.quantization in OWN_KINDS:
        unfit = quantize_linears(model, plan, weights.read, weights.groups, ids)
        join_quantized(model)
    if plan.head_in_8_bits:
        quantize_head(model, weights.rows)
    if plan.float_products is not None:
        place_and_join(model, plan, weights.read, progress.add)
        choices = choices_here()
        use_measured(model, choices.kernel_rows, choices.is_packed)
    if plan.form.ranks == 1:
        weights.fill(model)
        if plan.form.device.type == "cpu":
            _pack_4_bits(checkpoint.name, model, progress)
    return model, unfit


def _built(
    checkpoint: Checkpoint,
    family: Family,
    plan: KernelPlan,
    weights: StoredWeights,
    placement: Placement | None,
) -> tuple[Any, list[str]]:
    """The model as transformers builds it, and the linears that it does not quantize.

    It lies on the device of `plan`, unless there is a placement.
    """
    name, device = checkpoint.name, plan.form.device
    try:
        with warnings.catch_warnings(), no_progress_bar(), splitting(plan.form) as split:
            warnings.simplefilter("ignore")  # transformers warns about its own deprecations
            config = without_choices(checkpoint.config())
            options, unfit = _quantization(config, plan)
            options |= split
            at_once = checkpoint.recipes is not None and placement is None and not split
            if at_once and device.type != "cpu":
                options = {"device_map": {"": device}, **options}
            model, report = model_class(config).from_pretrained(
                None,
                config=config,
                state_dict=weights.state,
                dtype=plan.form.dtype,
                attn_implementation=family.attention,
                ignore_mismatched_sizes=True,  # they are reported, and refused below by name
                output_loading_info=True,
                **options,
            )
    except (ModelError, MemoryError, torch.OutOfMemoryError):
        raise  # running out of memory is not the files' fault
    except Exception as error:  # a broken checkpoint may raise anything
        hint = _hint_on_loading(error, device)
        raise ModelError(f"{name} cannot be loaded: {one_line(error)}", hint) from error
    _refuse_wrong_tensors(name, report)
    if placement is None and not options:
        model = model.to(device)
    return model, unfit


def _hint_on_loading(error: Exception, device: torch.device) -> Words:
    if isinstance(error, OSError):
        return "check the disk and the permissions of the model's files"
    if isinstance(error, ImportError):
        return "install the package that it names"
    if device.type != "cpu":
        return ("to tell whether the device or the files are at fault, try ", CPU)
    return BROKEN_FILES


def _quantization(config: Any, plan: KernelPlan) -> tuple[dict[str, Any], list[str]]:
    """Options of transformers for quantized weights, and the linears that are not quantized."""
    form = plan.form
    if form.quantization is None or form.quantization in OWN_KINDS:
        if not plan.stored_quantized:
            return {}, []
        import_bitsandbytes()
        return {"device_map": {"": form.device}}, []
    prepare_quantization(in_4_bits_on_cpu=form.in_4_bits_on_cpu)
    unfit = _unfit_linears(config, plan) if form.in_4_bits_on_cpu else []
    settings = quantization_config(form.quantization, form.dtype, unfit)
    # device_map makes transformers create quantized weights on their device.
    return {"quantization_config": settings, "device_map": {"": form.device}}, unfit


def _unfit_linears(config: Any, plan: KernelPlan) -> list[str]:
    """The names of linears in layers that the plan does not quantize. Allocates nothing."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    head = model.get_output_embeddings()
    unfit = []
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, Conv1D)) and module is not head:
            shape = module.weight.shape  # GPT-2's Conv1D stores it transposed
            out_in = shape if isinstance(module, nn.Linear) else reversed(shape)
            if plan.of_linear(*out_in) is not plan.quantized:
                unfit.append(name)
    return unfit


def _pack_4_bits(name: str, model: Any, progress: ByteProgress) -> None:
    try:
        pack_for_cpu(model, progress.add)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # bad scales may raise anything
        raise ModelError(
            f"the 4-bit weights of {name} are damaged: {one_line(error)}", BROKEN_FILES
        ) from error


def _refuse_wrong_tensors(name: str, report: dict[str, Any]) -> None:
    """Raises ModelError if tensors are missing, misshapen or unexpected, and names them."""
    mismatched = [key[0] if isinstance(key, tuple) else key for key in report["mismatched_keys"]]
    unexpected = [key for key in report["unexpected_keys"] if not key.endswith(OLD_BUFFERS)]
    problems = {
        "lacks": report["missing_keys"],
        "has the wrong shape for": mismatched,
        "has unexpected": unexpected,
    }
    for problem, keys in problems.items():
        if names := sorted(map(str, keys)):
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise ModelError(
                f"{name} {problem} tensors: {', '.join(names[:3])}{more}",
                "config.json and the weights do not belong together, or are incomplete",
            )
