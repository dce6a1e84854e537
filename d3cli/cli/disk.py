"""``d3 models --disk``: what models take on disk, and the commands that remove them."""

from contextlib import suppress
from dataclasses import asdict

from d3cli.base.amounts import readable_size
from d3cli.base.errors import D3Error, ModelError
from d3cli.base.settings import aliases, default_model
from d3cli.cli.output import Output
from d3cli.files.disk_models import models_at
from d3cli.files.disk_use import DiskUse, Unreadable, disk_use, hub_use, local_use
from d3cli.files.names import find_on_disk

SCHEMA = 1


def show_disk(output: Output, model: str | None, *, as_json: bool) -> None:
    """Shows what takes disk.

    Args:
        model: a model, or a directory with models; None for the hub's cache, and the local models
            that have an alias or are the default.

    Raises:
        D3Error: there is no such model on disk.
    """
    if model is None:
        found, unreadable = disk_use(dict.fromkeys([*aliases().values(), default_model()]))
    else:
        found, unreadable = _of_model(model)
    for one in unreadable:
        output.note(f"{one.name} is left out: {one.problem}")
    if not found and model is not None and not _is_builtin(model):
        raise ModelError(
            f"{model} takes no disk that d3 knows how to free", "d3 models --disk lists what does"
        )
    total = sum(use.size_bytes for use in found)
    if as_json:
        output.json(
            {
                "schema": SCHEMA,
                "disk": [asdict(use) for use in found],
                "size_bytes": total,
                "unreadable": [asdict(one) for one in unreadable],
            }
        )
        return
    if not found:
        output.note("no model takes disk but the built-in one, which is a part of d3")
        return
    rows = [(readable_size(use.size_bytes), use.name, use.remove) for use in found]
    output.table(("size", "model", "removed by"), rows)
    things = "1 thing takes" if len(found) == 1 else f"{len(found)} things take"
    output.note(f"{things} {readable_size(total)}; the built-in model is a part of d3")


def _is_builtin(name: str) -> bool:
    with suppress(D3Error):  # such as a directory of models
        files = find_on_disk(name)
        return files is not None and files.builtin
    return False


def _of_model(name: str) -> tuple[list[DiskUse], list[Unreadable]]:
    """What models at a name take, and what only looks like one."""
    found: list[DiskUse] = []
    unreadable: list[Unreadable] = []
    for model in models_at(name).models:
        local = local_use(model.name)
        if isinstance(local, DiskUse):
            found.append(local)
        elif local is not None:
            unreadable.append(local)
        else:
            hub_id = aliases().get(model.name, model.name)
            found += [use for use in hub_use() if use.name == hub_id]
    return found, unreadable
