"""Loads the model that a command runs, and the draft model where one is named.

Says which models these are, and shows progress on a terminal.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Unpack

from d3cli.base.errors import Setting, UsageError
from d3cli.base.hardware import check_address_space
from d3cli.base.launch import launched
from d3cli.base.settings import BUILTIN
from d3cli.cli import ranks
from d3cli.cli.chosen_form import choose_form
from d3cli.cli.draft_options import Drafting
from d3cli.cli.model_options import ModelOptions
from d3cli.cli.output import Output
from d3cli.decode.rules import ignored_settings
from d3cli.files.hub import at_revision
from d3cli.files.names import ModelFiles, find_model
from d3cli.kernels.lean_imports import import_libraries
from d3cli.kernels.process import stay_offline, use_threads

if TYPE_CHECKING:
    from d3cli.model.load import CheckText
    from d3cli.model.load_plan import LoadOptions
    from d3cli.model.model import LoadedModel
    from d3cli.model.placement import Placement
    from d3cli.model.ranks.leader import Leader


def load(
    output: Output,
    name: str,
    options: ModelOptions,
    check_text: "CheckText | None" = None,
    *,
    decays: bool = False,
    **needs: Unpack["LoadOptions"],
) -> "LoadedModel":
    """Says which model runs, finds it and loads it.

    Args:
        check_text: is called with the tokenizer and the renderer before weights are read.
        decays: as for `choose_form`.
    """
    announce(output, name, options, decays=decays)
    return load_announced(output, name, options, check_text, decays=decays, **needs)


def announce(
    output: Output,
    name: str,
    options: ModelOptions,
    drafting: Drafting | None = None,
    *,
    decays: bool = False,
) -> None:
    """Says which models run, and prepares the process for the libraries that find and load them."""
    check_address_space()
    _ = options.limits  # refuses a bad one before the libraries are imported
    words = choose_form(name, options, decays=decays).words
    output.note(f"model: {_called(name, options)}{words}")
    if drafting is not None and drafting.model is not None:
        own = _of_draft(drafting, options)
        words = choose_form(drafting.model, own).words
        output.note(f"draft model: {_called(drafting.model, own)}{words}")
    output.quiet_libraries()
    if options.offline:
        stay_offline()


def load_announced(
    output: Output,
    name: str,
    options: ModelOptions,
    check_text: "CheckText | None" = None,
    *,
    decays: bool = False,
    **needs: Unpack["LoadOptions"],
) -> "LoadedModel":
    """Finds a model and loads it, as `load` does after `announce`."""
    threads = _start_libraries(output, options)
    found = _find(name, options, needs, decays=decays, led=ranks.leader())
    loaded = _load(output, found, threads, check_text)
    _say(output, found, loaded, threads)
    return loaded


def load_models(
    output: Output,
    name: str,
    options: ModelOptions,
    drafting: Drafting | None,
    check_text: "CheckText | None" = None,
    *,
    decays: bool = False,
    **needs: Unpack["LoadOptions"],
) -> "tuple[LoadedModel, LoadedModel | None]":
    """As `load_announced`, with the draft model; None if none is named.

    That both fit into memory is checked before either is loaded, and that they have the same tokens
    before the weights of the larger one are read.

    Raises:
        UsageError: they are the same model.
        ModelError: their tokenizers differ.
        NotEnoughMemoryError: they do not fit.
    """
    if drafting is None or drafting.model is None:
        return load_announced(output, name, options, check_text, decays=decays, **needs), None
    threads = _start_libraries(output, options)
    found = _find(name, options, needs, decays=decays, led=ranks.leader())
    # Under torchrun, drafts are rank 0's alone.
    needs_of_draft: LoadOptions = {**needs, "full_depth_only": True}
    found_draft = _find(drafting.model, _of_draft(drafting, options), needs_of_draft)
    _check_pair(found, found_draft)
    draft_model = _load(output, found_draft, threads)

    def check_both(tokenizer: Any, renderer: Any) -> None:
        from d3cli.decode.draft.by_model import check_tokenizer

        check_tokenizer(found.files.name, tokenizer, draft_model)
        if check_text is not None:
            check_text(tokenizer, renderer)

    model = _load(output, found, threads, check_both)
    _say(output, found, model, threads)
    for note in draft_model.notes:
        output.note(("draft model: ", *([note] if isinstance(note, str) else note)))
    note_size(output, model, draft_model)
    return model, draft_model


def note_size(output: Output, model: "LoadedModel", draft_model: "LoadedModel") -> None:
    """Says so if a draft model is not smaller than the model."""
    if draft_model.weight_bytes.total >= model.weight_bytes.total:
        output.note("the draft model is not smaller than the model, so its drafts can hardly pay")


@dataclass(frozen=True, slots=True)
class _Threads:
    """CPU threads: how many, and why not more; empty if there are no more."""

    number: int
    reason: str


@dataclass(frozen=True, slots=True)
class _Found:
    """A model that is on disk.

    Attributes:
        settings: how to load it.
        for_decay: whether its weights shall be nested if they can be.
        led: makes the other ranks load it as well, under torchrun.
    """

    files: ModelFiles
    settings: "LoadOptions"
    for_decay: bool
    led: "Leader | None" = None


def _called(name: str, options: ModelOptions) -> str:
    return "the built-in model" if name == BUILTIN else at_revision(name, options.revision)


def _of_draft(drafting: Drafting, options: ModelOptions) -> ModelOptions:
    """The options with which a draft model is loaded."""
    return replace(
        options, quantization=drafting.quantization, revision=None, context=None, max_memory=None
    )


def _start_libraries(output: Output, options: ModelOptions) -> _Threads:
    """Imports the libraries."""
    threads, reason = options.threads, ""
    with output.progress.waiting("loading"):
        import_libraries()
        from d3cli.kernels.threads import pick_threads, usable_cores

        launch = launched()
        if threads is None and launch is not None and launch.ranks > 1:
            # torchrun allows one thread by default. Ranks on a machine share its cores.
            threads = max(1, usable_cores() // launch.ranks_here)
        elif threads is None:
            threads, reason = pick_threads()
        use_threads(threads)  # the check before a download may measure kernels with them
    return _Threads(threads, reason)


def _find(
    name: str,
    options: ModelOptions,
    needs: "LoadOptions",
    *,
    decays: bool = False,
    led: "Leader | None" = None,
) -> _Found:
    """Finds a model, and downloads it if need be; without a spinner, since a download has one."""
    from d3cli.model.load_plan import check_model

    chosen = choose_form(name, options, decays=decays)
    settings: LoadOptions = {**chosen.load_options, **needs}
    if led is not None:
        settings["ranks"] = led.launch
    files = find_model(
        name,
        offline=options.offline,
        revision=options.revision,
        check=partial(check_model, **settings),
    )
    return _Found(files, settings, chosen.for_decay, led)


def _check_pair(found: _Found, draft: _Found) -> None:
    """Refuses a model as its own draft model, and two that do not fit into memory together."""
    from d3cli.model.checkpoint import open_checkpoint
    from d3cli.model.kv_cache import DEFAULT_RESERVE
    from d3cli.model.load_plan import check_model
    from d3cli.model.memory import predict_memory

    for each in (found, draft):
        each.files.vet()
    own, others = found.settings.get("quantization"), draft.settings.get("quantization")
    if own == others and found.files.fingerprint() == draft.files.fingerprint():
        raise UsageError(
            ("the model of ", Setting("draft_model"), " is the model itself"),
            "name a smaller one of the same family",
        )
    description = open_checkpoint(draft.files).description
    form = check_model(description, **draft.settings).kernels.form
    if found.settings.get("force", False):
        return
    need = predict_memory(
        description,
        dtype=form.dtype,
        quantization=form.quantization,
        quantize_head=form.quantize_head,
        device=form.device,
        prompt_tokens=draft.settings.get("prompt_tokens", 0),
        reply_tokens=draft.settings.get("reply_tokens", DEFAULT_RESERVE),
    )
    both: LoadOptions = {**found.settings, "beside": need.total - need.code}
    check_model(open_checkpoint(found.files).description, **both)


def _load(
    output: Output,
    found: _Found,
    threads: _Threads,
    check_text: "CheckText | None" = None,
) -> "LoadedModel":
    from d3cli.model.load import load_model

    with output.progress.waiting("loading") as show:
        return load_model(
            found.files,
            threads=threads.number,
            on_progress=show,
            check_text=check_text,
            leader=found.led,
            on_placement=partial(_say_placement, output),
            **found.settings,
        )


def _say_placement(output: Output, placement: "Placement") -> None:
    for line in placement.summary():
        output.note(f"placed on {line}")


def _say(output: Output, found: _Found, loaded: "LoadedModel", threads: _Threads) -> None:
    """Says what the user should know about how a model was loaded."""
    if threads.reason:
        output.note(f"{threads.reason}; --threads overrides")
    if found.for_decay and not loaded.weight_bytes.is_nested:
        output.note("the weights stay as they are: d3 cannot nest those of this model here")
    ignored = ignored_settings(loaded.text.generation_settings, loaded.context_length)
    for note in (*loaded.notes, *([] if ignored is None else [ignored])):
        output.note(note)
