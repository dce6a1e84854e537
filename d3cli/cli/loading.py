"""Finding and loading the model that a command line names, showing what takes long."""

import os
from functools import partial
from typing import TYPE_CHECKING, Unpack

from d3cli.base.hardware import check_address_space
from d3cli.base.settings import BUILTIN
from d3cli.cli.output import Output
from d3cli.files.names import find_model

if TYPE_CHECKING:
    from d3cli.model.load import LoadOptions
    from d3cli.model.model import LoadedModel


def load(
    output: Output,
    name: str,
    offline: bool,
    threads: int | None,
    **settings: Unpack["LoadOptions"],
) -> "LoadedModel":
    """Says which model runs, finds it and loads it."""
    check_address_space()
    reason = ""
    output.note(f"model: {'the built-in model' if name == BUILTIN else name}")
    output.quiet_libraries()
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"
    with output.waiting("loading"):
        from d3cli.kernels.threads import pick_threads
        from d3cli.model.load import check_model, load_model

        if threads is None:
            threads, reason = pick_threads()
    if reason:
        output.note(f"{reason}; --threads overrides")

    # Without a spinner, since a download shows its own progress.
    files = find_model(name, offline=offline, check=partial(check_model, **settings))
    with output.waiting("loading") as show:
        loaded = load_model(files, threads=threads, on_progress=show, **settings)
    for note in loaded.notes:
        output.note(note)
    return loaded
