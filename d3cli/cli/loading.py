"""Finds and loads the model of a command, and says what the user should know about it."""

from functools import partial
from typing import TYPE_CHECKING, Unpack

from d3cli.base.hardware import check_address_space
from d3cli.base.settings import BUILTIN
from d3cli.cli.chosen_form import choose_form
from d3cli.cli.model_options import ModelOptions
from d3cli.cli.output import Output
from d3cli.decode.rules import ignored_settings
from d3cli.files.hub import at_revision
from d3cli.files.names import find_model
from d3cli.kernels.lean_imports import import_libraries
from d3cli.kernels.process import stay_offline, use_threads

if TYPE_CHECKING:
    from d3cli.model.load import CheckText
    from d3cli.model.load_plan import LoadOptions
    from d3cli.model.model import LoadedModel


def load(
    output: Output,
    name: str,
    options: ModelOptions,
    check_text: "CheckText | None" = None,
    *,
    decays: bool = False,
    **needs: Unpack["LoadOptions"],
) -> "LoadedModel":
    """Says which model runs, finds it and loads it, with progress on a terminal.

    Args:
        check_text: is called with the tokenizer and the renderer before weights are read.
        decays: as for `choose_form`.
    """
    announce(output, name, options, decays=decays)
    return load_announced(output, name, options, check_text, decays=decays, **needs)


def announce(output: Output, name: str, options: ModelOptions, *, decays: bool = False) -> None:
    """Says which model runs, and prepares the process for the libraries that find and load it."""
    check_address_space()
    model = "the built-in model" if name == BUILTIN else at_revision(name, options.revision)
    output.note(f"model: {model}{choose_form(name, options, decays=decays).words}")
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
    chosen = choose_form(name, options, decays=decays)
    settings: LoadOptions = {**chosen.load_options, **needs}
    threads, reason = options.threads, ""
    with output.progress.waiting("loading"):
        import_libraries()
        from d3cli.kernels.threads import pick_threads
        from d3cli.model.load import load_model
        from d3cli.model.load_plan import check_model

        if threads is None:
            threads, reason = pick_threads()
        use_threads(threads)  # the check before a download may measure kernels with them

    # Without a spinner, since a download shows its own progress.
    files = find_model(
        name,
        offline=options.offline,
        revision=options.revision,
        check=partial(check_model, **settings),
    )
    with output.progress.waiting("loading") as show:
        loaded = load_model(
            files, threads=threads, on_progress=show, check_text=check_text, **settings
        )
    if reason:
        output.note(f"{reason}; --threads overrides")
    if chosen.for_decay and not loaded.weight_bytes.is_nested:
        output.note("the weights stay as they are: d3 cannot nest those of this model here")
    ignored = ignored_settings(loaded.text.generation_settings, loaded.context_length)
    for note in (*loaded.notes, *([] if ignored is None else [ignored])):
        output.note(note)
    return loaded
