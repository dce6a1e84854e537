"""``d3 models``: names, models on disk, calibrations, the default model, and checksums."""

import os
from dataclasses import asdict, dataclass
from typing import Annotated

import typer

from d3cli.base.amounts import readable_size
from d3cli.base.errors import ModelError, StoreError, UsageError
from d3cli.base.settings import BUILTIN, aliases, default_model, save_setting
from d3cli.cli import options
from d3cli.cli.calibrate.stored import as_json as calibration_json
from d3cli.cli.calibrate.stored import summary
from d3cli.cli.command_line import CommandSettings, command, command_group
from d3cli.cli.completion import complete_model
from d3cli.cli.disk import show_disk
from d3cli.cli.model_options import Revision
from d3cli.cli.output import Output
from d3cli.depth.calibration_file import file_of
from d3cli.depth.calibration_store import all_calibrations, calibrations_of
from d3cli.files import checksums
from d3cli.files.cached_models import CachedModel, cached_models
from d3cli.files.disk_models import DiskModel, FoundModels, models_at
from d3cli.files.hub import at_revision
from d3cli.files.names import (
    find_local,
    find_on_disk,
    model_identity,
)

SCHEMA = 1
NAMED = 8  # subdirectories that a note lists

NAMES = "An alias, a hub id, a directory or a GGUF file"

models_app = command_group()


@dataclass(frozen=True, slots=True, kw_only=True)
class ListSettings(CommandSettings):
    """The command line of ``d3 models``."""

    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help=f"{NAMES}. Default: all aliases and the models in the hub's cache.",
            show_default=False,
            autocompletion=complete_model,
        ),
    ] = None
    disk: Annotated[
        bool,
        typer.Option("--disk", help="What models take on disk, and the commands that remove them."),
    ] = False
    as_json: options.Json = False
    debug: options.Debug = False


@dataclass(frozen=True, slots=True, kw_only=True)
class NameSettings(CommandSettings):
    """The command line of a subcommand that takes a model's name."""

    name: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help=f"{NAMES}; d3 models lists them.",
            autocompletion=complete_model,
        ),
    ]
    debug: options.Debug = False


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifySettings(NameSettings):
    """The command line of ``d3 models verify``."""

    revision: Revision = None


@models_app.callback()
@command(ListSettings)
def models(settings: ListSettings) -> int:
    """List models: aliases, models in the local cache, calibrations, the default.

    Of a MODEL on disk, or of each model in a directory and its subdirectories, it shows the format,
    the layers and the size.

    Examples:
    - `d3 models`

    - `d3 models ./models`

    - `d3 models ./model.gguf`

    - `d3 models --disk`
    """
    output = Output()
    if settings.disk:
        show_disk(output, settings.model, as_json=settings.as_json)
        return 0
    if settings.model is not None:
        _show(output, models_at(settings.model), as_json=settings.as_json)
        return 0
    cached = {model.hub_id: model for model in cached_models()}
    known = aliases()
    if settings.as_json:
        output.json(_as_json(known, cached))
        return 0
    default = default_model()
    rows = _rows(known, cached)
    if not any(default in (*row[0].split(", "), row[1]) for row in rows):
        rows.insert(0, ("", default, "", ""))
    output.table(
        ("", "alias", "model", "on disk", "calibrated", ""),
        [
            ("*" if default in (*row[0].split(", "), row[1]) else "", *row)
            for row in _with_calibrations(rows)
        ],
    )
    if cached:
        total = readable_size(sum(model.size_bytes for model in cached.values()))
        output.note(f"those from the hub take {total}: d3 models --disk says how to remove them")
    return 0


def _show(output: Output, found: FoundModels, *, as_json: bool) -> None:
    """Shows the facts about models on disk."""
    if found.without:
        names = ", ".join(path.name for path in found.without[:NAMED])
        names += f" and {len(found.without) - NAMED} more" if len(found.without) > NAMED else ""
        output.note(f"no model in these subdirectories, and deeper ones are not searched: {names}")
    if as_json:
        rows = [asdict(model) | {"problem": model.problem or None} for model in found.models]
        output.json({"schema": SCHEMA, "models": rows})
        return
    output.table(
        ("model", "type", "layers", "weights", "on disk", "calibrated", ""),
        [
            (
                model.name,
                model.model_type,
                "" if model.layers is None else str(model.layers),
                f"{model.format} {', '.join(model.weights)}".strip(),
                "" if model.size_bytes is None else readable_size(model.size_bytes),
                _calibrations(model),
                model.problem,
            )
            for model in found.models
        ],
    )


def _calibrations(model: DiskModel) -> str:
    """The calibrations that are stored for a model, in one cell."""
    try:
        stored = calibrations_of(model.identity) if model.identity else None
    except StoreError:
        return "unusable"
    return summary(stored) if stored else ""


def _rows(known: dict[str, str], cached: dict[str, CachedModel]) -> list[tuple[str, str, str, str]]:
    """Aliases, model, size and problem of each model that has an alias or is in the cache."""
    names: dict[str, list[str]] = {}
    for alias, target in known.items():
        names.setdefault(target, []).append(alias)
    rows = [(", ".join([BUILTIN, *names.pop(BUILTIN, [])]), "the built-in model", "", "")]
    for id_, model in cached.items():
        size = readable_size(model.size_bytes)
        rows.append((", ".join(names.pop(id_, [])), id_, size, model.problem))
    return rows + [(", ".join(aliases_), id_, "", "") for id_, aliases_ in names.items()]


def _with_calibrations(
    rows: list[tuple[str, str, str, str]],
) -> list[tuple[str, str, str, str, str]]:
    """Adds a column for calibrations, and rows for calibrated models that are not listed yet."""
    stored = {file.path: file for file in all_calibrations()}
    found = []
    for alias, model, size, problem in rows:
        builtin = alias.split(", ")[0] == BUILTIN
        own = stored.pop(file_of(BUILTIN if builtin else model_identity(model)), None)
        problems = "; ".join(filter(None, (problem, own.problem if own else "")))
        found.append((alias, model, size, summary(own) if own else "", problems))
    return found + [
        ("", file.model or file.path.name, "", summary(file), file.problem)
        for file in stored.values()
    ]


@models_app.command()
@command(NameSettings)
def default(settings: NameSettings) -> int:
    """Set the model that commands use by default.

    Examples:
    - `d3 models default qwen-3-4b`

    - `d3 models default demo`
    """
    name = settings.name
    local = find_local(name)  # refuses an unknown name; a hub id may be fetched later
    if local is not None and local.name not in aliases() and not local.builtin:
        # A relative path works in one directory only. Links stay: they name a split model's parts.
        name = str(local.path.resolve() if local.gguf is None else local.path.absolute())
    path = save_setting("model", name)
    output = Output()
    output.note(f"the default model is now {name} ({path})")
    if other := os.environ.get("D3_MODEL"):
        output.note(f"D3_MODEL is set, so {other} still runs by default")
    return 0


@models_app.command()
@command(VerifySettings)
def verify(settings: VerifySettings) -> int:
    """Compare a model's files with their checksums.

    Reads all of the files and downloads nothing. The checksums are those that the hub's cache, or
    `hf download --local-dir`, stored with the files; ollama puts them into the files' names. The
    exit code is 1 if a file is not the one that was published, 2 if there are no checksums.

    Example:
    - `d3 models verify qwen-3-4b`
    """
    name = settings.name
    local = find_on_disk(name, settings.revision)
    if local is None:
        raise ModelError(
            f"{at_revision(name, settings.revision)} is not on disk, or not all of it",
            "d3 generate fetches what is missing",
        )
    if local.builtin:
        raise UsageError(
            "the built-in model has no checksum to compare it with: it is a part of d3",
            "name another model",
        )
    output = Output()
    with output.progress.waiting("verifying") as show:
        local.vet()
        count = checksums.verify(local.all_files(), show)
    files = "the file matches its checksum"
    if count > 1:
        files = f"all {count} files match their checksums"
    output.write(f"{at_revision(name, settings.revision)}: {files}\n")
    return 0


def _as_json(known: dict[str, str], cached: dict[str, CachedModel]) -> dict[str, object]:
    return {
        "schema": SCHEMA,
        "default": default_model(),
        "builtin": BUILTIN,
        "aliases": known,
        "cached": [
            {"model": m.hub_id, "size_bytes": m.size_bytes, "problem": m.problem or None}
            for m in cached.values()
        ],
        "calibrations": [item for file in all_calibrations() for item in calibration_json(file)],
    }
