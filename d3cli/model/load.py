"""From a model's name to a `LoadedModel`: finds the files, checks them, loads them.

Knows nothing of replies or terminals.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Unpack

import torch

from d3cli.base.errors import Setting, Words
from d3cli.base.progress import ByteProgress, OnProgress
from d3cli.base.settings import BUILTIN
from d3cli.depth.calibration_record import ModelKey
from d3cli.files.names import ModelFiles, find_model
from d3cli.files.safetensors import Description
from d3cli.kernels.bnb_linear import bnb_is_fast
from d3cli.kernels.choices import choices_here
from d3cli.kernels.plan import Form
from d3cli.kernels.process import prepare_process
from d3cli.kernels.quantization import OWN_KINDS
from d3cli.model.build import load_weights
from d3cli.model.checkpoint import load_tokenizer, open_checkpoint
from d3cli.model.held_weights import HeldWeights, plan_for
from d3cli.model.load_plan import LoadOptions, LoadPlan, check_model, form_for
from d3cli.model.model import LoadedModel
from d3cli.model.origin import Origin, find_calibration, find_draft_calibration, shipped_origin
from d3cli.model.placement import Placement
from d3cli.model.typical_text import typical_ids
from d3cli.model.wrap import wrap_model
from d3cli.text.chat_template import own_template
from d3cli.text.renderer import Renderer

if TYPE_CHECKING:
    from d3cli.model.ranks.leader import Leader

# Is called with a tokenizer and the renderer of its chat template.
CheckText = Callable[[Any, Renderer], object]
# Is called with where the layers of a model will lie.
OnPlacement = Callable[[Placement], object]


def load_model(
    name: str | ModelFiles = BUILTIN,
    *,
    threads: int | None = None,
    offline: bool = False,
    revision: str | None = None,
    on_progress: OnProgress | None = None,
    check_text: CheckText | None = None,
    leader: "Leader | None" = None,
    on_placement: OnPlacement | None = None,
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
        on_placement: is called before any weights are read if layers will lie in several places.
        leader: makes the other ranks load it as well, with `ranks` among the options.
        options: see `LoadOptions`.

    Raises:
        UnknownModelError, DownloadError: it cannot be found or fetched.
        ModelError: its files are broken, or its stack cannot skip layers.
        NotEnoughMemoryError: it does not fit.
        UsageError: the device or thread count is not possible here, or only models of the hub have
            revisions.
    """
    prepare_process(threads)
    form_for(options)  # refuses an impossible device before anything is fetched
    if isinstance(name, ModelFiles):
        files = name
    else:
        files = find_model(
            name, offline=offline, revision=revision, check=partial(check_model, **options)
        )
    files.vet()
    if leader is None:
        return _load(files, options, check_text, on_placement, on_progress, lambda _: nullcontext())

    def together(form: Form) -> AbstractContextManager[None]:
        return leader.loading(files, form, threads, options)

    model = _load(files, options, check_text, on_placement, on_progress, together)
    return replace(model, leader=leader)


def _load(
    files: ModelFiles,
    options: LoadOptions,
    check_text: CheckText | None,
    on_placement: OnPlacement | None,
    on_progress: OnProgress | None,
    together: Callable[[Form], AbstractContextManager[None]],
) -> LoadedModel:
    """Loads a model from files that were vetted; see `load_model`."""
    renderer = None
    follows = "ranks" in options and options["ranks"].rank > 0
    if not (files.is_known or follows):
        renderer = Renderer()
        renderer.start()  # it becomes ready while the files are checked
    checkpoint = open_checkpoint(files)
    plan = check_model(checkpoint.description, **options)
    tokenizer = load_tokenizer(files)
    if renderer is None:
        renderer = Renderer() if follows else Renderer(trusted=[own_template(tokenizer)])
    if check_text is not None:
        check_text(tokenizer, renderer)
    if plan.placement is None:
        plan = _measured(checkpoint.description, plan)
    elif on_placement is not None:
        on_placement(plan.placement)
    to_convert = HeldWeights(checkpoint.description, plan.config, plan.kernels).to_convert
    with together(plan.kernels.form):
        causal_lm, unfit = load_weights(
            checkpoint,
            plan.family,
            plan.kernels,
            ids=typical_ids(tokenizer, plan.config) if plan.kernels.rounds_for_inputs else [],
            progress=ByteProgress(to_convert + _to_place(plan), on_progress),
            placement=plan.placement,
            is_deferred=plan.is_deferred,
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
    origin = _origin(files, model, plan.kernels.form)
    return replace(model, origin=origin, placement=plan.placement)


def _to_place(plan: LoadPlan) -> int:
    """Bytes of layers that loading reads to where they stay, beside those that it converts."""
    placed = plan.placement
    if placed is None:
        return 0
    layers = zip(placed.needs.layers, placed.homes, strict=True)
    return sum(nbytes for nbytes, home in layers if home not in placed.stores)


def _measured(model: Description, plan: LoadPlan) -> LoadPlan:
    """The plan with kernels that were measured on this machine.

    This takes a second or two if a shape of weights is new here. The check of memory has come
    before, and expects the kernels that need the most.
    """
    if plan.kernels.form.ranks > 1:  # transformers' own
        return plan
    return replace(plan, kernels=plan_for(model, plan.config, plan.kernels.form, choices_here()))


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
    origin = shipped_origin(files, form.quantization)
    if not model.gate.family.can_skip:
        return origin
    key = ModelKey(
        model=files.identity,
        fingerprint=files.fingerprint(),
        revision=files.revision,
        dtype=str(form.dtype).removeprefix("torch."),
        quantization=form.quantization,
    )
    return replace(
        origin,
        key=key,
        calibration=find_calibration(key, model.check_schedule),
        drafts=find_draft_calibration(key, model.check_schedule),
    )
